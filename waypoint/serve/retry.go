package serve

import (
	"strconv"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/retry"
)

const (
	// maxConnects is how many workloads are tried that cannot be reached, maxStale how many
	// connections that had been kept and turn out to have ended, after which a new one is made:
	// neither has the request got to an application.
	maxConnects, maxStale = 3, 1
)

// kind is how a try has failed.
type kind uint8

const (
	kindStale   kind = iota // a connection that was kept had ended
	kindReset               // the workload broke off, or its answer could not be read
	kindTimeout             // it took too long
)

// dispatch sends the request to a workload.
func (h *h1) dispatch() {
	c := h.c
	w := c.w
	workload, place := w.pool.Pick(&h.to, c.client.To.Addr(), h.tried, h.stay.With)
	if place == nil && len(h.tried) > 0 && h.stale+h.note.Tries > 0 {
		h.tried = h.tried[:0] // all were tried: once more
		workload, place = w.pool.Pick(&h.to, c.client.To.Addr(), nil, h.stay.With)
	}
	if place == nil {
		h.fail(503, mesh.ReasonNoEndpoint.String())
		return
	}
	d := h.authorize(workload, place)
	if h.note.Decision = d; d.Verdict == mesh.VerdictDeny {
		h.fail(403, d.Reason.String())
		return
	}
	h.workload, h.place, h.written, h.heard = workload, place, 0, false
	h.note.Tries++
	if t := h.way.BackendTimeout; t > 0 {
		h.until = w.loop.Now().Add(t)
	}
	if h.stale == 0 {
		if h.backend = w.pool.Get(place, h); h.backend != nil {
			h.flush()
			return
		}
	}
	b, err := w.pool.Dial(place, h)
	if err != nil {
		h.unreachable(err)
		return
	}
	h.backend = b
}

// unreachable is a workload that did not accept a connection: another one is asked, as nothing of the
// request was sent.
func (h *h1) unreachable(err error) {
	h.failed("connect to " + h.place.At.String() + ": " + err.Error())
	h.until = time.Time{} // of the try that has ended
	h.c.w.pool.Failed(h.place)
	h.tried = append(h.tried, h.workload.Key)
	if len(h.tried) < maxConnects && len(h.tried) < len(h.to.Candidates) {
		h.note.Tries--
		h.dispatch()
		return
	}
	if h.policy() {
		h.later(false)
		return
	}
	h.fail(503, mesh.ReasonAppUnreachable.String())
}

// failed keeps why the first try failed.
func (h *h1) failed(why string) {
	if h.note.First == "" {
		h.note.First = why
	}
}

// broke is a try that has failed after something was sent: it is tried again where that is safe and the
// route wants it, or where no application has seen it.
func (h *h1) broke(k kind, reason string, wrong error) {
	if h.x.Answered() {
		h.cutShort(reason)
		return
	}
	h.failed(reason)
	if k != kindStale {
		h.c.w.pool.Failed(h.place)
	}
	h.leave(true)
	h.until = time.Time{}
	switch {
	case h.cut || !h.idempotent && h.written > 0:
	case k == kindStale && h.stale < maxStale:
		h.stale++
		h.note.Tries--
		if h.x.Again() {
			h.dispatch()
			return
		}
	case h.policy() && h.x.Again():
		h.later(k == kindTimeout)
		return
	}
	switch {
	case wrong != nil:
		h.refuse(wrong)
	case k == kindTimeout:
		h.fail(504, reason)
	default:
		h.fail(502, reason)
	}
}

// policy reports whether the route has the request tried once more, and the budget has room.
func (h *h1) policy() bool {
	w := h.c.w
	return !h.cut && retry.Left(h.way.Retry, h.note.Tries) && w.cfg.Metrics.Retry(h.way.Budget.Take(w.loop.Now()))
}

// later begins the next try after a pause, at another workload if there is one. There says that the last one can be reached.
func (h *h1) later(there bool) {
	h.tried = h.stay.Tried(h.tried, h.workload, there)
	if len(h.tried) >= len(h.to.Candidates) {
		h.tried = h.tried[:0]
	}
	h.pause = h.c.w.loop.Now().Add(retry.Pause(h.way.Retry, h.note.Tries))
}

// retryStatus tries again for a status that the route names, if it may be.
func (h *h1) retryStatus(status int) bool {
	if !retry.Names(h.way.Retry, status) || h.x.Answered() || !h.policy() || !h.x.Again() {
		return false
	}
	h.failed("status " + strconv.Itoa(status))
	h.leave(true)
	h.until = time.Time{}
	h.later(true)
	return true
}
