package bpf

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"
)

// Spares is how many pods' maps and programs are kept ready: as many as may start at once
// without waiting for the verifier. The maps of one take 3.5 MiB.
const Spares = 10

const (
	// spareDelay is how long after a spare was taken another is made: the pods that took
	// some are waited for, and are enrolled by then.
	spareDelay = 200 * time.Millisecond
	// stockDelay is as much while there is one: a quarter of a second of a processor may wait.
	stockDelay = time.Second
)

// spare is what pods have in the kernel, made before it is needed: the verifier takes most
// of the time of a pod's enrolment. Nothing of it is pinned or attached.
type spare struct {
	mu    sync.Mutex
	pods  []*Pod        // guarded by mu; the oldest first
	taken chan struct{} // has room for one: some were
	hasty bool          // for tests: stockDelay is none
}

// KeepSpare keeps the maps and programs of Spares pods ready, for the next that are new to the
// node, until ctx is done. It fails when they cannot be loaded, as those pods would.
func (n *Node) KeepSpare(ctx context.Context) error {
	for {
		if n.spares() < Spares {
			p := n.newPod("")
			if err := p.load(); err != nil {
				return errors.Join(fmt.Errorf("load the next pod's programs: %w", err), p.Close(), n.dropSpares())
			}
			n.putSpare(p)
		} else {
			select {
			case <-ctx.Done():
			case <-n.spare.taken:
			}
		}
		if !n.awaitSpareDelay(ctx) {
			return n.dropSpares()
		}
	}
}

// awaitSpareDelay returns when nothing was taken for a while; false when ctx is done.
func (n *Node) awaitSpareDelay(ctx context.Context) bool {
	for {
		delay := spareDelay
		if n.spares() > 0 && !n.spare.hasty {
			delay = stockDelay
		}
		select {
		case <-ctx.Done():
			return false
		case <-n.spare.taken:
		case <-time.After(delay):
			return ctx.Err() == nil
		}
	}
}

func (n *Node) spares() int {
	n.spare.mu.Lock()
	defer n.spare.mu.Unlock()
	return len(n.spare.pods)
}

func (n *Node) putSpare(p *Pod) {
	n.spare.mu.Lock()
	defer n.spare.mu.Unlock()
	n.spare.pods = append(n.spare.pods, p)
}

// takeSpare returns nil if there is none.
func (n *Node) takeSpare() *Pod {
	n.spare.mu.Lock()
	defer n.spare.mu.Unlock()
	if len(n.spare.pods) == 0 {
		return nil
	}
	p := n.spare.pods[0]
	n.spare.pods = n.spare.pods[1:]
	select {
	case n.spare.taken <- struct{}{}:
	default: // KeepSpare is told already
	}
	return p
}

func (n *Node) dropSpares() error {
	n.spare.mu.Lock()
	defer n.spare.mu.Unlock()
	var errs []error
	for _, p := range n.spare.pods {
		errs = append(errs, p.Close())
	}
	n.spare.pods = nil
	return errors.Join(errs...)
}

// settle gives a spare the folder of a pod.
func (p *Pod) settle(dir string) error {
	p.dir = dir
	for name, m := range p.maps {
		if name == ".rodata" {
			continue
		}
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}
