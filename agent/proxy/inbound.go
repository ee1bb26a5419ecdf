package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"

	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// server answers a pod's tunnel port.
func (p *Proxy) server(served *pod) *hbone.Server {
	limits := hbone.DefaultLimits()
	limits.Connections, limits.PeerConnections = p.cfg.Budget.Connections, p.cfg.Budget.PeerConnections
	server := &hbone.Server{
		Local: served.name,
		Certificate: func() (*tls.Certificate, error) {
			view := p.cfg.Store.View()
			w, ok := view.Workload(served.key)
			if !ok {
				return nil, fmt.Errorf("%s is not in the mesh's configuration", served.key)
			}
			cert, _, err := wire.Certificate(p.cfg.Identities, view, w)
			return cert, err
		},
		Bundles: p.cfg.Identities,
		Accept: func(ctx context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
			return p.arrive(ctx, served, req)
		},
		Refused: func(r hbone.Refusal) {
			p.refusedTunnel(served, r, wire.RefusalReason(r.Err))
		},
		Limits: limits, Memory: served.Memory,
	}
	if by, ok := served.Sockets.(Starter); ok {
		server.AcceptNow = func(req *hbone.StreamRequest) (*hbone.Accepted, func(context.Context) (*hbone.Accepted, error), error) {
			return p.arriveNow(served, by, req)
		}
	}
	return server
}

// arrival is one stream that a peer opened, and what was decided about it.
type arrival struct {
	*connection
	req *hbone.StreamRequest
	wire.Arrival
}

// arrive authorizes one stream and connects it to the application.
func (p *Proxy) arrive(ctx context.Context, served *pod, req *hbone.StreamRequest) (*hbone.Accepted, error) {
	a, err := p.admit(served, req)
	if err != nil {
		return nil, err
	}
	p.decide(a)
	return p.rest(ctx, a)
}

// rest is what of an arrival may wait: for another View, and for the application.
func (p *Proxy) rest(ctx context.Context, a *arrival) (*hbone.Accepted, error) {
	// The stream's end ends the waiting, as does a change of policy.
	opening := a.opening.scope.Context()
	defer context.AfterFunc(ctx, a.opening.scope.End)()
	if a.No != nil && a.No.Early {
		a.pod.Wait(func() {
			wire.Again(opening, p.cfg.Store, p.cfg.Timeouts.Hold, func(*mesh.View) bool { return p.decide(a).No != nil && a.No.Early })
		})
	}
	if a.No != nil {
		return nil, a.turnAway(a.No)
	}
	app, err := p.deliver(opening, a.Permit, a.pod, a.Client, a.Target.App.Addr())
	if err != nil {
		return nil, a.unreachable(err)
	}
	if !a.hold(app) {
		wire.Reset(app)
		return nil, a.turnAway(&wire.No{Status: http.StatusServiceUnavailable, Reason: mesh.ReasonDraining})
	}
	return a.accepted(&hbone.Accepted{Conn: app}), nil
}

// arriveNow is arrive without waiting; rest waits for what is left of it.
func (p *Proxy) arriveNow(served *pod, by Starter, req *hbone.StreamRequest) (_ *hbone.Accepted, rest func(context.Context) (*hbone.Accepted, error), _ error) {
	a, err := p.admit(served, req)
	if err != nil {
		return nil, nil, err
	}
	switch p.decide(a); {
	case a.No != nil && a.No.Early:
		return nil, func(ctx context.Context) (*hbone.Accepted, error) { return p.rest(ctx, a) }, nil
	case a.No != nil:
		return nil, nil, a.turnAway(a.No)
	}
	app, err := wire.Deliverable(a.Permit, served.key, a.Target.App.Addr())
	if err != nil {
		return nil, nil, a.unreachable(err)
	}
	fd, wait, err := wire.StartApp(by, a.Permit, a.Client, app)
	switch {
	case err != nil:
		return nil, nil, a.unreachable(err)
	case wait == nil:
		return a.accepted(&hbone.Accepted{FD: fd}), nil, nil
	}
	opening := a.opening.scope.Context()
	return nil, func(ctx context.Context) (*hbone.Accepted, error) {
		ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeouts.Connect)
		defer cancel()
		defer context.AfterFunc(opening, cancel)()
		if fd, err = wait(ctx); err != nil {
			return nil, a.unreachable(err)
		}
		return a.accepted(&hbone.Accepted{FD: fd}), nil
	}, nil
}

