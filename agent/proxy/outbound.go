package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// maxTries bounds the candidates that one connection is offered to.
const maxTries = 3

// departure is one outbound connection on its way.
type departure struct {
	*connection
	local *net.TCPConn // nil while it is incoming
	// incoming is one that must not wait, on a loop; it points to given, or is nil.
	incoming *hbone.Incoming
	given    hbone.Incoming
	view     *mesh.View
	src      *mesh.Workload
	// client is the application's own address, dialled where it wants to go.
	client, dialled netip.AddrPort
	route           mesh.Route
	// scope ends when the connection does, or is carried.
	scope *wire.Scope
	anew  bool // it was routed anew
}

// outbound carries one connection that the pod's application opened.
func (p *Proxy) outbound(served *pod, local *net.TCPConn) {
	d := &departure{local: local, client: wire.AddrPort(local.RemoteAddr()), dialled: wire.AddrPort(local.LocalAddr())}
	if !p.depart(d, served) {
		wire.Reset(local)
		return
	}
	if !d.hold(local) || served.draining() {
		d.refuseOutbound(mesh.ReasonDraining, nil)
		return
	}
	p.carry(d)
}

// depart makes the connection; false means that there are too many.
func (p *Proxy) depart(d *departure, served *pod) (ok bool) {
	d.connection, ok = p.begin(context.Background(), served, flow.Record{
		Direction:   flow.DirectionOutbound,
		Source:      flow.Endpoint{Workload: served.key, Addr: d.client},
		Destination: flow.Endpoint{Addr: d.dialled},
	})
	if ok {
		d.scope = &d.opening.scope
	}
	return ok
}

// carry carries what may wait.
func (p *Proxy) carry(d *departure) {
	if why := p.resolve(d); why != mesh.ReasonUnknown {
		d.refuseOutbound(why, nil)
		return
	}
	if d.route.Kind == mesh.RouteEgress {
		p.egress(d)
		return
	}
	p.offer(d, nil, mesh.ReasonNoEndpoint, nil)
}

// outboundNow is outbound on a loop: it does what needs no waiting, as giving a
// connection to a tunnel does not, and leaves the rest to a goroutine.
func (p *Proxy) outboundNow(served *pod, in hbone.Incoming) {
	dialled, err := wire.LocalOf(in.FD)
	d := &departure{given: in, client: wire.Unmap(in.Remote), dialled: dialled}
	d.incoming = &d.given
	if err != nil || !p.depart(d, served) { // it has no address when it is closed already
		wire.ResetSocket(in.FD)
		return
	}
	p.unsettled.Add(1)
	if !d.holdSocket(in.FD) || served.draining() {
		p.answeredNow(d, mesh.ReasonDraining, nil)
		return
	}
	switch why, hold := p.look(d); {
	case hold, d.route.Kind == mesh.RouteEgress:
	case why != mesh.ReasonUnknown:
		p.answeredNow(d, why, nil)
		return
	default:
		w := p.balancer.PickFor(d.client.Addr(), d.dialled.Port(), d.route.Service, d.route.Candidates, nil)
		if w == nil || !w.Enrolled || w.Node == p.cfg.Node {
			break
		}
		if why, cause, again := p.try(d, w); why != mesh.ReasonUnknown {
			p.goOn(d, func() { p.another(d, w, why, cause, again) })
		}
		return
	}
	p.goOn(d, func() { p.carry(d) })
}

// answeredNow refuses an incoming connection.
func (p *Proxy) answeredNow(d *departure, reason mesh.Reason, cause error) {
	d.refuseOutbound(reason, cause)
	p.unsettled.Add(-1)
}

// answeredLater is what the peer of an incoming connection has answered.
func (p *Proxy) answeredLater(d *departure, w *mesh.Workload, answer *hbone.Outcome) {
	if answer == nil {
		p.unsettled.Add(-1)
		return
	}
	why, cause, again := wire.Refusal(answer)
	p.goOn(d, func() { p.another(d, w, why, cause, again) })
}

