package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/agent/deed"
	"github.com/heddle-mesh/heddle/agent/enroll"
	"github.com/heddle-mesh/heddle/agent/handover"
	"github.com/heddle-mesh/heddle/agent/kernel"
	"github.com/heddle-mesh/heddle/agent/pace"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/agent/uplink"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/overdue"
)

// What an agent does when another one runs on its node already; see
// Config.TakeOver.
const (
	TakeOverAuto    = "auto"
	TakeOverRequire = "require"
	TakeOverDrain   = "drain"
	TakeOverNever   = "never"
)

// fitWithin and fitPod bound the self-test, within what its donor waits for it;
// failedFor is how long a pod may fail in it, confirmWithin how long the operator
// has to confirm the configuration.
const (
	fitWithin = 45 * time.Second
	fitPod    = 1500 * time.Millisecond // for each pod
	failedFor = 3 * time.Second

	confirmWithin = 5 * time.Second
)

// succession is what an agent knows of the one that it takes over from.
type succession struct {
	*handover.Successor
	estate  *handover.Estate
	records [][]byte
	// pods are the donor's, by the name of their enrolment.
	pods map[string]bool
	// accept is closed when the donor has stopped accepting, mine when the pods
	// are this agent's alone.
	accept, mine chan struct{}
	// silent counts, by pod, the tunnel listeners that nobody accepts from yet.
	silent struct {
		sync.Mutex
		byPod map[string]int
	}
	taken atomic.Bool
	// lost is closed when the donor goes on by itself during the self-test, which
	// unwatch ends. confirmed is closed when the configuration may be applied to
	// the donor's pods.
	lost      <-chan struct{}
	unwatch   func()
	confirmed chan struct{}
}

// errGoesOn is why a successor stops.
var errGoesOn = errors.New("the running agent has given this one up and goes on")

func (a *Agent) handoverSocket() string { return filepath.Join(a.cfg.RunDir, "handover.sock") }

// self is what this agent says of itself to another.
func (a *Agent) self(engineMoves bool, trustDomain string) handover.Self {
	return handover.Self{
		Node: a.cfg.Node, TrustDomain: trustDomain, Program: a.cfg.Version, Engine: a.cfg.Engine, Moves: engineMoves, PID: os.Getpid(),
		Layout: kernel.Layout(kernel.Config{Mark: a.cfg.Kernel.Mark, MarkMask: a.cfg.Kernel.MarkMask}),
	}
}

// succeed asks the agent that runs on this node, if there is one, to hand over;
// nil means that there is none, and that the node is this agent's.
func (a *Agent) succeed(ctx context.Context, p *parts) (*succession, error) {
	mode := a.cfg.TakeOver
	var err error
	if mode == TakeOverNever {
		return nil, a.alone(ctx, p)
	}
	cfg := handover.SuccessorConfig{
		Socket: a.handoverSocket(), Self: a.self(p.moves(), uplink.Meant(a.uplinkConfig())), Versions: a.cfg.seam.versions, Mortal: true,
		Drain: mode == TakeOverAuto || mode == TakeOverDrain, Log: a.cfg.Log,
	}
	s, err := handover.Dial(ctx, cfg)
	if errors.Is(err, handover.ErrNobody) && mode == TakeOverAuto {
		return nil, a.alone(ctx, p)
	}
	if err != nil {
		return nil, fmt.Errorf("take over: %w", err)
	}
	su := &succession{Successor: s, pods: map[string]bool{}, accept: make(chan struct{}), mine: make(chan struct{}), confirmed: make(chan struct{})}
	su.silent.byPod = map[string]int{}
	su.unwatch = func() {}
	if !s.Moves {
		a.cfg.Log.Warn("tunnels cannot move to this agent: the one that runs drains them", "from", s.Donor.Engine, "to", a.cfg.Engine)
	}
	said := overdue.Say(a.cfg.Log, "for the listeners of the agent that runs", func() []any { return []any{"process", overdue.Process(s.Donor.PID)} })
	su.estate, err = s.Estate(func(records [][]byte) { su.records = append(su.records, records...) })
	said()
	for _, p := range su.estate.Pods {
		su.pods[p.Name] = true
	}
	if err != nil {
		return su, fmt.Errorf("take over: %w", err)
	}
	su.lost, su.unwatch = s.Watch()
	a.cfg.Log.Info("taking over", "from", s.Donor.PID, "version", s.Donor.Program, "protocol", s.Version, "pods", len(su.pods))
	return su, nil
}

