package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/agent/podnet/proof"
	"github.com/heddle-mesh/heddle/agent/podnet/tuples"
	"github.com/heddle-mesh/heddle/agent/steer"
	"github.com/heddle-mesh/heddle/bpf"
)

// Pod is one enrolled network namespace. It is safe for concurrent use; after
// Unenroll or the Node's Close its sockets go on, and its methods refuse.
type Pod struct {
	name  string
	id    uint32 // in the kernel's records
	node  *Node
	ns    *netns.Namespace
	addrs []netip.Addr
	link  steer.Link

	links    *netlink.Handle // in ns
	passthru tuples.Set
	sockets  [2]netns.Stock // made ahead: IPv4's and IPv6's
	names    names

	mu        sync.RWMutex // held for reading while kernel is used
	kernel    *bpf.Pod     // nil once the Pod is closed
	listeners Listeners

	unfinished atomic.Bool           // see Finish
	unrefused  atomic.Pointer[error] // see Unrefused
	proven     *proof.Gate           // set before the Pod is anybody's
	options    listener.Options      // likewise: of all of the agent's sockets in the pod
}

// ErrClosed says that the pod was unenrolled, or its Node closed.
var ErrClosed = errors.New("no longer enrolled by this agent")

// Name returns the pod's name.
func (p *Pod) Name() string { return p.name }

// Addresses returns the pod's addresses, sorted.
func (p *Pod) Addresses() []netip.Addr { return slices.Clone(p.addrs) }

// Listeners returns the agent's listeners in the pod. Who takes connections
// from them may close them. For those of DNS see Names.
func (p *Pod) Listeners() Listeners {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.listeners
}

// Kernel calls fn with the pod's part of the kernel: flows, counters, peers. It
// returns ErrClosed when that is gone. fn must not wait for anything, and not
// keep what it is given.
func (p *Pod) Kernel(fn func(*bpf.Pod) error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.kernel == nil {
		return ErrClosed
	}
	return fn(p.kernel)
}

// Within runs fn on a thread inside the pod's network namespace: see netns.Namespace.Do.
func (p *Pod) Within(fn func() error) error { return p.ns.Do(fn) }

// Check says what has become wrong with the pod since it was enrolled: a gate
// that is displaced or made blind, rules that somebody removed, a second way
// out. The error says the remedy.
func (p *Pod) Check() error {
	err := p.Kernel(func(k *bpf.Pod) error {
		_, err := steer.FindLink(p.links, p.node.links, p.ns, p.addrs)
		return errors.Join(err, p.steering().Check(p.links), p.node.home.Do(k.CheckGate))
	})
	if err != nil {
		return p.errorf("check: %w", err)
	}
	return nil
}

// lost says why the pod is no longer there; nil when it is.
func (p *Pod) lost() error {
	if !p.ns.StillThere() {
		return fmt.Errorf("network namespace %s is gone", p.ns.Path())
	}
	var missing netlink.LinkNotFoundError
	if _, err := p.node.links.LinkByIndex(p.link.Host); errors.As(err, &missing) {
		return fmt.Errorf("interface %s, the host side of the pod's veth, is gone", p.link.HostName)
	}
	return nil
}

// Unrefused says why connections to services that nobody serves are accepted and reset
// in this pod instead of refused; nil when they are refused. Nothing else is amiss.
func (p *Pod) Unrefused() error {
	if err := p.unrefused.Load(); err != nil {
		return *err
	}
	return nil
}

// refuse has such connections refused from now on; the pod is as safe without.
func (p *Pod) refuse() {
	err := p.kernel.AttachRefusal()
	if p.unrefused.Store(&err); err != nil {
		p.node.config.Log.Warn("pod accepts and resets connections to services that nobody serves, and does not refuse them", "pod", p.name, "error", err)
	}
}

// Unfinished reports whether the pod is behind filters, and not yet where its gate stays: see Finish.
func (p *Pod) Unfinished() bool { return p.unfinished.Load() }

// Finish does a part of what Spec.Prompt has left, until the pod is not Unfinished any more. It
// waits for a grace period of RCU. After an error it may be called again; the pod stays closed.
func (p *Pod) Finish() error {
	s, unlock := p.node.lock(p.name)
	defer unlock()
	if s.pod.Load() != p || !p.Unfinished() {
		return nil // another has its place now, or nobody
	}
	left := false
	err := p.node.home.Do(func() (err error) { left, err = p.kernel.AttachNext(); return err })
	if err == nil && !left {
		p.refuse()
		p.unfinished.Store(false)
	}
	return err
}

func (p *Pod) steering() steer.Steering {
	return steer.Steering{Mark: p.node.config.Mark, Mask: p.node.config.MarkMask, Table: p.node.config.Table, Addrs: p.addrs, DNS: p.names.captured.Load(), Congestion: p.options.Congestion.Route()}
}

// close lets go of everything that dies with the agent; pins, rules and routes
// stay, unless remove is set. The caller has the pod's slot.
func (p *Pod) close(remove bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	if p.links != nil {
		if remove {
			errs = append(errs, steer.Uninstall(p.links))
		}
		p.links.Close()
	}
	if p.kernel != nil && remove {
		errs = append(errs, p.node.home.Do(p.kernel.Remove))
	} else if p.kernel != nil {
		errs = append(errs, p.kernel.Close())
	}
	p.kernel = nil
	if p.proven != nil {
		p.proven.Wait()
	}
	return errors.Join(append(errs, p.listeners.Close(), p.names.former.Close(), p.sockets[0].Close(), p.sockets[1].Close(), p.ns.Close())...)
}

// errorf names the pod, and lets callers say what they did to it.
func (p *Pod) errorf(format string, args ...any) error {
	return fmt.Errorf("pod %s: "+format, append([]any{p.name}, args...)...)
}