// goOn makes an incoming connection one that may wait, on a goroutine.
func (p *Proxy) goOn(d *departure, next func()) {
	d.pod.busy.Go(func() {
		defer p.unsettled.Add(-1)
		fd := d.incoming.FD
		d.holdSocket(0)
		local, err := wire.ConnOf(fd)
		if err != nil {
			d.refuse(mesh.ReasonBudgetExceeded, err) // the descriptor is closed
			return
		}
		d.local, d.incoming = local, nil
		if !d.hold(local) {
			d.refuseOutbound(mesh.ReasonDraining, nil)
			return
		}
		next()
	})
}

// refuseOutbound resets the application's connection and records why.
func (d *departure) refuseOutbound(reason mesh.Reason, cause error) {
	if d.incoming == nil {
		wire.Reset(d.local)
		d.refuse(reason, cause)
		return
	}
	d.refuse(reason, cause) // from here on nobody else knows the descriptor
	wire.ResetSocket(d.incoming.FD)
}

// resolve routes the connection, waiting for discovery when the destination
// may be about to appear. It returns the reason of a refusal, else
// ReasonUnknown.
func (p *Proxy) resolve(d *departure) mesh.Reason {
	why, hold := p.look(d)
	if !hold {
		return why
	}
	wire.Again(d.scope.Context(), p.cfg.Store, p.cfg.Timeouts.Hold, func(*mesh.View) bool {
		why, hold = p.look(d)
		return hold
	})
	switch {
	case d.scope.Context().Err() != nil:
		return mesh.ReasonDraining
	case hold:
		d.describe()
	}
	return why
}

// look routes the connection by the View of this moment; hold means that another may
// know more.
func (p *Proxy) look(d *departure) (why mesh.Reason, hold bool) {
	view := p.cfg.Store.View()
	src, enrolled := view.Workload(d.pod.key)
	d.view, d.src = view, src
	d.route = view.Route(wire.Placed(src, d.pod.Addresses), d.dialled)
	switch {
	case d.route.Kind == mesh.RouteHold:
		return d.route.Reason, true
	case !enrolled:
		return mesh.ReasonUnenrolled, false
	}
	d.describe()
	if d.route.Kind == mesh.RouteReject {
		return d.route.Reason, false
	}
	return mesh.ReasonUnknown, false
}

// describe puts what routing found into the record.
func (d *departure) describe() {
	d.edit(func(r *flow.Record) {
		if d.src != nil {
			r.Source.Identity = d.src.Identity
		}
		r.Waypoint = mesh.Key{}
		if d.route.Service != nil {
			r.Service = d.route.Service.Key
		}
		if d.route.Waypoint != nil {
			r.Waypoint = d.route.Waypoint.Key
		}
	})
}

// asked is what the peer is asked for, when target is where its application is: a waypoint,
// for what was dialled.
func (d *departure) asked(target netip.AddrPort) netip.AddrPort {
	if d.route.Waypoint != nil {
		return d.dialled
	}
	return target
}

// past routes the connection past a waypoint that did not answer, if the service lets it.
func (d *departure) past() bool {
	if d.route.Waypoint == nil || !d.route.Service.Bypass || d.scope.Context().Err() != nil {
		return false
	}
	d.route = d.view.Past(wire.Placed(d.src, d.pod.Addresses), d.dialled)
	d.describe()
	return d.route.Kind == mesh.RouteWorkload
}

// offer gives the connection to candidates that were not tried until one takes it.
// The reason and the cause are those of the last that did not.
func (p *Proxy) offer(d *departure, tried []mesh.Key, reason mesh.Reason, cause error) {
	for len(tried) < maxTries {
		w := p.balancer.PickFor(d.client.Addr(), d.dialled.Port(), d.route.Service, d.route.Candidates, tried)
		if w == nil {
			break
		}
		var again bool
		reason, cause, again = p.try(d, w)
		if reason == mesh.ReasonUnknown {
			return // carried
		}
		if !again {
			p.turnedDown(d, reason, cause)
			return
		}
		tried = p.giveUp(d, w, tried)
		if d.scope.Context().Err() != nil {
			break
		}
	}
	if d.past() {
		p.offer(d, nil, reason, cause)
		return
	}
	d.refuseOutbound(reason, cause)
}