// alone makes the node this agent's, or returns an error when it is another one's:
// two that know nothing of each other would undo each other's work.
func (a *Agent) alone(ctx context.Context, p *parts) (err error) {
	if p.deed, err = deed.Claim(ctx, a.deedPath()); err != nil {
		return err
	}
	// One of a version that locks nothing may be there all the same.
	for _, socket := range []string{a.handoverSocket(), a.cfg.AdminSocket} {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", socket)
		if err != nil {
			continue // nobody
		}
		_ = conn.Close() // it only asked whether somebody listens
		return fmt.Errorf("another agent answers at %s: stop it first, or take over from it (--take-over)", socket)
	}
	return nil
}

// inherited are the donor's listeners; there are none without a donor.
func (s *succession) inherited() map[string][]kernel.Inherited {
	if s == nil {
		return nil
	}
	all := map[string][]kernel.Inherited{}
	for _, p := range s.estate.Pods {
		for _, l := range p.Listeners {
			all[p.Name] = append(all[p.Name], kernel.Inherited{Port: l.Port, IPv6: l.IPv6, Datagram: l.Datagram, File: l.File})
		}
	}
	return all
}

func (s *succession) donor() int {
	if s == nil {
		return 0
	}
	return s.Donor.PID
}

// end tells a donor that is still waiting why it must go on, and lets go of what
// it gave.
func (s *succession) end(err error) {
	if s == nil {
		return
	}
	s.unwatch()
	if !s.taken.Load() && err != nil {
		s.Fail(err)
	}
	s.estate.Close()
	s.Close()
}

// cautious is the Datapath and the Server of an agent that is not alone yet: it
// adopts the donor's pods, and does nothing else before they are its own.
type cautious struct {
	enroll.Datapath
	enroll.Server
	*succession
	store *mesh.Store
}

// Enroll implements enroll.Datapath.
func (c cautious) Enroll(ctx context.Context, w *mesh.Workload, revoked bool) (proxy.Pod, error) {
	name := kernel.Name(w.Key)
	if !c.pods[name] {
		if err := wait(ctx, c.mine); err != nil {
			return proxy.Pod{}, err
		}
		return c.Datapath.Enroll(ctx, w, revoked)
	}
	// The donor's modes are in force: what it has not heard of must not be, nor
	// what it was told to give up.
	if err := wait(ctx, c.confirmed); err != nil {
		return proxy.Pod{}, err
	}
	if isDone(c.lost) && !isDone(c.mine) {
		return proxy.Pod{}, errGoesOn
	}
	now, ok := c.store.View().Workload(w.Key)
	if !ok || !now.Enrolled || now.UID != w.UID {
		return proxy.Pod{}, fmt.Errorf("%s has left the mesh", w.Key)
	}
	// What was asked for may be of before the operator's word; where the pod runs,
	// the operator does not know where a container runtime does.
	there := *now
	if there.NetNS == "" {
		there.NetNS, there.Addresses = w.NetNS, w.Addresses
	}
	pod, err := c.Datapath.Enroll(ctx, &there, c.store.View().Revoked(now.Identity))
	if err != nil || isDone(c.mine) {
		return pod, err
	}
	c.silent.Lock()
	defer c.silent.Unlock()
	c.silent.byPod[name] = len(pod.Listeners.Tunnel)
	for i, l := range pod.Listeners.Tunnel {
		pod.Listeners.Tunnel[i] = &announced{Listener: l, first: sync.OnceFunc(func() { c.heard(name) })}
	}
	return pod, nil
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// heard notes that one of a pod's listeners is accepted from.
func (s *succession) heard(pod string) {
	s.silent.Lock()
	defer s.silent.Unlock()
	s.silent.byPod[pod]--
}

func (s *succession) forget(pod string) {
	s.silent.Lock()
	defer s.silent.Unlock()
	delete(s.silent.byPod, pod)
}

// await waits until everything is accepted from.
func (s *succession) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handover.AcceptWithin)
	defer cancel()
	for {
		left := 0
		s.silent.Lock()
		for _, n := range s.silent.byPod {
			left += max(n, 0)
		}
		s.silent.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d tunnel listeners are not served: %w", left, context.Cause(ctx))
		}
	}
}