// accepted gives an arrival to the engine.
func (a *arrival) accepted(to *hbone.Accepted) *hbone.Accepted {
	a.connected(a.req.Handshake, a.req.Secured)
	a.settle()
	to.Cutter, to.Owner, to.Progress, to.Done = &a.cutter, a.connection, &a.counters, a.tunnelled
	return to
}

func (a *arrival) turnAway(no *wire.No) error {
	a.refuse(no.Reason, no.Cause)
	return &hbone.StatusError{Code: no.Status, Reason: no.Reason.String()}
}

func (a *arrival) unreachable(err error) error {
	return a.turnAway(&wire.No{Status: http.StatusServiceUnavailable, Reason: wire.AppReason(err), Cause: err})
}

// admit charges the pod for a stream, also for one that then waits.
func (p *Proxy) admit(served *pod, req *hbone.StreamRequest) (*arrival, error) {
	source := wire.EndpointAt(p.cfg.Store.View(), req.Remote)
	source.Identity = req.Peer
	c, ok := p.begin(context.Background(), served, flow.Record{
		Direction:   flow.DirectionInbound,
		Source:      source,
		Destination: flow.Endpoint{Workload: served.key, Addr: req.Authority},
		Timing:      flow.Timing{Handshake: req.Handshake}, Wire: flow.Wire{Secured: req.Secured},
	})
	if !ok {
		return nil, &hbone.StatusError{Code: http.StatusServiceUnavailable, Reason: mesh.ReasonBudgetExceeded.String()}
	}
	return &arrival{connection: c, req: req}, nil
}

// decide decides about an arrival, by what is known at this moment.
func (p *Proxy) decide(a *arrival) *arrival {
	if a.pod.draining() {
		a.No = &wire.No{Status: http.StatusServiceUnavailable, Reason: mesh.ReasonDraining}
		return a
	}
	a.Arrival = p.judge.Arrive(p.cfg.Identities, a.pod.key, a.pod.Addresses, a.req)
	a.edit(a.Describe)
	if a.No == nil {
		a.watch(a.By, flow.TransportTunnel)
	}
	return a
}

// plaintext carries one connection that came to the pod without a tunnel: a
// probe, or a client of a PERMISSIVE port.
func (p *Proxy) plaintext(served *pod, remote *net.TCPConn) {
	client, target := wire.AddrPort(remote.RemoteAddr()), wire.AddrPort(remote.LocalAddr())
	view := p.cfg.Store.View()
	c, ok := p.begin(context.Background(), served, flow.Record{
		Direction:   flow.DirectionInbound,
		Source:      wire.EndpointAt(view, client),
		Destination: flow.Endpoint{Workload: served.key, Addr: target},
	})
	if !ok {
		wire.Reset(remote)
		return
	}
	refuse := func(why mesh.Reason, cause error) {
		wire.Reset(remote)
		c.refuse(why, cause)
	}
	w, known := view.Workload(served.key)
	switch {
	case !c.hold(remote), served.draining():
		refuse(mesh.ReasonDraining, nil)
		return
	case !view.Synced():
		refuse(mesh.ReasonNotSynced, nil)
		return
	case !known:
		refuse(mesh.ReasonUnenrolled, nil)
		return
	}
	asked := mesh.Connection{Source: client.Addr(), Destination: w, Port: target.Port()}
	asked.Probe = served.Probe != nil && served.Probe(target, client)
	c.probe = asked.Probe
	c.edit(func(r *flow.Record) { r.Destination.Identity = w.Identity })
	permit, decision, _ := p.judge.Authorize(view, asked)
	c.decide(decision)
	if !permit.Valid() {
		refuse(decision.Reason, nil)
		return
	}
	if !served.ChargeSocket() {
		refuse(mesh.ReasonBudgetExceeded, wire.ErrSockets)
		return
	}
	c.charged(1, nil)
	c.watch(view, flow.TransportPlaintext)
	app, err := p.deliver(c.opening.scope.Context(), permit, served, wire.Client{AddrPort: client}, target.Addr())
	if err != nil {
		refuse(wire.AppReason(err), err)
		return
	}
	c.connected(0, flow.Secured{})
	// Sent counts from the application, as it does for streams.
	p.join(c, app, remote)
}
