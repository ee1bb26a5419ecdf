package podnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/podnet/ledger"
	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/agent/podnet/proof"
	"github.com/heddle-mesh/heddle/agent/podnet/tuples"
	"github.com/heddle-mesh/heddle/agent/steer"
)

// Enroll puts the mesh around a pod, or adopts what an earlier agent left
// around it, and returns it with its listeners open. For a pod that this Node
// has enrolled it brings the modes and the capture of DNS up to date, opens
// listeners again that were closed, and returns the same Pod; one that has another namespace or other
// addresses now it enrolls anew, as another Pod. Its gate is not detached for
// that: with other addresses it goes on with these, and around a namespace that
// the pod has left it stays, see retire.
//
// An error leaves nothing half done: a pod that was outside the mesh is outside
// again, as before; one that this Node or an earlier agent had enrolled stays
// behind its gate.
func (n *Node) Enroll(ctx context.Context, spec Spec) (*Pod, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	s, unlock := n.lock(spec.Name)
	defer unlock()
	ns, err := netns.Open(spec.NetNSPath)
	if err != nil {
		return nil, fmt.Errorf("enroll pod %s: %w", spec.Name, err)
	}
	if p := s.pod.Load(); p != nil {
		if p.ns.ID() == ns.ID() && p.lost() == nil && slices.Equal(p.addrs, spec.Addresses) {
			err := errors.Join(p.listenAgain(ctx), p.captureNames(ctx, spec.CaptureDNS), p.update(spec), ns.Close())
			p.announceNames()
			return p, err
		}
		// The pod, or its veth, was made anew, or has other addresses now. What it
		// was stays behind its gate until it is known that what it is now can be
		// enrolled: a mistake in the configuration must not open it.
		link, err := n.enrollable(ns, spec.Addresses)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("enroll pod %s (%s): %w", spec.Name, spec.NetNSPath, err), ns.Close())
		}
		s.pod.Store(nil)
		if p.ns.ID() != ns.ID() || p.link.Host != link.Host {
			p.stopCapture()
		}
		if err := p.close(false); err != nil {
			return nil, errors.Join(fmt.Errorf("enroll pod %s: let go of what it was: %w", spec.Name, err), ns.Close())
		}
	}
	e := enrolment{node: n, spec: spec, pod: &Pod{name: spec.Name, node: n, ns: ns, addrs: spec.Addresses, options: listener.Options{Mark: n.config.Mark}}}
	e.pod.names.captured.Store(spec.CaptureDNS)
	e.pod.names.shown = spec.CaptureDNS
	for i := range e.pod.sockets {
		e.pod.sockets[i].On(&n.shelf)
	}
	if err := e.run(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("enroll pod %s (%s): %w", spec.Name, spec.NetNSPath, err), e.rollBack())
	}
	s.pod.Store(e.pod)
	n.config.Log.Info("pod enrolled", "workload", spec.Name, "netns", spec.NetNSPath, "interface", e.pod.link.HostName,
		"adopted", e.adopted, "grandfathered", e.grandfathered)
	return e.pod, nil
}

// enrollable finds the way out of a namespace with these addresses, or says why
// it cannot be a pod's; it changes nothing.
func (n *Node) enrollable(ns *netns.Namespace, addrs []netip.Addr) (steer.Link, error) {
	links, err := ns.Netlink()
	if err != nil {
		return steer.Link{}, err
	}
	defer links.Close()
	return steer.FindLink(links, n.links, ns, addrs)
}

// enrolment is one run of Enroll, and what must be undone if it fails.
type enrolment struct {
	node  *Node
	spec  Spec
	pod   *Pod
	state ledger.Pod
	// adopted means that an earlier agent had finished enrolling the pod.
	adopted       bool
	silent        bool // it had no connection, and is new
	grandfathered int
	undo          []func() error
}

func (e *enrolment) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{e.look, e.record, e.gate, e.pod.listen, e.prove, e.capture} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	e.state.Enrolled = true
	return e.node.state.Save(e.state)
}

// look finds out whether the pod can be enrolled. It changes nothing.
func (e *enrolment) look(context.Context) (err error) {
	p := e.pod
	if p.ns.ID() == e.node.home.ID() {
		return errors.New("this is the agent's own network namespace, which holds the other ends: a pod needs one of its own")
	}
	if p.links, err = p.ns.Netlink(); err != nil {
		return err
	}
	if _, err = steer.Loopback(p.links, p.ns); err != nil {
		return err
	}
	if p.options.Congestion, err = p.ns.Congestion(e.node.config.SystemCongestion); err != nil {
		return fmt.Errorf("ask for the congestion control of %s: %w", p.ns.Path(), err)
	}
	p.link, err = steer.FindLink(p.links, e.node.links, p.ns, p.addrs)
	return err
}