// Unenroll implements enroll.Datapath.
func (c cautious) Unenroll(ctx context.Context, key mesh.Key) error {
	if err := wait(ctx, c.mine); err != nil {
		return err
	}
	return c.Datapath.Unenroll(ctx, key)
}

// Serve implements enroll.Server: it accepts nothing that the donor would have to
// give up if this agent turned out unfit.
func (c cautious) Serve(ctx context.Context, pod proxy.Pod) error {
	defer c.forget(kernel.Name(pod.Key)) // it may have left meanwhile: nobody waits for it
	if err := wait(ctx, c.accept); err != nil {
		for _, group := range [][]net.Listener{pod.Listeners.Outbound, pod.Listeners.Inbound, pod.Listeners.Tunnel} {
			for _, l := range group {
				_ = l.Close() // a duplicate: the donor has its own
			}
		}
		return nil
	}
	return c.Server.Serve(ctx, pod)
}

func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// announced tells when a listener is accepted from first: from then on its pod's
// tunnels can be thawed.
type announced struct {
	net.Listener
	first func()
}

// Accept implements net.Listener.
func (l *announced) Accept() (net.Conn, error) {
	l.first()
	return l.Listener.Accept()
}

// takeOver tests this agent, and takes the donor's connections. After an error
// the donor goes on.
func (a *Agent) takeOver(ctx context.Context, p *parts) error {
	s := p.succession
	said := overdue.Say(a.cfg.Log, "for the self-test before taking over", nil)
	err := a.fit(ctx, p)
	said()
	s.unwatch()
	if err != nil {
		return fmt.Errorf("this agent is not fit, the other one goes on: %w", err)
	}
	p.kernel.Pods().DropInherited()
	s.estate.Close()
	restore(p.ring, s.records)
	s.records = nil
	p.restorePriority()
	defer pace.Hurry()()
	dead, err := s.Ready()
	if err != nil {
		return err
	}
	if dead {
		if err := a.own(ctx, p, nil); err != nil {
			return err
		}
	}
	// `heddle local upgrade` waits for these words: this agent must not be ended
	// for being slow any more.
	a.cfg.Log.Info("the running agent hands over", "successor", os.Getpid(), "from", s.Donor.PID)
	close(s.accept)
	t := &taker{p: p, thawing: a.cfg.seam.reached}
	sum := handover.Summary{Donor: s.Donor, Version: s.Version, Alone: true}
	if !dead {
		if err := s.await(ctx); err != nil {
			return err
		}
		if sum, err = s.Receive(t); err != nil {
			return err
		}
		if err := a.own(ctx, p, sum.Deed); err != nil {
			return err
		}
	}
	if err := p.kernel.Pods().InheritTuples(); err != nil {
		a.cfg.Log.Warn("what the other agent entered in the kernel may stay", "error", err)
	}
	p.handOver.Store(&meshpb.HandOver{
		FromVersion: sum.Donor.Program, FromPid: int64(sum.Donor.PID), Protocol: uint32(sum.Version),
		Connections: t.connections, Failed: t.failed, Tunnels: t.tunnels, Left: uint32(sum.Left),
		DurationNs: int64(sum.Took), LongestPauseNs: int64(sum.Pause), AtNs: time.Now().UnixNano(),
	})
	a.cfg.Log.Info("took over", "from", sum.Donor.PID, "version", sum.Donor.Program, "connections", t.connections, "tunnels", t.tunnels,
		"failed", t.failed, "left", sum.Left, "pause", sum.Pause, "took", sum.Took, "alone", sum.Alone)
	return nil
}

