package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/agent/enroll"
	"github.com/heddle-mesh/heddle/agent/handover"
	"github.com/heddle-mesh/heddle/agent/kernel"
	"github.com/heddle-mesh/heddle/agent/pace"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// attend does what only one agent may do on a node, until ctx is done or a
// successor has taken over; leave is called then, when everything has ended that
// the successor has no part in.
func (a *Agent) attend(ctx context.Context, p *parts, leave func()) error {
	s := p.succession
	open, serve := rootsocket.Listen, p.admin.Run
	placed := make(chan struct{})
	if s != nil {
		open = rootsocket.Replace
		serve = func(ctx context.Context) error { return p.admin.RunInPlace(ctx, placed) }
	}
	successors, err := open(a.handoverSocket(), a.cfg.Log)
	if err != nil {
		return fmt.Errorf("listen for successors: %w", err)
	}
	own, given := context.WithCancel(ctx)
	defer given()
	group, own := errgroup.WithContext(own)
	group.Go(func() error { return named("watch the kernel", p.watch.Run(own)) })
	group.Go(func() error { return named("serve the admin socket", serve(own)) })
	group.Go(func() error { return named("serve new pods", p.newPods.serve(own, s != nil)) })
	if p.metrics != nil {
		group.Go(func() error { return named("serve metrics", a.serveMetrics(own, p)) })
	}
	group.Go(func() error {
		donor := handover.NewDonor(handover.DonorConfig{Self: a.self(p.moves(), p.uplink.TrustDomain()), Versions: a.cfg.seam.versions, Giver: &giver{a: a, p: p}, Deed: p.deed, Log: a.cfg.Log})
		if donor.Serve(own, successors) {
			p.life.given.Store(true)
			given()
			a.drain(ctx, p)
			leave()
		}
		return nil
	})
	if s != nil {
		group.Go(func() error {
			if wait(own, placed) == nil {
				close(s.mine)
				s.taken.Store(true)
				s.Taken()
			}
			return nil
		})
	}
	return group.Wait()
}

// drain lets the connections end that could not move.
func (a *Agent) drain(ctx context.Context, p *parts) {
	limit := time.NewTimer(a.cfg.Timeouts.Drain)
	defer limit.Stop()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for p.proxy.Open() > 0 {
		select {
		case <-poll.C:
		case <-limit.C:
			a.cfg.Log.Warn("connections end that could not move", "connections", p.proxy.Open(), "reason", mesh.ReasonDraining)
			for _, r := range p.proxy.Live() {
				a.cfg.Log.Info("ends, as it could not move", "source", r.Source.Addr, "destination", r.Destination.Addr, "sent", r.BytesSent, "received", r.BytesReceived)
			}
			return
		case <-ctx.Done():
			return
		}
	}
}

// giver is a running agent that gives its work away.
type giver struct {
	a *Agent
	p *parts
	// shared are duplicates of the pods' listeners, and metrics that of the
	// metrics' one, from Hold to Resume.
	shared  map[string][]kernel.Inherited
	metrics int
	moved   bool
}

// Hold implements handover.Giver.
func (g *giver) Hold(ctx context.Context) (*handover.Estate, error) {
	g.metrics = -1
	if err := g.p.pods.Pause(ctx); err != nil {
		return nil, err
	}
	var err error
	if g.shared, err = g.p.kernel.Pods().Share(); err != nil {
		return nil, err
	}
	estate := &handover.Estate{}
	for name, listeners := range g.shared {
		pod := handover.Pod{Name: name}
		for _, l := range listeners {
			pod.Listeners = append(pod.Listeners, handover.Listener{Port: l.Port, IPv6: l.IPv6, Datagram: l.Datagram, File: l.File})
		}
		estate.Pods = append(estate.Pods, pod)
	}
	if g.p.metrics != nil {
		if g.metrics, err = kernel.Duplicate(g.p.metrics); err != nil {
			return nil, err
		}
		estate.Metrics, estate.MetricsAddress = &handover.Listener{File: g.metrics}, g.a.cfg.Metrics
	}
	return estate, nil
}

