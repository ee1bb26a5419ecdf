package h2

import (
	"strconv"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/bounds"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/pool"
	"github.com/heddle-mesh/heddle/waypoint/reason"
	"github.com/heddle-mesh/heddle/waypoint/retry"
	"github.com/heddle-mesh/heddle/waypoint/sniff"
)

// tries are a request's, of which each asks one workload.
type tries struct {
	place    *pool.Place
	workload *mesh.Workload
	tried    []mesh.Key
	sent     bool // something of the request went out
	heard    bool
	plain    bool // its WebSocket is asked for in HTTP/1.1: the workload does not offer it over HTTP/2
	unseen   int  // tries that no application has seen
	until    time.Time
	pause    time.Time // when the next one begins; zero without one
}

// kind is how a try has failed.
type kind uint8

const (
	unsent  kind = iota // nothing of it went out
	stale               // a connection that was kept had ended
	unseen              // the backend says that it has not looked at it
	broken              // the workload broke off, or its answer could not be read
	timeout             // it took too long
)

// two says that a request goes on by HTTP/2: what is to a port that says so, and a call of gRPC that came in HTTP/2.
func (q *Request) two() bool {
	_, version := sniff.Of(q.to.Service, q.way.Port)
	return version == sniff.Two || version == sniff.AsAsked && q.grpc && !q.old && !q.head.Upgrade
}

// dispatch sends the request to a workload.
func (q *Request) dispatch() {
	l := q.l
	if q.copied { // which nobody judges anew while it is under way
		q.view = l.Use().View
	}
	like := q.who.To.Addr()
	workload, place := l.Pool.Pick(&q.to, like, q.tried, q.stay.With)
	if place == nil && len(q.tried) > 0 && q.unseen+q.note.Tries > 0 {
		q.tried = q.tried[:0] // all were tried: once more
		workload, place = l.Pool.Pick(&q.to, like, nil, q.stay.With)
	}
	if place == nil {
		q.fail(503, mesh.ReasonNoEndpoint.String())
		return
	}
	d := q.authorize(workload, place.At.Port())
	if q.note.Decision = d; d.Verdict == mesh.VerdictDeny {
		q.fail(403, d.Reason.String())
		return
	}
	q.workload, q.place, q.sent, q.heard, q.plain = workload, place, false, false, false
	q.up.Again()
	q.note.Tries++
	if t := q.way.BackendTimeout; t > 0 {
		q.until = l.Loop.Now().Add(t)
	}
	var err error
	if q.two() {
		err = l.join(q)
	} else {
		err = q.dial()
	}
	if err != nil {
		q.unreachable(err)
	}
}

// plainly asks a workload for a WebSocket in HTTP/1.1, as its SETTINGS do not offer it, or there were none: many that speak HTTP/2
// take an upgrade at the same port.
func (q *Request) plainly() {
	q.trunk, q.plain = nil, true
	if err := q.dial(); err != nil {
		q.unreachable(err)
	}
}

// unreachable is a workload that did not accept a connection: another one is asked.
func (q *Request) unreachable(err error) {
	l := q.l
	q.failed("connect to " + q.place.At.String() + ": " + err.Error())
	l.Pool.Failed(q.place)
	q.tried = append(q.tried, q.workload.Key)
	if len(q.tried) < maxConnects && len(q.tried) < len(q.to.Candidates) {
		q.note.Tries--
		q.dispatch()
		return
	}
	if q.policy() {
		q.later(false)
		return
	}
	q.fail(503, mesh.ReasonAppUnreachable.String())
}

// failed keeps why the first try failed.
func (q *Request) failed(why string) {
	if q.note.First == "" {
		q.note.First = why
	}
}

// broke is a try that has failed after it was sent. Wrong is what is wrong with the response, if that is why.
func (q *Request) broke(k kind, why string, wrong error) {
	if q.over {
		return
	}
	stopped, ok := wrong.(*http2.Error)
	ok = ok && stopped.Reason == reason.PeerReset && stopped.Code == http2.Cancel
	if q.leave(); q.answered {
		if ok {
			q.cut(http2.Cancel, why)
		} else {
			q.cut(http2.InternalError, why)
		}
		return
	}
	q.failed(why)
	if k > unseen && !ok && !q.plain { // which says nothing of other requests
		q.l.Pool.Failed(q.place)
	}
	q.until = time.Time{}
	q.down.Reset()
	switch {
	case q.up.Cut:
	case k <= unseen && q.unseen < maxUnseen:
		// One that sheds load is not to get more of it: what was sent comes out of the budget, but for the first connection that had ended.
		if k == unsent || k == stale && q.unseen == 0 || q.room() {
			q.unseen++
			q.note.Tries--
			q.tried = q.stay.Tried(q.tried, q.workload, q.unseen == 1)
			q.dispatch()
			return
		}
	case k > unseen && !q.idempotent && q.sent:
	case q.policy():
		q.later(k == timeout)
		return
	}
	switch {
	case ok && !q.old: // HTTP/1.1 has no word for it
		q.cut(http2.Cancel, why)
	case k == timeout:
		q.fail(504, why)
	case q.plain && !q.heard:
		q.fail(502, plan.NoWebSocket)
	default:
		q.fail(502, why)
	}
}

// policy reports whether the route has the request tried once more, and the budget has room.
func (q *Request) policy() bool {
	return !q.up.Cut && retry.Left(q.way.Retry, q.note.Tries) && q.room()
}

// room takes a try out of the budget, and reports whether there was one.
func (q *Request) room() bool { return q.l.Metrics.Retry(q.way.Budget.Take(q.l.Loop.Now())) }

// later begins the next try after a pause, at another workload if there is one. There says that the last one can be reached.
func (q *Request) later(there bool) {
	q.tried = q.stay.Tried(q.tried, q.workload, there)
	if len(q.tried) >= len(q.to.Candidates) {
		q.tried = q.tried[:0]
	}
	q.pause = q.l.Loop.Now().Add(retry.Pause(q.way.Retry, q.note.Tries))
	q.wake()
}

// retryStatus tries again for a status that the route names, if it may be.
func (q *Request) retryStatus(status int) bool {
	if !retry.Names(q.way.Retry, status) || !q.policy() {
		return false
	}
	q.failed("status " + strconv.Itoa(status))
	q.leave()
	q.until = time.Time{}
	q.down.Reset()
	q.later(true)
	return true
}

// Due is when Expire is to be called, the zero time for never.
func (q *Request) Due() time.Time {
	if q.tunnel { // what is silent may be so for long
		return time.Time{}
	}
	at := bounds.Earlier(bounds.Earlier(q.until, q.pause), q.down.Stalls(q.l.Timeouts.Stall))
	if q.way != nil && q.way.RequestTimeout > 0 {
		at = bounds.Earlier(at, q.began.Add(q.way.RequestTimeout))
	}
	return at
}

// expire does what is due.
func (q *Request) expire(now time.Time) {
	reached := func(at time.Time) bool { return !at.IsZero() && !now.Before(at) }
	switch {
	case q.tunnel:
	case q.way != nil && q.way.RequestTimeout > 0 && reached(q.began.Add(q.way.RequestTimeout)):
		q.fail(504, mesh.ReasonTimeout.String())
	case reached(q.down.Stalls(q.l.Timeouts.Stall)):
		q.cut(http2.EnhanceYourCalm, plan.SlowClient)
	case reached(q.until):
		q.until = time.Time{}
		q.broke(timeout, mesh.ReasonTimeout.String(), nil)
	case reached(q.pause):
		q.pause = time.Time{}
		q.dispatch()
	}
}