// own makes the node this agent's by the donor's deed, or, when that had none or
// is dead, by one of its own. Whoever has it then must not be undone: after an
// error this agent ends.
func (a *Agent) own(ctx context.Context, p *parts, given *os.File) (err error) {
	if given != nil {
		p.deed = given
		return deed.Sign(given)
	}
	p.deed, err = deed.Claim(ctx, a.deedPath())
	return err
}

// fit waits until every pod of the donor is enrolled here, and looks at each: its
// gate, its rules, its certificate. The donor may enforce a newer policy than the
// last good one on disk: the operator has to confirm what is applied, unless it
// does not answer, in which case this is as good as any start without it. Until
// then nothing of the donor's is touched.
func (a *Agent) fit(ctx context.Context, p *parts) error {
	ctx, cancel := context.WithTimeout(ctx, fitWithin+time.Duration(len(p.succession.pods))*fitPod)
	defer cancel()
	a.cfg.seam.reached("fit")
	failing := map[string]time.Time{}
	unconfirmed := time.Now().Add(confirmWithin)
	for {
		if p.uplink.Discovery().Status().Current || time.Now().After(unconfirmed) {
			p.succession.confirm()
		}
		waiting, err := a.unfit(p, failing)
		if err != nil {
			return err
		}
		if waiting == "" && isDone(p.succession.confirmed) {
			if !p.uplink.Discovery().Status().Current {
				a.cfg.Log.Warn("taking over with the last good configuration: the operator has not confirmed it")
			}
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-p.succession.lost:
			return errGoesOn
		case <-ctx.Done():
			return fmt.Errorf("pod %s is not enrolled by this agent's configuration: %w", waiting, context.Cause(ctx))
		}
	}
}

func (s *succession) confirm() {
	if !isDone(s.confirmed) {
		close(s.confirmed)
	}
}

// staying are the donor's pods, but those that have left the mesh by the
// operator's own word: they are taken out once this is the node's agent.
func (a *Agent) staying(p *parts) map[string]bool {
	view := p.uplink.Store().View()
	if !view.Synced() || !p.uplink.Discovery().Status().Current {
		return p.succession.pods
	}
	stay := map[string]bool{}
	for _, w := range view.OnNode(a.cfg.Node) {
		if name := kernel.Name(w.Key); w.Enrolled && p.newPods.mayRun(w) && p.succession.pods[name] {
			stay[name] = true
		}
	}
	return stay
}

// unfit names a pod of the donor that has to be waited for, or returns what is
// wrong with one.
func (a *Agent) unfit(p *parts, failing map[string]time.Time) (waiting string, err error) {
	states := map[string]enroll.Status{}
	for _, s := range p.pods.Status() {
		states[kernel.Name(s.Key)] = s
	}
	stay := a.staying(p)
	for name := range stay {
		s, ok := states[name]
		switch {
		case ok && s.State == enroll.Enrolled:
			continue
		case ok && s.State == enroll.Failed:
			if failing[name].IsZero() {
				failing[name] = time.Now()
			}
			if time.Since(failing[name]) > failedFor {
				return "", fmt.Errorf("enroll pod %s: %w", name, s.Err)
			}
		default:
			delete(failing, name)
		}
		waiting = name
	}
	if waiting != "" || !p.uplink.Store().View().Synced() {
		return waiting, nil
	}
	pods := p.kernel.Pods().Pods()
	for name := range stay {
		cert, err := p.uplink.Source().Certificate(states[name].Workload.Identity)
		if err == nil && time.Now().After(cert.Leaf.NotAfter) {
			err = fmt.Errorf("it expired at %s", cert.Leaf.NotAfter)
		}
		if err != nil {
			return "", fmt.Errorf("certificate of pod %s: %w", name, err)
		}
		pod, ok := pods[name]
		if !ok {
			return name, nil
		}
		if err := pod.Check(); err != nil {
			return "", err
		}
	}
	return "", nil
}
