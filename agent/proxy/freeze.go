package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/heddle-mesh/heddle/agent/proxy/frozen"
	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// ErrMoving is the cause to cancel every Serve's context with when another
// process takes the pods over: nothing is drained. Connections that are being
// established go on until they are carried or refused, and each Serve returns
// when its pod's have all ended or left.
var ErrMoving = errors.New("pods are moving to another process")

// Kind, and Frozen, are package frozen's.
type (
	Kind   = frozen.Kind
	Frozen = frozen.Frozen
)

// The kinds.
const (
	KindTunnel = frozen.KindTunnel
	KindPair   = frozen.KindPair
)

// Freeze gives everything that is carried to move, some at a time, and returns
// when all of it has moved or ended, or ctx is done. Call it once every Serve was
// told ErrMoving. An engine that is no hbone.Mover keeps its connections: they
// end here.
//
// When move returns nil, the other process has what it got; when it returns an
// error, that goes on here, and Freeze returns the error. After an error the
// pods can be served again: Serve may be called anew for what was told ErrMoving.
// What move says of one alone by an error that matches hbone.ErrStays goes on
// here; Freeze moves all the rest, and returns an error that matches it.
func (p *Proxy) Freeze(ctx context.Context, move func([]*Frozen) error) error {
	// Engine and relay are given nothing more once they begin.
	if err := frozen.Await(ctx, func() bool { return p.unsettled.Load() == 0 }); err != nil {
		return fmt.Errorf("wait for connections that are being established: %w", err)
	}
	mover, tunnels := p.cfg.Engine.(hbone.Mover)
	for {
		// Pairs need nobody to come to rest: they must not wait for tunnels that do.
		stay := p.relay.Freeze(ctx, func(all []*hbone.Frozen) error { return move(frozen.Give(KindPair, all)) })
		if stay != nil && !errors.Is(stay, hbone.ErrStays) {
			return fmt.Errorf("freeze pairs: %w", stay)
		}
		if tunnels {
			err := mover.Freeze(ctx, func(all []*hbone.Frozen) error { return move(frozen.Give(KindTunnel, all)) })
			if err != nil && !errors.Is(err, hbone.ErrStays) {
				return fmt.Errorf("freeze tunnels: %w", err)
			}
			stay = errors.Join(stay, err)
		}
		if stay != nil {
			return stay
		}
		if !p.movable(tunnels) {
			return nil
		}
		// Something is about to end.
		if err := frozen.Await(ctx, func() bool { return !p.movable(tunnels) }); err != nil {
			return err
		}
	}
}

// movable says whether something is left that can be moved.
func (p *Proxy) movable(tunnels bool) bool {
	return slices.ContainsFunc(p.live.All(), func(c *connection) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.done && (tunnels || c.record.Transport != flow.TransportTunnel)
	})
}

// Thaw goes on with what Freeze gave away in another process. The pod's Serve
// must be running. Connections keep their flow records, are charged to the
// budgets even when those are used up, and are judged by the View of this moment.
// After an error nothing was taken over, and the files are still the caller's to
// close; each connection in it leaves a record that says so.
func (p *Proxy) Thaw(f *Frozen) error {
	from := &hbone.Frozen{Source: f.Pod.String(), State: f.State, Data: f.Data, Files: f.Files}
	made := 0
	var err error
	switch f.Kind {
	case KindTunnel:
		err = p.thawTunnel(f.Pod, from, &made)
	case KindPair:
		err = p.thawPair(from, &made)
	default:
		err = fmt.Errorf("thaw: unknown kind %q", f.Kind)
	}
	if err != nil {
		for _, r := range frozen.Lost(from, f.Kind == KindPair, made, err) {
			p.cfg.Flows.Add(r) // nobody else records them: they were this process's
		}
	}
	return err
}