// another offers the connection to others than w, which did not take it.
func (p *Proxy) another(d *departure, w *mesh.Workload, reason mesh.Reason, cause error, again bool) {
	if again {
		if tried := p.giveUp(d, w, nil); d.scope.Context().Err() == nil {
			p.offer(d, tried, reason, cause)
			return
		}
	}
	p.turnedDown(d, reason, cause)
}

// turnedDown is the end of a connection that a peer has refused, unless that is the
// waypoint of the service no more: then it is routed anew, once, as soon as this node is
// told of it.
func (p *Proxy) turnedDown(d *departure, reason mesh.Reason, cause error) {
	was := d.route.Waypoint
	if was == nil || d.anew || !wire.NotThere(cause) {
		d.refuseOutbound(reason, cause)
		return
	}
	d.anew = true
	d.unwatch()
	same := true
	wire.Again(d.scope.Context(), p.cfg.Store, p.cfg.Timeouts.Hold, func(*mesh.View) bool {
		p.look(d)
		same = d.route.Waypoint != nil && d.route.Waypoint.Key == was.Key
		return same
	})
	if same {
		d.refuseOutbound(reason, cause)
		return
	}
	p.carry(d)
}

func (p *Proxy) giveUp(d *departure, w *mesh.Workload, tried []mesh.Key) []mesh.Key {
	d.unwatch()
	p.balancer.Unreachable(w.Key)
	return append(tried, w.Key)
}

// try gives the connection to one candidate. ReasonUnknown means that it is
// carried, and may have ended; another reason that the application's
// connection is untouched, and again that another candidate may have it.
func (p *Proxy) try(d *departure, w *mesh.Workload) (reason mesh.Reason, cause error, again bool) {
	addr, ok := w.AddressFor(d.dialled.Addr(), wire.Placed(d.src, d.pod.Addresses))
	if !ok {
		return mesh.ReasonPeerUnreachable, fmt.Errorf("%s and %s have no address family in common", d.src.Key, w.Key), true
	}
	target := netip.AddrPortFrom(addr, d.route.PortOf(w))
	end := flow.Endpoint{Workload: w.Key, Addr: d.asked(target)}
	if w.Enrolled { // nothing proves the identity of one that is not
		end.Identity = w.Identity
	}
	d.edit(func(r *flow.Record) { r.Destination, r.Direction = end, flow.DirectionOutbound })
	if no := p.mayLeave(d, target); no != mesh.ReasonUnknown {
		return no, nil, false
	}
	switch {
	case !w.Enrolled:
		if why := d.view.Egress(d.src); why != mesh.ReasonEgressAllowed {
			return why, fmt.Errorf("%s is not enrolled, and may not be reached in plaintext", w.Key), false
		}
		return p.plain(d, w, target)
	case w.Node == p.cfg.Node:
		return p.splice(d, w, target)
	default:
		return p.tunnel(d, w, target)
	}
}

// mayLeave asks the NetworkPolicies of the source; ReasonUnknown is yes.
func (p *Proxy) mayLeave(d *departure, to netip.AddrPort) mesh.Reason {
	decision, ok := wire.Leaves(d.view, d.src, to, p.cfg.OnNode)
	if !ok {
		d.decide(decision)
	}
	return decision.Reason
}

// plain tries a candidate that is not enrolled.
func (p *Proxy) plain(d *departure, w *mesh.Workload, target netip.AddrPort) (mesh.Reason, error, bool) {
	conn, err := p.dialPlain(d, target)
	if err != nil {
		return wire.DialReason(err, mesh.ReasonPeerUnreachable), err, wire.Elsewhere(err)
	}
	p.balancer.Reached(w.Key)
	p.balance(d.connection, w.Key)
	p.carryPlain(d, conn, mesh.ReasonEgressAllowed)
	return mesh.ReasonUnknown, nil, false
}

