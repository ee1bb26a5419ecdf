package podnet

import (
	"errors"
	"slices"

	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/agent/podnet/tuples"
	"github.com/heddle-mesh/heddle/agent/steer"
	"github.com/heddle-mesh/heddle/bpf"
)

// Inherited is a listener of another agent on this node, for Config.Inherited.
type Inherited = listener.Inherited

// Share returns duplicates of the listeners of every enrolled pod, which are the
// caller's to close. Both processes may accept from them.
func (n *Node) Share() (map[string][]Inherited, error) {
	all := map[string][]Inherited{}
	for name, p := range n.Pods() {
		shared, err := p.share()
		all[name] = shared
		if err != nil {
			listener.CloseAll(all)
			return nil, p.errorf("share its listeners: %w", err)
		}
	}
	return all, nil
}

func (p *Pod) share() (shared []Inherited, err error) {
	listeners := p.Listeners()
	err = listeners.All(func(s *listener.Socket) error {
		dup, err := listener.Duplicate(s)
		if err != nil {
			return err
		}
		shared = append(shared, Inherited{Port: s.Port, IPv6: s.IPv6, Datagram: s.Datagram, File: dup})
		return nil
	})
	return shared, err
}

// takeInherited returns the descriptor of the pod's socket of a port if there is
// one that was inherited, once; it stays who gave it's.
func (n *Node) takeInherited(name string, want Inherited) (fd int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	inherited := n.config.Inherited[name]
	for i, l := range inherited {
		if l.Port != want.Port || l.IPv6 != want.IPv6 || l.Datagram != want.Datagram {
			continue
		}
		inherited[i] = inherited[len(inherited)-1]
		n.config.Inherited[name] = inherited[:len(inherited)-1]
		return l.File, true
	}
	return -1, false
}

// Reclaim is for an agent that was to be succeeded and goes on: its programs, and
// the modes and addresses of its pods, are put back where the other put its own.
func (n *Node) Reclaim() error {
	return errors.Join(n.kernel.Reclaim(), n.each("reclaim it", func(p *Pod, k *bpf.Pod) error {
		return errors.Join(n.home.Do(k.Reclaim), p.reroute())
	}))
}

// each calls fn with every enrolled pod, as Kernel does, but for those that leave meanwhile.
func (n *Node) each(what string, fn func(*Pod, *bpf.Pod) error) error {
	var errs []error
	for _, p := range n.Pods() {
		err := p.Kernel(func(k *bpf.Pod) error { return fn(p, k) })
		if err != nil && !errors.Is(err, ErrClosed) {
			errs = append(errs, p.errorf("%s: %w", what, err))
		}
	}
	return errors.Join(errs...)
}

// SetKubelet changes Config.KubeletCgroup, for the enrolled pods, too.
func (n *Node) SetKubelet(cgroup uint64) error {
	n.kernel.SetKubeletCgroup(cgroup)
	return n.each("tell it of kubelet's cgroup", func(_ *Pod, k *bpf.Pod) error { return k.Refresh() })
}

// reroute puts the pod's rules and routes back.
func (p *Pod) reroute() (err error) {
	route := p.steering()
	if route.Loopback, err = steer.Loopback(p.links, p.ns); err != nil {
		return err
	}
	return route.Install(p.links)
}

// Relisten makes the next Enroll of each pod put shared listeners in the place of
// those that whoever took connections from them has closed, or is about to:
// without a moment at which nobody listens, as fresh ones would have.
func (n *Node) Relisten(shared map[string][]Inherited) error {
	var errs []error
	for _, p := range n.Pods() {
		listeners := p.Listeners()
		errs = append(errs, listeners.Close())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.config.Inherited = map[string][]Inherited{}
	for name, listeners := range shared {
		n.config.Inherited[name] = slices.Clone(listeners)
	}
	return errors.Join(errs...)
}

// DropInherited forgets the inherited listeners that no pod had a use for: their
// descriptors are about to be closed, and their numbers others'.
func (n *Node) DropInherited() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.config.Inherited = nil
}

// inheritTuples takes over the tuples that are entered in the kernel and not
// this agent's own: those of connections that came from another agent, and those
// that one left when it died. They are forgotten when no socket has them.
func (p *Pod) inheritTuples(k *bpf.Pod) error {
	entered, err := k.Passthrus()
	if err == nil {
		p.passthru.Inherit(entered)
	}
	return err
}

// InheritTuples looks for tuples that another agent has entered in the kernel
// until now, in every pod. Enroll does it for the pod.
func (n *Node) InheritTuples() error { return n.each("take over its tuples", (*Pod).inheritTuples) }

// forgetTuples forgets the tuples that no socket in the pod has any more. It lists
// the sockets, and only while there are tuples of which it is not known.
func (p *Pod) forgetTuples() error {
	due := p.passthru.Due()
	if len(due) == 0 {
		return nil
	}
	var live map[tuples.Tuple]bool
	err := p.ns.Do(func() (err error) {
		live, err = tuples.Live(steer.Families(p.addrs))
		return err
	})
	if err != nil {
		return p.errorf("look for connections: %w", err)
	}
	for _, t := range due {
		if live[t] {
			continue
		}
		if err := p.passthru.Forget(t, p.forgetTuple); err != nil {
			return err
		}
	}
	return nil
}
