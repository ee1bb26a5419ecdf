package serve

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/bounds"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/pool"
	"github.com/heddle-mesh/heddle/waypoint/record"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2"
	"github.com/heddle-mesh/heddle/waypoint/stay"
)

// h1 carries the requests of a client's connection that speaks HTTP/1.1, one after the other. It is
// attached to a connection from the first byte of a request on, and taken off when that idles.
type h1 struct {
	c *conn
	x *http1.Exchange
	// since is when the request's first bytes came, or were looked for.
	since time.Time
	trip
	try
}

// trip is one request.
type trip struct {
	way  *plan.Way
	view *mesh.View
	to   mesh.Route
	// sent is what a backend gets of the request, from the first byte on while it is whole (not cut),
	// so that another one may get it too.
	sent []byte
	cut  bool
	// begun says that the head has come, done that all of it has, answered that the response
	// has ended.
	begun, done, answered bool
	// again may be: the method is idempotent (RFC 9110 section 9.2.2).
	idempotent bool
	grpc       bool
	asksHead   bool // the method is HEAD
	counted    bool // among the worker's requests
	began      time.Time
	mirrors    []*plan.Way
	stay       stay.Stay
	origin     string // of a request whose way has CORS
	remove     []string
	removeBack []string
	note       record.Note
	asked      plan.Sent
}

// try is one try to have it answered.
type try struct {
	backend  *pool.Conn
	place    *pool.Place
	workload *mesh.Workload
	tried    []mesh.Key
	written  int // of sent
	heard    bool
	stale    int // connections that had ended meanwhile
	until    time.Time
	pause    time.Time // when the next one begins; zero without one
	// carried is the request as package h2 carries it, nil when it has ended there; carrying says that it has not ended,
	// stalled that nothing is read until some of it goes on, spoken that the client has ended what it says in a tunnel.
	carried                   *h2.Request
	carrying, stalled, spoken bool
}

// newH1 attaches one to a connection.
func (w *worker) newH1(c *conn) *h1 {
	var h *h1
	if n := len(w.free.h1); n > 0 {
		h, w.free.h1 = w.free.h1[n-1], w.free.h1[:n-1]
	} else {
		h = &h1{x: http1.NewExchange(w.cfg.HTTP)}
	}
	h.c, h.x.Drain, h.since = c, !w.draining.IsZero() || !c.leaving.since.IsZero(), w.loop.Now()
	c.proto, c.stage = h, active
	return h
}

// heldBytes is what an exchange may keep for the next request.
const heldBytes = 16 << 10

// reset forgets a request, and keeps its memory.
func (h *h1) reset() {
	clear(h.mirrors)
	clear(h.remove)
	h.note.Reset()
	h.asked.Reset()
	h.trip = trip{sent: h.sent[:0], mirrors: h.mirrors[:0], remove: h.remove[:0], removeBack: h.removeBack[:0], note: h.note, asked: h.asked}
	h.try = try{tried: h.tried[:0]}
	if cap(h.sent) > spareBytes {
		h.sent = nil
	}
}

// detach takes it off a connection that idles.
func (h *h1) detach() {
	c := h.c
	c.proto, c.stage, c.since = nil, idle, c.w.loop.Now()
	if large := len(c.w.free.h1) < largeSpares; h.x.Held() > heldBytes || !large {
		h.x.Release()
		if !large {
			h.sent = nil
		}
	}
	if len(c.w.free.h1) < spares {
		c.w.free.h1 = append(c.w.free.h1, h)
	}
	if c.leaving.atOnce {
		c.end()
	}
}

// gone implements protocol.
func (h *h1) gone() {
	h.takeBack()
	if h.counted {
		h.record()
	}
	h.leave(true)
}

// leave gives the backend's connection up.
func (h *h1) leave(reset bool) {
	if h.backend != nil {
		h.backend.Close(reset)
		h.backend = nil
	}
}

// Connected implements pool.Owner.
func (h *h1) Connected(_ *pool.Conn, err error) {
	if err != nil {
		h.backend = nil
		h.unreachable(err)
	}
	h.c.run()
}

// Happened implements pool.Owner.
func (h *h1) Happened(*pool.Conn) { h.c.run() }

// step implements protocol.
func (h *h1) step() {
	for {
		if h.x.Tunnel() {
			h.between()
			return
		}
		h.flush()
		h.readRequest()
		if c := h.c; c.stage == active && h.silent() {
			h.detach()
			return
		}
		h.readResponse()
		if h.carried != nil {
			h.carried.Step()
		}
		c := h.c
		if c.stage == active && c.proto == protocol(h) && h.x.Tunnel() {
			continue // the client may have spoken already
		}
		if c.stage != active || c.proto != protocol(h) || !h.over() || !h.next() || c.budget <= 0 {
			return
		}
	}
}

// silent reports whether nothing of a request has come.
func (h *h1) silent() bool {
	return !h.begun && !h.counted && h.note.Received == 0 && len(h.c.In) == 0 && !h.c.Readable()
}

