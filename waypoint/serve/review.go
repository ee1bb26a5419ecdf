package serve

import (
	"context"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/plan"
)

// reviewPause is the least time from one review to the next, each of which looks at all that
// is under way.
const reviewPause = 100 * time.Millisecond

// review has each loop judge anew what is under way whenever the configuration is replaced,
// until ctx is done.
func (s *Server) review(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		_, replaced := s.cfg.Store.Changed()
		for _, w := range s.workers {
			w.loop.Post(w.review)
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return
		}
		pause.Reset(reviewPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

// review ends what policy no longer allows of what the loop has under way.
func (w *worker) review() {
	if w.use(); w.reviewed == w.snap {
		return
	}
	w.reviewed = w.snap
	for i := len(w.conns) - 1; i >= 0; i-- { // those that end are replaced by later ones
		w.conns[i].review()
	}
}

// review judges what a connection carries at the moment. When the waypoint is the service's no
// more, what is asked next is the last on it: its client finds the way on another one.
func (c *conn) review() {
	if c.stage != atSniff && c.stage != idle && c.stage != active {
		return
	}
	if c.leaves(c.w.loop.Now()); !c.leaving.since.IsZero() {
		c.leave()
	}
	switch p := c.proto.(type) {
	case *h1:
		p.review()
	case *relay:
		p.review()
	case *two:
		p.Review(c.w.snap.View)
	}
	if c.stage != closed {
		c.run()
	}
}

// leaves notes whether something more is to come on a connection. A service that has left is known
// for a while, with its policies as they are now.
func (c *conn) leaves(now time.Time) {
	l := &c.leaving
	at, _, known := c.w.planner.Parent(&c.client)
	if known {
		l.service = at.Service
	}
	left, gone := c.w.snap.Left[l.service]
	kind, routed := c.w.planner.Kind(&c.client)
	others := known && routed && !kind.Requests() && c.carriesRequests() // are for connections now
	unknown := !known && l.service != (mesh.Key{})
	l.atOnce = others || unknown
	switch {
	case !c.w.snap.Synced():
	case gone:
		l.since, l.until = left, left.Add(c.w.cfg.Timeouts.Leave)
	case unknown && l.until.IsZero():
		l.since, l.until = now, now.Add(c.w.cfg.Timeouts.Leave)
	case others:
		l.since, l.until = now, time.Time{}
	case known:
		l.since, l.until = time.Time{}, time.Time{}
	}
}

// carriesRequests reports whether it was taken for HTTP: where routes are about connections now, it was so before.
func (c *conn) carriesRequests() bool {
	switch c.proto.(type) {
	case *relay, *hello:
		return false
	}
	return c.stage == idle || c.stage == active
}

// leave says that a connection ends, as soon as its client can be told: with the next answer in HTTP/1.1, at
// once in HTTP/2. One that idles is kept for a client that is about to ask, where it would be answered.
func (c *conn) leave() {
	if c.stage == idle && c.leaving.atOnce {
		c.end()
		return
	}
	c.drain()
}

// review ends a request whose client may no longer reach the workload that answers it.
func (h *h1) review() {
	if h.carried != nil {
		h.carried.Review(h.c.w.snap.View)
		return
	}
	h.view = h.c.w.snap.View // also the next try's, and the copies'
	if h.backend == nil || h.answered {
		return
	}
	if why, over := plan.Revoked(h.authorize(h.workload, h.place)); over {
		if h.x.Answered() { // else the answer is counted
			h.c.w.refused(why)
		}
		h.fail(403, why)
	}
}

// review ends a connection whose client may no longer reach the workload that it is with.
func (r *relay) review() {
	if r.backend == nil {
		return
	}
	if why, over := plan.Revoked(r.authorize(r.workload, r.place)); over {
		r.refuse(why)
	}
}

// over ends what a connection carries that goes on for longer than it may.
func (c *conn) over(why string) {
	switch p := c.proto.(type) {
	case *relay:
		p.refuse(why)
		return
	case *h1:
		if p.begun {
			if p.x.Answered() { // else the answer is counted
				c.w.refused(why)
			}
			p.fail(503, why)
			return
		}
	}
	c.w.refused(why)
	c.close(true)
}