// record reads what an earlier agent left, and writes what is about to change.
func (e *enrolment) record(context.Context) error {
	n, p := e.node, e.pod
	before, stated, err := n.state.Load(p.name)
	if err != nil {
		return err
	}
	if stated && (before.Namespace != p.ns.ID() || before.HostIndex != p.link.Host) {
		// It was moved, or made anew.
		if err := n.retire(before, p.link.Host); err != nil {
			return fmt.Errorf("leave its former namespace: %w", err)
		}
		before, stated = ledger.Pod{}, false
	}
	if err := n.unclaimed(p); err != nil {
		return err
	}
	if left, ok, err := n.reclaim(p); err != nil {
		return fmt.Errorf("take over the gate that is around its namespace: %w", err)
	} else if ok {
		before, stated = left, true
	}
	isPinned, err := n.isPinned(p.name)
	if err != nil {
		return err
	}
	// Pins without a file are a gate that somebody closed: as adopted.
	e.adopted = isPinned && (!stated || before.Enrolled)
	e.state = ledger.Pod{
		Name: p.name, ID: before.ID, Path: p.ns.Path(), Namespace: p.ns.ID(), Addresses: p.addrs,
		PodLink: p.link.Name, PodIndex: p.link.Index, HostIndex: p.link.Host,
		Table: n.config.Table, Enrolled: e.adopted,
	}
	if e.state.ID == 0 {
		if e.state.ID, err = n.state.FreeID(p.name); err != nil {
			return err
		}
	}
	p.id = e.state.ID
	e.undo = append(e.undo, func() error { return n.state.Remove(p.name) })
	return n.state.Save(e.state)
}

// gate closes the gate around the pod; what was open before goes on, marked and
// known to it.
func (e *enrolment) gate(context.Context) (err error) {
	n, p := e.node, e.pod
	config := kernelConfig(e.spec, p.id, p)
	// Not before the rules lead to the agent: a query that is lost costs the
	// pod's resolver seconds.
	config.CaptureDNS = config.CaptureDNS && e.adopted
	err = n.home.Do(func() (err error) {
		p.kernel, err = n.kernel.Pod(config)
		return err
	})
	if err != nil {
		return err
	}
	e.undo = append(e.undo, func() error {
		defer func() { p.kernel = nil }()
		return n.home.Do(p.kernel.Remove)
	})
	if err := e.grandfather(); err != nil {
		return err
	}
	if err := p.inheritTuples(p.kernel); err != nil {
		return err
	}
	return n.home.Do(e.attach)
}

// attach puts the gate around the pod and looks at it, and leaves what takes time for Finish if
// it may, and nobody can notice: see bpf.Pod.HoldGate.
func (e *enrolment) attach() error {
	p := e.pod
	if e.spec.Prompt && e.silent && p.kernel.HoldGate() == nil {
		p.unfinished.Store(true)
	} else if err := p.kernel.AttachGate(); err != nil {
		return fmt.Errorf("attach gate to %s: %w", p.link.HostName, err)
	}
	return p.kernel.CheckGate()
}

// prove finds out whether the gate sees the pod's traffic.
func (e *enrolment) prove(ctx context.Context) error {
	p := e.pod
	p.proven = &proof.Gate{Pod: p.ns, Host: e.node.home, Link: p.link, Addrs: p.addrs, Dropped: p.kernel.DropPeers}
	return p.proven.Prove(ctx)
}

// capture starts redirection: inbound with the program, outbound with the
// rules. Connections that came up since the first pass are saved by the second.
func (e *enrolment) capture(context.Context) error {
	p := e.pod
	if err := p.kernel.AttachRedirect(); err != nil {
		return fmt.Errorf("attach redirection to %s: %w", p.ns.Path(), err)
	}
	if !p.unfinished.Load() {
		p.refuse()
	}
	e.undo = append(e.undo, func() error { return steer.Uninstall(p.links) })
	if err := p.reroute(); err != nil {
		return err
	}
	if err := p.kernel.Update(kernelConfig(e.spec, p.id, p)); err != nil {
		return err
	}
	return e.grandfather()
}

// grandfather saves live connections, once in a pod's life in the mesh: a pod
// that an earlier agent had enrolled might show sockets that it has made look
// established in the meantime (TCP_REPAIR).
func (e *enrolment) grandfather() error {
	if e.silent = !e.adopted && tuples.None(e.pod.ns); e.adopted || e.silent {
		return nil
	}
	count, err := e.pod.kernel.Grandfather()
	if e.grandfathered += count; err != nil {
		return fmt.Errorf("save live connections: %w", err)
	}
	return nil
}

// rollBack undoes what run did, latest first. A pod that an earlier agent had
// enrolled keeps its closed gate.
func (e *enrolment) rollBack() error {
	var errs []error
	if !e.adopted {
		for _, undo := range slices.Backward(e.undo) {
			errs = append(errs, undo())
		}
	}
	return errors.Join(append(errs, e.pod.close(false))...)
}