// over reports whether the request is done with.
func (h *h1) over() bool { return h.answered && (h.done || h.x.Closing()) }

// next is what follows a request: another one, silence, or the end. It reports whether there is more
// to be done now.
func (h *h1) next() bool {
	c := h.c
	c.budget -= requestCost
	h.record()
	closing := h.x.Closing()
	h.reset()
	switch {
	case closing:
		c.end()
		return false
	case len(c.In) > 0 || c.Readable():
		h.since = c.w.loop.Now()
		return len(c.Out) < backlog
	case c.EOF():
		c.end()
		return false
	}
	h.detach()
	return false
}

// readRequest reads what the client sends, as long as it is wanted.
func (h *h1) readRequest() {
	for h.c.stage == active && h.c.budget > 0 && !h.done && !(h.answered && h.x.Closing()) && len(h.c.Out) < backlog {
		c := h.c
		if h.waits() >= c.w.backlog() {
			h.stalled = true
			return
		}
		data, kept := c.read()
		if len(data) == 0 {
			if c.EOF() {
				h.clientEnded()
			} else if c.Broken() {
				c.refused()
			}
			return
		}
		h.request(data, kept)
		h.flush()
	}
}

// clientEnded is the end of what the client sends, in the middle of a request or between two.
func (h *h1) clientEnded() {
	c := h.c
	if !h.begun {
		if err := h.x.RequestEOF(); err == nil {
			h.reset()
			c.end()
			return
		}
	}
	if err := h.x.RequestEOF(); err != nil {
		h.refuse(err)
	}
}

// due implements protocol.
func (h *h1) due() time.Time {
	t := &h.c.w.cfg.Timeouts
	at := time.Time{}
	switch {
	case h.x.Tunnel():
		return at
	case !h.begun && len(h.c.Out) >= backlog: // it is not asked: the client has to take what it was answered
	case !h.begun:
		at = h.since.Add(t.Header)
	case h.awaitsContinue():
		at = h.c.since.Add(min(goOnAfter, t.Stall))
	case !h.done && h.written == len(h.sent) && !h.x.Answered() && h.backend != nil && !h.backend.Connecting():
		at = h.c.since.Add(t.Stall)
	case !h.done && h.carried != nil && h.carried.Wants():
		at = h.c.since.Add(t.Stall)
	}
	if h.carried != nil {
		at = bounds.Earlier(at, h.carried.Due())
	}
	if h.way != nil && h.way.RequestTimeout > 0 {
		at = bounds.Earlier(at, h.began.Add(h.way.RequestTimeout))
	}
	return bounds.Earlier(bounds.Earlier(at, h.until), h.pause)
}

// expire implements protocol.
func (h *h1) expire(now time.Time) {
	reached := func(at time.Time) bool { return !at.IsZero() && !now.Before(at) }
	switch {
	case h.carried != nil && h.carried.Expire(now):
	case h.way != nil && h.way.RequestTimeout > 0 && reached(h.began.Add(h.way.RequestTimeout)):
		h.fail(504, mesh.ReasonTimeout.String())
	case reached(h.until):
		h.until = time.Time{}
		h.broke(kindTimeout, mesh.ReasonTimeout.String(), nil)
	case reached(h.pause):
		h.pause = time.Time{}
		h.dispatch()
	case h.awaitsContinue():
		h.goOn()
	default:
		h.note.Reason = plan.SlowClient
		if !h.begun {
			h.c.w.refused(plan.SlowClient)
			h.c.close(true)
			return
		}
		h.fail(408, plan.SlowClient)
	}
}

// goOnAfter is when a client that waits for a 100 is told to go on, though the backend has not said
// so: some never do, and some clients wait for it without end.
const goOnAfter = 5 * time.Second

// awaitsContinue reports whether the client waits for a 100, and the backend has all that came.
func (h *h1) awaitsContinue() bool {
	switch {
	case !h.x.Waits() || h.done:
		return false
	case h.carried != nil:
		return h.carried.Wants()
	}
	return h.written == len(h.sent) && h.backend != nil && !h.backend.Connecting()
}

// goOn tells the client to go on.
func (h *h1) goOn() {
	c := h.c
	out := h.x.Continue(c.w.out[:0])
	c.w.out = out[:0]
	h.note.Sent += int64(len(out))
	c.since = c.w.loop.Now() // from now on it owes the body
	c.send(out)
}

// record tells of a request that has ended, in whatever way.
func (h *h1) record() {
	if !h.counted {
		return
	}
	w := h.c.w
	h.counted = false
	w.active--
	if h.way != nil {
		h.note.Backend = h.way.Backend
	}
	if h.place != nil {
		h.note.Went(h.workload, h.place.At, h.place.Name)
	}
	h.note.Tell(&w.cfg.Sinks, w.planner.Unknown(), &h.c.client, h.began, w.loop.Now())
}
