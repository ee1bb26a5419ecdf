package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/agent/proxy/budget"
	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Pod is one enrolled workload, as Serve needs it.
type Pod struct {
	Key mesh.Key
	// UID and NetNS say which of those that have the key, one after the other, was
	// enrolled; a UID may be "".
	UID, NetNS string
	// Addresses are the pod's own, as its gate has them: of a new pod the node knows
	// them before the configuration does.
	Addresses []netip.Addr
	// Listeners become Serve's, which closes them.
	Listeners Listeners
	Sockets   Sockets
	// Probe reports whether the gate let a plaintext connection in as a
	// kubelet's probe; nil means that none is.
	Probe func(local, remote netip.AddrPort) bool
}

// pod is a Pod that is served.
type pod struct {
	Pod
	key mesh.Key
	// name is the key as the engine's Source and Local.
	name string
	*budget.Allowance
	// serving is done, for the cause of Serve's context, when no new connections are taken.
	serving context.Context
	// busy counts connections, the goroutines that decide about them, and Serve
	// itself until over is set: nothing is added afterwards.
	busy      sync.WaitGroup
	tunnels   sync.WaitGroup // listeners that the engine does not accept from yet
	described wire.Described
	printed   wire.Printed
	mu        sync.Mutex
	over      bool
}

// moving reports whether another process takes the pod over.
func (p *pod) moving() bool { return errors.Is(context.Cause(p.serving), ErrMoving) }

// draining reports whether the pod no longer takes connections.
func (p *pod) draining() bool { return p.serving.Err() != nil && !p.moving() }

// enter counts a connection that comes from another process; false means that
// it comes too late.
func (p *pod) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.busy.Add(1)
	}
	return !p.over
}

