// Package budget bounds what pods may make the agent hold, and for how long:
// connections, bytes, and handshakes, of which no source gets everything. Its
// Listener takes a pod's connections within that, and outlives a lack of
// descriptors.
package budget

import (
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
	// Handshakes is how many tunnel connections per second a pod accepts;
	// HandshakeBurst how many at once.
	Handshakes, HandshakeBurst int
	// Sockets bounds the sockets of all pods' connections together, one or two
	// for each; it follows from the limit of open descriptors.
	Sockets int
	// BufferedBytes is how much tunnels hold for a pod: what its applications, or
	// its peers, have not taken.
	BufferedBytes int64
	// Pipes is how many pipes bulk transfers may use at once.
	Pipes int
}

// Default allows 20,000 connections, half of them tunnel connections of one peer's
// identity, 1,000 handshakes per second and 256 MiB to a pod.
func Default() Budget {
	return Budget{Connections: 20000, PeerConnections: 10000, Handshakes: 1000, HandshakeBurst: 2000, Sockets: 200000, BufferedBytes: 256 << 20, Pipes: 512}
}

// OrDefaults fills the zero fields.
func (b Budget) OrDefaults() Budget {
	d := Default()
	for _, f := range []struct {
		field *int
		value int
	}{
		{&b.Connections, d.Connections}, {&b.PeerConnections, d.PeerConnections}, {&b.Handshakes, d.Handshakes}, {&b.HandshakeBurst, d.HandshakeBurst},
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

// Allowance is what one pod has of a Budget, and has taken of it.
type Allowance struct {
	// Memory bounds what the engine holds for the pod.
	Memory     *hbone.Memory
	Handshakes *Handshakes
	// Connections counts those that are carried.
	Connections atomic.Int64
	// waiting counts those that are in Wait, at most of which may.
	waiting atomic.Int64
	most    int64
}

// Allowance returns that of a pod that has taken nothing.
func (b Budget) Allowance() *Allowance {
	return &Allowance{Memory: hbone.NewMemory(b.BufferedBytes), Handshakes: NewHandshakes(b.Handshakes, b.HandshakeBurst), most: int64(max(b.Connections/8, 1))}
}

// Wait calls wait, which waits until a connection can be decided about, unless an eighth of
// the pod's connections do: nobody who is to be refused in the end may have all of them.
func (a *Allowance) Wait(wait func()) {
	defer a.waiting.Add(-1)
	if a.waiting.Add(1) <= a.most {
		wait()
	}
}
