// Package h2 carries the requests of clients that speak HTTP/2, each of a stream, to workloads by either
// version, and those of clients that speak HTTP/1.1 to workloads that speak HTTP/2 (Loop.Carry). It is to package serve
// what its own carrying of HTTP/1.1 is.
//
// Everything of one client's connection, and of those to workloads, is done on one event loop. What happens at one of
// them is noted at the others, and done when the turn is over (Loop.Turn): no step begins within another one.
package h2

import (
	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/waypoint/bounds"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/mirror"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/pool"
	"github.com/heddle-mesh/heddle/waypoint/record"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2/turn"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/socket"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

// Loop is what the connections of one event loop have in common. Nothing of it is for another goroutine.
type Loop struct {
	Loop     *eventloop.Loop
	Pool     *pool.Pool
	Planner  *plan.Planner
	HTTP     *http2.Config
	Limits   *bounds.Limits
	Timeouts *bounds.Timeouts
	Metrics  *telemetry.Metrics
	Mirrors  *mirror.Sender
	Sinks    *record.Sinks
	// Use returns the current snapshot, after it was made the Planner's and the Pool's.
	Use func() *snapshot.Snapshot
	// Active are requests under way, Held the bytes that are held, of all protocols.
	Active *int
	Held   *int64
	// In is what is read into, of the loop; Buffers are the loop's.
	In      []byte
	Buffers *socket.Buffers
	// Turn has the steps of trunks First, and those of who waits for them Last.
	Turn *turn.Steps

	scratch
	trunks map[*pool.Place][]*trunk
	copies map[*copied]struct{}
	free   []*Request
}

// scratch is what is used within one call, and by the next one again.
type scratch struct {
	out     []byte
	request plan.Request
	plan    plan.Plan
}

const (
	// backlog is how many bytes may wait for a socket before no more is made for it.
	backlog = 64 << 10
	// spares is how many requests are kept for later, spareBytes how large a buffer of one, for the largeSpares that have any.
	spares, spareBytes, largeSpares = 256, 32 << 10, 32
	// maxConnects is how many workloads are tried that cannot be reached, maxUnseen how often a request is sent
	// again that no application has seen.
	maxConnects, maxUnseen = 3, 3
)

// Close ends the connections to workloads, and the copies that are on them or on others.
func (l *Loop) Close() {
	for c := range l.copies {
		c.late()
	}
	for _, all := range l.trunks {
		for _, t := range append([]*trunk(nil), all...) {
			t.close(false)
		}
	}
}

// refused counts a refusal.
func (l *Loop) refused(reason string) { l.Metrics.Refusals.WithLabelValues(reason).Inc() }

func (l *Loop) newRequest(f Front, who *plan.Client, id uint32) *Request {
	var q *Request
	if n := len(l.free); n > 0 {
		q, l.free = l.free[n-1], l.free[:n-1]
	} else {
		q = &Request{}
	}
	q.l, q.front, q.who, q.id, q.over, q.began = l, f, who, id, false, l.Loop.Now()
	return q
}
