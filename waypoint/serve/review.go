package serve

import (
	"context"
	"time"

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
// more, nothing else is to come on it: its client finds the way on another one.
func (c *conn) review() {
	if c.stage != active && c.stage != idle {
		return
	}
	if _, _, known := c.w.planner.Parent(&c.client); !known && c.w.snap.Synced() {
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
	if kind, ok := c.w.planner.Kind(&c.client); ok && !kind.Requests() && c.carriesRequests() {
		c.leave()
	}
	if c.stage != closed {
		c.run()
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

// leave ends a connection as soon as nothing is under way.
func (c *conn) leave() {
	if c.leaving = true; c.stage == idle {
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
