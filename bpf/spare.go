package bpf

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"
)

// spareDelay is how long after a spare was taken the next is made: the pod that took it is
// waited for, and is enrolled by then.
const spareDelay = 200 * time.Millisecond

// spare is what a pod has in the kernel, made before it is needed: the verifier takes most
// of the time of a pod's enrolment. Nothing of it is pinned or attached.
type spare struct {
	mu    sync.Mutex
	pod   *Pod          // guarded by mu; nil if there is none
	taken chan struct{} // has room for one
}

// KeepSpare keeps the maps and programs of one pod ready, for the next that is new to the
// node, until ctx is done. It fails when they cannot be loaded, as that pod would.
func (n *Node) KeepSpare(ctx context.Context) error {
	for {
		p := n.newPod("")
		if err := p.load(); err != nil {
			return errors.Join(fmt.Errorf("load the next pod's programs: %w", err), p.Close())
		}
		n.putSpare(p)
		select {
		case <-ctx.Done():
			return n.dropSpare()
		case <-n.spare.taken:
		}
		select {
		case <-ctx.Done():
			return nil // there is none
		case <-time.After(spareDelay):
		}
	}
}

func (n *Node) putSpare(p *Pod) {
	n.spare.mu.Lock()
	defer n.spare.mu.Unlock()
	n.spare.pod = p
}

// takeSpare returns nil if there is none.
func (n *Node) takeSpare() *Pod {
	n.spare.mu.Lock()
	defer n.spare.mu.Unlock()
	p := n.spare.pod
	if n.spare.pod = nil; p != nil {
		n.spare.taken <- struct{}{} // KeepSpare has read the one before: it made this
	}
	return p
}

func (n *Node) dropSpare() error {
	n.spare.mu.Lock()
	p := n.spare.pod
	n.spare.pod = nil
	n.spare.mu.Unlock()
	select {
	case <-n.spare.taken: // at the last moment
	default:
	}
	if p == nil {
		return nil
	}
	return p.Close()
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