// egress carries the connection to where it was going, in plaintext.
func (p *Proxy) egress(d *departure) {
	if no := p.mayLeave(d, d.dialled); no != mesh.ReasonUnknown {
		d.refuseOutbound(no, nil)
		return
	}
	conn, err := p.dialPlain(d, d.dialled)
	if err != nil {
		d.refuseOutbound(wire.DialReason(err, mesh.ReasonPeerUnreachable), err)
		return
	}
	p.carryPlain(d, conn, d.route.Reason)
}

func (p *Proxy) dialPlain(d *departure, target netip.AddrPort) (*net.TCPConn, error) {
	if !d.pod.ChargeSocket() {
		return nil, wire.ErrSockets
	}
	ctx, cancel := context.WithTimeout(d.scope.Context(), p.cfg.Timeouts.Connect)
	defer cancel()
	conn, err := d.pod.Sockets.DialEgress(ctx, target)
	if err != nil {
		p.dischargeSocket()
		return nil, err
	}
	d.charged(1, nil)
	return conn, nil
}

// carryPlain joins the application and a plaintext connection.
func (p *Proxy) carryPlain(d *departure, conn *net.TCPConn, reason mesh.Reason) {
	d.decide(mesh.Decision{Verdict: mesh.VerdictAllow, Reason: reason, Rule: -1})
	d.connected(0, flow.Secured{})
	d.watch(d.view, flow.TransportPlaintext)
	p.join(d.connection, d.local, conn)
}

// splice carries the connection to a workload of this node, without TLS but not
// without policy: both ends need a valid certificate, and the destination
// authorizes as it does inbound.
func (p *Proxy) splice(d *departure, w *mesh.Workload, target netip.AddrPort) (mesh.Reason, error, bool) {
	d.edit(func(r *flow.Record) { r.Direction = flow.DirectionLocal })
	for _, end := range []*mesh.Workload{d.src, w} {
		if _, why, err := wire.Certificate(p.cfg.Identities, d.view, end); err != nil {
			return why, err, end == w // another may have its own
		}
	}
	if !wire.Among(d.pod.Addresses, d.client.Addr()) { // another node's agent would say the same
		return mesh.ReasonForwardedUntrusted, fmt.Errorf("%s is no address of %s", d.client.Addr(), d.src.Key), false
	}
	there, ok := p.awaitPod(d.scope.Context(), w.Key)
	if !ok {
		return mesh.ReasonPeerUnreachable, fmt.Errorf("%s is not enrolled on this node yet", w.Key), true
	}
	if there.draining() {
		return mesh.ReasonDraining, nil, true
	}
	asked := mesh.Connection{Peer: d.src.Identity, Source: d.client.Addr(), Destination: w, Port: target.Port()}
	if d.route.Waypoint != nil {
		asked.Behind = d.dialled
	}
	permit, decision, by := p.judge.Authorize(d.view, asked)
	if wire.Early(d.view, &asked, decision) { // the waypoint is told of what it is by others
		there.Wait(func() {
			wire.Again(d.scope.Context(), p.cfg.Store, p.cfg.Timeouts.Hold, func(view *mesh.View) bool {
				var now *mesh.View
				if permit, decision, now = p.judge.Authorize(view, asked); now != view {
					by = now // else it stays an older one, so that the source's side is judged by this one, too
				}
				return wire.Early(view, &asked, decision)
			})
		})
	}
	if there.draining() {
		return mesh.ReasonDraining, nil, true
	}
	d.decide(decision)
	if !permit.Valid() {
		return decision.Reason, nil, false
	}
	if !there.Charge() {
		return mesh.ReasonBudgetExceeded, fmt.Errorf("too many connections of %s", w.Key), true
	}
	app, err := p.deliver(d.scope.Context(), permit, there, p.judge.InFamily(wire.Placed(d.src, d.pod.Addresses), d.client, target.Addr()), target.Addr())
	if err != nil {
		there.Connections.Add(-1)
		p.dischargeSocket()
		return wire.AppReason(err), err, true
	}
	d.charged(1, there)
	p.balancer.Reached(w.Key)
	p.balance(d.connection, w.Key)
	d.connected(0, flow.Secured{})
	d.watch(by, flow.TransportSplice)
	p.join(d.connection, d.local, app)
	return mesh.ReasonUnknown, nil, false
}