func (p *Proxy) thawTunnel(of mesh.Key, from *hbone.Frozen, made *int) error {
	mover, ok := p.cfg.Engine.(hbone.Mover)
	if !ok {
		return errors.New("thaw: this engine takes no connections over")
	}
	pod, ok := p.podOf(of)
	if !ok {
		return fmt.Errorf("thaw: %s is not served", of)
	}
	pod.tunnels.Wait() // for goroutines that are about to serve it
	err := mover.Thaw(from, hbone.ThawContext{
		Bundles: p.cfg.Identities, Memory: pod.Memory,
		Adopt: func(state []byte) (*hbone.Adopted, error) {
			c, err := p.adopt(state, &of)
			if err != nil {
				return nil, err
			}
			*made++
			return &hbone.Adopted{Owner: c, Progress: &c.counters, Cutter: &c.cutter, Done: c.tunnelled}, nil
		},
	})
	if err != nil {
		return fmt.Errorf("thaw a tunnel connection of %s: %w", of, err)
	}
	return nil
}

func (p *Proxy) thawPair(from *hbone.Frozen, made *int) error {
	var c *connection
	carrying, err := p.relay.Thaw(from, func(state []byte) (_ *relay.Adopted, err error) {
		if c, err = p.adopt(state, nil); err != nil {
			return nil, err
		}
		*made++
		return &relay.Adopted{
			Sent: &c.counters.Sent, Received: &c.counters.Received, Measure: c.measurePair, Owner: c, Done: c.complete,
		}, nil
	})
	if err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	c.cutter.Bind(func(error) { carrying.Cut() })
	return nil
}

// adopt makes a connection again: one of a pod's tunnels, or nil for a pair.
func (p *Proxy) adopt(state []byte, tunnelOf *mesh.Key) (*connection, error) {
	f, err := frozen.Decode(state)
	if err != nil {
		return nil, err
	}
	r, of := &f.Record, f.Pod()
	if tunnel := r.Transport == flow.TransportTunnel; tunnel != (tunnelOf != nil) || tunnel && *tunnelOf != of {
		return nil, fmt.Errorf("a connection of %s by %s is somewhere else", of, r.Transport)
	}
	pod, ok := p.podOf(of)
	if !ok || !pod.enter() {
		return nil, fmt.Errorf("%s is not served", of)
	}
	c := &connection{proxy: p, pod: pod, record: *r, probe: f.Probe, inside: f.Inside, sockets: 1}
	c.counters.Sent.Store(f.Sent)
	c.counters.Received.Store(f.Received)
	if r.Transport != flow.TransportTunnel {
		c.sockets = 2
	}
	pod.Connections.Add(1)
	p.sockets.Add(int64(c.sockets))
	// The destination of a splice may have left the mesh meanwhile; then the
	// source alone is charged.
	if there, ok := p.podOf(r.Destination.Workload); ok && r.Direction == flow.DirectionLocal {
		there.Connections.Add(1)
		c.also = there
	}
	if f.Balanced {
		p.balance(c, r.Destination.Workload)
	}
	p.live.add(c)
	c.watch(&mesh.View{}, r.Transport) // none that has allowed it
	return c, nil
}

// Freeze implements hbone.Owner.
func (c *connection) Freeze() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opening != nil || c.done {
		return nil, errors.New("the connection is not carried")
	}
	f := frozen.Connection{
		Record: c.record, Sent: c.counters.Sent.Load(), Received: c.counters.Received.Load(), Balanced: c.balanced, Probe: c.probe, Inside: c.inside,
	}
	c.given = true
	return f.Encode()
}

// Left implements hbone.Owner: the record is the other process's to make. One that
// was not given away from here has come, and is lost: nobody else records it.
func (c *connection) Left() {
	c.mu.Lock()
	if c.done || !c.given {
		c.mu.Unlock()
		c.finish(func(c *connection) {
			c.record.Reason, c.record.Detail = mesh.ReasonDraining, frozen.LostInMove
		})
		return
	}
	c.done = true
	c.mu.Unlock()
	c.leave()
	c.pod.busy.Done()
}
