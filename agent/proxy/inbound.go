package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"

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

// arrival is one stream that a peer opened.
type arrival struct {
	*connection
	req  *hbone.StreamRequest
	view *mesh.View
	dst  *mesh.Workload
}

// refusal is an arrival's refusal: the status for the peer, the reason and the
// text for the record.
type refusal struct {
	status int
	reason mesh.Reason
	cause  error
}

// arrive authorizes one stream and connects it to the application.
func (p *Proxy) arrive(ctx context.Context, served *pod, req *hbone.StreamRequest) (*hbone.Accepted, error) {
	a, permit, client, err := p.admit(ctx, served, req)
	if err != nil {
		return nil, err
	}
	// The stream's end ends the dial too, as does a change of policy.
	app, err := p.deliver(a.opening.ctx, permit, served, client, req.Authority.Addr())
	if err != nil {
		return nil, a.unreachable(err)
	}
	if !a.hold(app) {
		wire.Reset(app)
		return nil, a.turnAway(refusal{http.StatusServiceUnavailable, mesh.ReasonDraining, nil})
	}
	return a.accepted(&hbone.Accepted{Conn: app}), nil
}

// arriveNow is arrive without waiting; rest waits for what is left of it.
func (p *Proxy) arriveNow(served *pod, by Starter, req *hbone.StreamRequest) (_ *hbone.Accepted, rest func(context.Context) (*hbone.Accepted, error), _ error) {
	a, permit, client, err := p.admit(context.Background(), served, req)
	if err != nil {
		return nil, nil, err
	}
	app, err := wire.Deliverable(permit, served.key, req.Authority.Addr())
	if err != nil {
		return nil, nil, a.unreachable(err)
	}
	fd, wait, err := by.StartApp(client, app)
	switch {
	case err != nil:
		return nil, nil, a.unreachable(err)
	case wait == nil:
		return a.accepted(&hbone.Accepted{FD: fd}), nil, nil
	}
	opening := a.opening.ctx
	return nil, func(ctx context.Context) (*hbone.Accepted, error) {
		ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeouts.Connect)
		defer cancel()
		defer context.AfterFunc(opening, cancel)()
		if err := wait(ctx); err != nil {
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

func (a *arrival) turnAway(no refusal) error {
	a.refuse(no.reason, no.cause)
	return &hbone.StatusError{Code: no.status, Reason: no.reason.String()}
}

func (a *arrival) unreachable(err error) error {
	return a.turnAway(refusal{http.StatusServiceUnavailable, wire.AppReason(err), err})
}

// admit decides about a stream. The permit is for what was asked for, with the
// client's address as far as it is proved.
func (p *Proxy) admit(ctx context.Context, served *pod, req *hbone.StreamRequest) (*arrival, mesh.Permit, netip.AddrPort, error) {
	view := p.cfg.Store.View()
	source := wire.EndpointAt(view, req.Remote)
	source.Identity = req.Peer
	c, ok := p.begin(ctx, served, flow.Record{
		Direction:   flow.DirectionInbound,
		Source:      source,
		Destination: flow.Endpoint{Workload: served.key, Addr: req.Authority},
		Timing:      flow.Timing{Handshake: req.Handshake}, Wire: flow.Wire{Secured: req.Secured},
	})
	if !ok {
		return nil, mesh.Permit{}, netip.AddrPort{}, &hbone.StatusError{Code: http.StatusServiceUnavailable, Reason: mesh.ReasonBudgetExceeded.String()}
	}
	a := &arrival{connection: c, req: req, view: view}
	permit, client, no := p.judge(a)
	if no != nil {
		return nil, mesh.Permit{}, netip.AddrPort{}, a.turnAway(*no)
	}
	return a, permit, client, nil
}

func (p *Proxy) judge(a *arrival) (mesh.Permit, netip.AddrPort, *refusal) {
	if a.pod.draining() {
		return mesh.Permit{}, netip.AddrPort{}, &refusal{http.StatusServiceUnavailable, mesh.ReasonDraining, nil}
	}
	if no := p.address(a); no != nil {
		return mesh.Permit{}, netip.AddrPort{}, no
	}
	client, err := wire.TrustedClient(a.view, a.req)
	if err != nil {
		return mesh.Permit{}, netip.AddrPort{}, &refusal{http.StatusBadRequest, mesh.ReasonForwardedUntrusted, err}
	}
	a.edit(func(r *flow.Record) { r.Source.Addr = client })
	permit, decision := a.view.Authorize(mesh.Connection{Peer: a.req.Peer, Source: client.Addr(), Destination: a.dst, Port: a.req.Authority.Port()})
	a.decide(decision)
	if !permit.Valid() {
		return mesh.Permit{}, netip.AddrPort{}, &refusal{http.StatusUnauthorized, decision.Reason, nil}
	}
	a.watch(a.view, flow.TransportTunnel)
	return permit, client, nil
}

// address finds the workload that the stream is for: this pod's, at one of the
// addresses that the node knows it by, as of a new pod the View may have none yet.
func (p *Proxy) address(a *arrival) *refusal {
	w, ok := a.view.Workload(a.pod.key)
	// The peer may know a new pod's address sooner than this node is told.
	w = wire.Placed(w, a.pod.Addresses)
	switch {
	case !a.view.Synced():
		return &refusal{http.StatusServiceUnavailable, mesh.ReasonNotSynced, nil}
	case !ok:
		return &refusal{http.StatusServiceUnavailable, mesh.ReasonUnenrolled, nil}
	}
	if status, reason, err := wire.AddressedTo(w, a.pod.Addresses, a.req.Authority); err != nil {
		return &refusal{status, reason, err}
	}
	if _, reason, err := wire.Certificate(p.cfg.Identities, a.view, w); err != nil {
		return &refusal{http.StatusServiceUnavailable, reason, err}
	}
	a.dst = w
	a.edit(func(r *flow.Record) { r.Destination.Identity = w.Identity })
	return nil
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
	permit, decision := wire.Authorize(view, asked, p.cfg.OnNode)
	c.decide(decision)
	if !permit.Valid() {
		refuse(decision.Reason, nil)
		return
	}
	if !p.chargeSocket() {
		refuse(mesh.ReasonBudgetExceeded, wire.ErrSockets)
		return
	}
	c.charged(1, nil)
	c.watch(view, flow.TransportPlaintext)
	app, err := p.deliver(c.opening.ctx, permit, served, client, target.Addr())
	if err != nil {
		refuse(wire.AppReason(err), err)
		return
	}
	c.connected(0, flow.Secured{})
	// Sent counts from the application, as it does for streams.
	p.join(c, app, remote)
}