// Serve carries the connections of one pod until ctx is done. It then closes
// the listeners, lets what is carried go on to a deadline, ends the rest,
// and returns when nothing of the pod is left. The cause of ctx's end is the
// reason given to what it ends: ErrUnenrolled or the agent's own; after ErrMoving
// nothing is ended. After ErrLeaving it goes on for as long as what is carried does, up
// to a deadline.
func (p *Proxy) Serve(ctx context.Context, what Pod) error {
	serving, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	served := &pod{Pod: what, key: what.Key, name: what.Key.String(), serving: serving, Allowance: p.allowanceOf(what.Key)}
	served.busy.Add(1)
	served.tunnels.Add(len(what.Listeners.Tunnel))
	if err := p.add(served); err != nil {
		what.Listeners.Close()
		return err
	}
	defer p.remove(served)
	var accepting sync.WaitGroup
	stop := make(chan struct{})
	for _, l := range what.Listeners.Outbound {
		from := p.listener(served, l)
		accepting.Go(func() { p.acceptOutbound(served, from, stop) })
	}
	for _, l := range what.Listeners.Inbound {
		from := p.listener(served, l)
		accepting.Go(func() { p.accept(served, from, p.plaintext) })
	}
	failed := make(chan error, len(what.Listeners.Tunnel))
	for _, l := range what.Listeners.Tunnel {
		from := p.tunnelListener(served, l)
		accepting.Go(func() {
			err := p.cfg.Engine.Serve(from, p.server(served))
			from.Accepting() // when the engine gave up before
			from.End()
			if err != nil && serving.Err() == nil && !errors.Is(err, net.ErrClosed) {
				failed <- fmt.Errorf("serve tunnel of %s: %w", served.key, err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), ErrLeaving) {
			p.outlast(served)
		}
		end(context.Cause(ctx))
	case err = <-failed:
	}
	served.mu.Lock()
	served.over = true
	served.mu.Unlock()
	close(stop)
	what.Listeners.Close()
	if !served.moving() {
		p.drain(context.Cause(ctx), served)
	}
	accepting.Wait()
	served.busy.Done()
	served.busy.Wait()
	return err
}

// outlast returns when what a pod has now is over, or has had its time.
func (p *Proxy) outlast(served *pod) {
	before := p.live.of(served.key)
	wire.Until(p.cfg.Timeouts.Unenroll, func() bool { return wire.Disjoint(before, p.live.of(served.key)) })
}

// drain waits for the pod's connections to end and ends those that do not.
func (p *Proxy) drain(cause error, served *pod) {
	// Pooled tunnel connections end when their last stream does.
	p.cfg.Engine.Drain(hbone.Match{Source: served.name}, false)
	why, limit := mesh.ReasonDraining, p.cfg.Timeouts.Drain
	switch {
	case errors.Is(cause, ErrLeaving):
		// For what it has begun meanwhile. A connection that is opened now is not
		// answered, asks again a second later (RFC 6298, 2.1), and is redirected no more.
		why, limit = mesh.ReasonUnenrolled, min(p.cfg.Timeouts.Unenroll, 500*time.Millisecond)
	case errors.Is(cause, ErrUnenrolled):
		why, limit = mesh.ReasonUnenrolled, p.cfg.Timeouts.Unenroll
	}
	idle := func() bool { return len(p.live.of(served.key)) == 0 }
	wire.Until(limit, idle)
	for _, c := range p.live.of(served.key) {
		c.end(why, mesh.VerdictAllow)
	}
	// What was ended reports through the engine and the carrying goroutines.
	wire.Until(2*time.Second, idle)
	p.cfg.Engine.Drain(hbone.Match{Source: served.name}, true)
}

// listener is what a pod's connections are accepted from.
func (p *Proxy) listener(served *pod, l net.Listener) *budget.Listener {
	p.unsettled.Add(1)
	ended := sync.OnceFunc(func() { p.unsettled.Add(-1) })
	return &budget.Listener{
		Listener: l, Stop: served.serving.Done(),
		End: func() error {
			ended()
			if served.moving() {
				return hbone.ErrMoving
			}
			return net.ErrClosed
		},
		Starved: func(err error) {
			p.cfg.Log.Error("accepting connections fails: waiting for descriptors or memory", "workload", served.name, "error", err)
		},
	}
}

func (p *Proxy) tunnelListener(served *pod, l net.Listener) *budget.Listener {
	bounded := p.listener(served, l)
	bounded.Handshakes, bounded.Accepting = served.Handshakes, sync.OnceFunc(served.tunnels.Done)
	bounded.Over = func(conn net.Conn, why error) {
		p.refusedTunnel(served, hbone.Refusal{Remote: wire.AddrPort(conn.RemoteAddr()), Local: wire.AddrPort(conn.LocalAddr()), Err: why}, mesh.ReasonBudgetExceeded)
		wire.Reset(conn)
	}
	return bounded
}

// acceptOutbound takes the connections that the pod's applications open, on the
// engine's loops if it can.
func (p *Proxy) acceptOutbound(served *pod, from *budget.Listener, stop <-chan struct{}) {
	by, ok := p.cfg.Engine.(hbone.Acceptor)
	if l, tcp := from.Listener.(*net.TCPListener); ok && tcp {
		err := by.AcceptFrom(l, stop, func(in hbone.Incoming) { p.outboundNow(served, in) }, from.Starved)
		if err == nil {
			_ = from.End() // what it says is for those who accept from it
			return
		}
		p.cfg.Log.Error("connections are accepted without event loops", "workload", served.name, "error", err)
	}
	p.accept(served, from, p.outbound)
}

// accept takes connections and gives each to carry, on a goroutine of its own
// until the connection is carried or refused, until the pod takes no more.
func (p *Proxy) accept(served *pod, from *budget.Listener, carry func(*pod, *net.TCPConn)) {
	for {
		conn, err := from.Accept()
		if err != nil {
			return
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			p.cfg.Log.Error("accepted a connection that is not TCP", "workload", served.name)
			_ = conn.Close() // nobody is carried by it
			continue
		}
		p.unsettled.Add(1)
		served.busy.Go(func() {
			defer p.unsettled.Add(-1)
			carry(served, tcp)
		})
	}
}

// refusedTunnel records a tunnel connection or stream that never became a
// connection of the registry, with the identity that its peer has proved.
func (p *Proxy) refusedTunnel(served *pod, refused hbone.Refusal, reason mesh.Reason) {
	p.cfg.Flows.Add(wire.Refused(p.cfg.Store.View(), served.key, refused, reason))
}
