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

// tunnel carries the connection to an enrolled workload of another node. It
// returns when the peer has answered or refused; what follows is the engine's. A
// departure that was not to wait goes on by itself from there.
func (p *Proxy) tunnel(d *departure, w *mesh.Workload, target netip.AddrPort) (mesh.Reason, error, bool) {
	cert, why, err := wire.Certificate(p.cfg.Identities, d.view, d.src)
	if err != nil {
		return why, err, false
	}
	if d.view.Revoked(w.Identity) {
		return mesh.ReasonIdentityRevoked, fmt.Errorf("%s is on the deny-list", w.Identity), false
	}
	baggage := ""
	if !d.view.Foreign(w.Identity) { // what this mesh says of its workloads is for nobody else
		baggage = d.pod.described.Of(d.src)
	}
	c, allowed, sockets := d.connection, d.pod.Allowance, d.pod.Sockets
	endpoint := netip.AddrPortFrom(target.Addr(), mesh.TunnelPort)
	var answer chan *hbone.Outcome
	if d.incoming != nil {
		c.opening.answered = func(refusal *hbone.Outcome) { p.answeredLater(d, w, refusal) }
	} else {
		answer = make(chan *hbone.Outcome, 1)
		c.opening.answered = func(refusal *hbone.Outcome) { answer <- refusal }
	}
	p.balance(c, w.Key)
	d.decide(mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonNoPolicy, Rule: -1})
	d.watch(d.view, flow.TransportTunnel)
	// The engine keeps the request for as long as the stream lives: it refers
	// to nothing that only opening needs.
	req := &hbone.ConnectRequest{
		Key:         hbone.Key{Source: d.pod.name, Leaf: d.pod.printed.Of(cert), Peer: w.Identity, Endpoint: endpoint},
		Certificate: cert, Bundles: p.cfg.Identities,
		Authority: d.asked(target), Forwarded: d.client, Baggage: baggage, TraceParent: wire.TraceParent(),
		Dial: func(ctx context.Context) (*net.TCPConn, error) {
			return allowed.DialTunnel(ctx, endpoint, sockets.DialTunnel)
		},
		Timeout: p.cfg.Timeouts.Connect, Memory: d.pod.Memory,
		Progress: &c.counters, Cutter: &c.cutter, Owner: c,
		Established: c.established, Unanswered: c.unanswered, Done: c.tunnelled,
	}
	if d.incoming != nil {
		d.incoming.Connect(req)
		return mesh.ReasonUnknown, nil, false
	}
	p.cfg.Engine.Connect(d.local, req)
	return wire.Refusal(<-answer)
}

// established is the peer's 200: the engine has the connection now.
func (c *connection) established(timing hbone.Timing, by flow.Secured) {
	c.mu.Lock()
	to := c.record.Destination.Workload
	c.mu.Unlock()
	c.proxy.balancer.Reached(to)
	c.connected(timing.Handshake, by)
	c.settle().answered(nil)
}

// unanswered gives the connection back to whoever offered it.
func (c *connection) unanswered(o hbone.Outcome) {
	c.unbalance()
	c.opening.answered(&o)
}

// tunnelled is the end of what the engine carried.
func (c *connection) tunnelled(o hbone.Outcome) {
	opening := c.settle()
	if opening == nil {
		c.measure(o.Path)
		c.complete(o.Err)
		return
	}
	// The engine could not give the connection back: it is over.
	c.refuse(wire.TunnelReason(o.Err), o.Err)
	opening.answered(nil)
}
