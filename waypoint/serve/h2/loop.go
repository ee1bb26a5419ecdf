// Package h2 carries the requests of clients that speak HTTP/2, each of a stream, to workloads by either
// version, and those of clients that speak HTTP/1.1 to workloads that speak HTTP/2 (Loop.Carry). It is to package serve
// what its own carrying of HTTP/1.1 is.
//
// Everything of one client's connection, and of those to workloads, is done on one event loop. What happens at one of
// them is noted at the others, and done when the turn is over (Loop.wake): no step begins within another one.
package h2

import (
	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/waypoint/bounds"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/mirror"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/pool"
	"github.com/heddle-mesh/heddle/waypoint/record"
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

	scratch
	soonRun
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

// soonRun is what is to be done when the turn is over.
type soonRun struct {
	clients []*Client
	dirty   []*trunk
	later   bool
	run     func()
}

const (
	// backlog is how many bytes may wait for a socket before no more is made for it.
	backlog = 64 << 10
	// spares is how many requests are kept for later, spareBytes how large a buffer of one.
	spares, spareBytes = 256, 32 << 10
	// maxConnects is how many workloads are tried that cannot be reached, maxUnseen how often a request is sent
	// again that no application has seen.
	maxConnects, maxUnseen = 3, 3
)

// wake has a client's step done soon.
func (l *Loop) wake(c *Client) {
	if !c.woken {
		c.woken = true
		l.clients = append(l.clients, c)
		l.soon()
	}
}

// touch has a trunk's step done soon.
func (l *Loop) touch(t *trunk) {
	if !t.woken {
		t.woken = true
		l.dirty = append(l.dirty, t)
		l.soon()
	}
}

func (l *Loop) soon() {
	if l.run == nil {
		l.run = l.steps
	}
	if !l.later {
		l.later = true
		l.Loop.Later(l.run)
	}
}

// steps does what was put off. What comes of it is for the next time.
func (l *Loop) steps() {
	l.later = false
	for n := len(l.dirty); n > 0; n-- {
		t := l.dirty[0]
		l.dirty = l.dirty[:copy(l.dirty, l.dirty[1:])]
		if t.woken = false; t.c != nil {
			t.step()
		}
	}
	for n := len(l.clients); n > 0; n-- {
		c := l.clients[0]
		l.clients = l.clients[:copy(l.clients, l.clients[1:])]
		if c.woken = false; !c.gone {
			c.owner.Run()
		}
	}
	if len(l.dirty)+len(l.clients) > 0 {
		l.soon()
	}
}

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
