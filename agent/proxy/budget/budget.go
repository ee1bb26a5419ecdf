// Package budget bounds what pods may make the agent hold, and for how long:
// connections, bytes, and handshakes, of which no source gets everything. Its
// Listener takes a pod's connections within that, and outlives a lack of
// descriptors.
package budget

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// Budget bounds what one pod, and all pods together, may make the agent hold.
// Zero fields take those of Default.
type Budget struct {
	// Connections is how many connections of one pod are carried at once, in
	// both directions together.
	Connections int
	// PeerConnections is how many tunnel connections of one identity a pod accepts
	// at once. All pods of a service account are one identity, and each has one or a
	// few with every pod that it talks to: a DaemonSet has as many as there are nodes.
	PeerConnections int
	// Handshakes is how many tunnel connections per second a pod accepts,
	// OutboundHandshakes how many are begun for it; two seconds' worth at once.
	Handshakes, OutboundHandshakes int
	// Sockets bounds the sockets of all pods' connections together, one or two
	// for each, and of their tunnel connections; it follows from the limit of open
	// descriptors. No pod has more connections than four times the sockets left,
	// or more tunnel connections than are left.
	Sockets int
	// BufferedBytes is how much tunnels hold for a pod: what its applications, or
	// its peers, have not taken.
	BufferedBytes int64
	// Pipes is how many pipes bulk transfers may use at once.
	Pipes int
}

// Default allows 20,000 connections, half of them tunnel connections of one peer's
// identity, 1,000 handshakes per second each way and 256 MiB to a pod.
func Default() Budget {
	return Budget{Connections: 20000, PeerConnections: 10000, Handshakes: 1000, OutboundHandshakes: 1000, Sockets: 200000, BufferedBytes: 256 << 20, Pipes: 512}
}

// OrDefaults fills the zero fields.
func (b Budget) OrDefaults() Budget {
	d := Default()
	for _, f := range []struct {
		field *int
		value int
	}{
		{&b.Connections, d.Connections}, {&b.PeerConnections, d.PeerConnections}, {&b.Handshakes, d.Handshakes},
		{&b.OutboundHandshakes, d.OutboundHandshakes},
		{&b.Sockets, d.Sockets}, {&b.Pipes, d.Pipes},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	if b.BufferedBytes <= 0 {
		b.BufferedBytes = d.BufferedBytes
	}
	return b
}

// Alone is how many connections of one pod are carried while no other pod has any,
// whichever they are: with two sockets each it has as many as four ninths of Sockets. Those by
// tunnels take one, and one of the tunnel connection that many of them share.
func (b Budget) Alone() int {
	b = b.OrDefaults()
	return min(b.Connections, 4*b.Sockets/9)
}

// Allowance is what one pod has of a Budget, and has taken of it.
type Allowance struct {
	// Memory bounds what the engine holds for the pod.
	Memory *hbone.Memory
	// Handshakes are those of tunnel connections that the pod accepts, by who opens
	// them, and Outbound those that are begun for it, by where they go.
	Handshakes, Outbound *Handshakes
	// Connections counts those that are carried, Tunnels the tunnel connections by which
	// they go and come.
	Connections, Tunnels atomic.Int64
	// node counts the sockets of all pods, and may have no more than sockets.
	node                 *atomic.Int64
	connections, sockets int64
	// waiting counts those that are in Wait, at most of which may.
	waiting atomic.Int64
	most    int64
}

// Allowance returns that of a pod that has taken nothing, and counts its sockets among the
// node's.
func (b Budget) Allowance(node *atomic.Int64) *Allowance {
	a := &Allowance{
		node: node, connections: int64(b.Connections), sockets: int64(b.Sockets), most: int64(max(b.Connections/8, 1)),
		Handshakes: NewHandshakes(b.Handshakes, 2*b.Handshakes), Outbound: NewHandshakes(b.OutboundHandshakes, 2*b.OutboundHandshakes),
	}
	a.Memory = hbone.NewMemory(b.BufferedBytes).WithPlaces((*tunnels)(a))
	return a
}

// DialTunnel calls dial for a tunnel connection to an endpoint, which costs the pod a
// handshake whether or not it comes to one. Without one left the error matches ErrOver.
func (a *Allowance) DialTunnel(ctx context.Context, endpoint netip.AddrPort, dial func(context.Context, netip.AddrPort) (*net.TCPConn, error)) (*net.TCPConn, error) {
	if err := a.Outbound.Take(endpoint.Addr()); err != nil {
		return nil, err
	}
	return dial(ctx, endpoint)
}

// Wait calls wait, which waits until a connection can be decided about, unless an eighth of
// the pod's connections do: nobody who is to be refused in the end may have all of them.
func (a *Allowance) Wait(wait func()) {
	defer a.waiting.Add(-1)
	if a.waiting.Add(1) <= a.most {
		wait()
	}
}