// Move implements handover.Giver.
func (g *giver) Move(ctx context.Context, move func([]*handover.Connection) error) (int, error) {
	g.moved = true
	defer pace.Hurry()()
	if err := g.p.watch.Pause(ctx); err != nil {
		return 0, err
	}
	g.p.pods.Detach(proxy.ErrMoving)
	give := func(all []*proxy.Frozen) error {
		batch := make([]*handover.Connection, len(all))
		for i, f := range all {
			batch[i] = &handover.Connection{Kind: string(f.Kind), Pod: f.Pod.String(), State: f.State, Data: f.Data, Files: f.Files}
		}
		err := move(batch)
		if errors.Is(err, handover.ErrStays) {
			err = fmt.Errorf("%w: %w", hbone.ErrStays, err)
		}
		return err
	}
	var err error
	for {
		if err = g.p.proxy.Freeze(ctx, give); !errors.Is(err, handover.ErrLate) {
			break
		}
		if late, ok := errors.AsType[*handover.Late](err); ok {
			_ = wait(ctx, late.Again) // the connections go on meanwhile; Freeze looks at ctx
		}
	}
	if errors.Is(err, hbone.ErrStays) {
		g.a.cfg.Log.Warn("connections stay, to be drained", "connections", g.p.proxy.Open(), "error", err)
	} else if err != nil && ctx.Err() == nil {
		return 0, err
	}
	// Those that are left after that long, or cannot move, stay and are drained:
	// the successor has the others, which must not be lost for these.
	g.p.drops.Flush()
	return g.p.proxy.Open(), nil
}

// Records implements handover.Giver.
func (g *giver) Records(after uint64) (records [][]byte, last uint64) {
	last = after
	for _, r := range g.p.ring.Last(g.a.cfg.Flows.Records, flow.Filter{}) {
		if r.ID <= after {
			continue
		}
		last = max(last, r.ID)
		if b, err := proto.Marshal(r.ToProto()); err == nil {
			records = append(records, b)
		}
	}
	return records, last
}

// resumeWithin bounds how long taking up the pods again is waited for.
const resumeWithin = 10 * time.Second

// Resume implements handover.Giver.
func (g *giver) Resume() {
	node := g.p.kernel.Pods()
	err := node.Reclaim()
	if g.moved {
		err = errors.Join(err, node.Relisten(g.shared))
	}
	if err != nil {
		g.a.cfg.Log.Error("pods may not be as they were before the hand-over", "error", err)
	}
	g.p.pods.Resume()
	g.p.watch.Resume()
	for limit := time.Now().Add(resumeWithin); g.moved && !g.p.pods.Served() && time.Now().Before(limit); {
		time.Sleep(10 * time.Millisecond)
	}
	node.DropInherited()
	kernel.CloseInherited(g.shared)
	if g.metrics >= 0 {
		_ = unix.Close(g.metrics) // a duplicate
	}
	g.shared, g.metrics, g.moved = nil, -1, false
}

// pausable runs something that can be ended and begun again from outside.
type pausable struct {
	run func(context.Context) error
	mu  sync.Mutex
	// paused is closed when run has ended, resumed to begin it again; both are
	// nil when nobody has asked for it.
	paused, resumed chan struct{}
	asked           chan struct{} // capacity 1
}

func newPausable(run func(context.Context) error) *pausable {
	return &pausable{run: run, asked: make(chan struct{}, 1)}
}

// Run runs it, until ctx is done or it fails.
func (p *pausable) Run(ctx context.Context) error {
	for {
		running, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- p.run(running) }()
		var err error
		paused := false
		select {
		case err = <-ended:
		case <-p.asked:
			paused = true
		}
		cancel()
		if !paused {
			return err
		}
		if err := <-ended; err != nil || ctx.Err() != nil {
			return err
		}
		p.mu.Lock()
		stopped, again := p.paused, p.resumed
		p.mu.Unlock()
		close(stopped)
		if wait(ctx, again) != nil {
			return nil
		}
	}
}

// Pause ends it until Resume, and returns when it has ended.
func (p *pausable) Pause(ctx context.Context) error {
	p.mu.Lock()
	if p.paused == nil {
		p.paused, p.resumed = make(chan struct{}), make(chan struct{})
		p.asked <- struct{}{}
	}
	paused := p.paused
	p.mu.Unlock()
	return wait(ctx, paused)
}

// Resume ends Pause. It may be called without.
func (p *pausable) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.resumed == nil {
		return
	}
	select {
	case <-p.asked: // it was not paused yet
	default:
	}
	close(p.resumed)
	p.paused, p.resumed = nil, nil
}

// leftToAnother reports whether the pods are, or stay, another agent's.
func (p *parts) leftToAnother() error {
	if p.succession != nil && !p.succession.taken.Load() {
		return enroll.ErrLeave
	}
	return nil
}
