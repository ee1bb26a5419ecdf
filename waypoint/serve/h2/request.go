package h2

import (
	"errors"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/record"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2/pending"
	"github.com/heddle-mesh/heddle/waypoint/stay"
)

// Request is one of a client, and what answers it.
type Request struct {
	l     *Loop
	front Front
	who   *plan.Client
	id    uint32
	head  http1.Head
	asked
	tries
	backend
	up, down pending.Body
	held     int // bytes of both bodies, as Held has them
	answered bool
	over     bool
	old      bool // the client speaks HTTP/1.1
	copied   bool // nobody waits for the answer
	tunnel   bool // it was granted one: each direction ends by itself
	began    time.Time
	note     record.Note
}

// asked is what was decided.
type asked struct {
	way              *plan.Way
	view             *mesh.View
	to               mesh.Route
	stay             stay.Stay
	origin           string
	grpc, idempotent bool
	edit, back       http1.Edit
	remove           []string
	text             []byte
	mirrors          []*plan.Way
}

// edited is what is changed of the head.
func (q *Request) edited(p *plan.Plan) {
	e := &q.edit
	*e = http1.Edit{Add: e.Add[:0]}
	if p.Path != "" {
		e.Path = []byte(p.Path)
	}
	if p.Way.Host != "" {
		e.Host = []byte(p.Way.Host)
	}
	q.remove = append(q.remove, p.Way.Request.Remove...)
	e.Add = append(e.Add, p.Way.Request.Add...)
	e.Add, q.text = q.l.Planner.Forwarded(e.Add, q.text[:0], q.who)
	q.remove, e.Add = q.note.Trace(q.l.Sinks, q.remove, e.Add)
	e.Remove = q.remove
}

// pump hands on what came of the request's body.
func (q *Request) pump() {
	q.pour()
	q.counted()
}

func (q *Request) pour() {
	b := &q.up
	for p := b.Waiting(); len(p) > 0; p = b.Waiting() {
		n := q.write(p)
		if n == 0 {
			return
		}
		if more := b.Went(n, q.l.Limits.ReplayBytes); more > 0 {
			q.front.Consumed(q.id, more)
		}
	}
	if b.Ended && !b.Done && q.ready() {
		b.Done = true
		q.writeEnd(b.Trailers)
		q.bothEnded()
	}
}

// bothEnded ends a tunnel whose directions have both ended.
func (q *Request) bothEnded() {
	if !q.tunnel || !q.up.Done || !q.down.Done || q.conn != nil && !q.shut {
		return
	}
	if q.conn != nil {
		q.conn.Close(false)
		q.conn = nil
	}
	if !q.up.Ended && !q.old { // likewise
		q.front.Reset(q.id, http2.NoError)
	}
	q.finish()
}

// requestBytes is what a request takes beside its head and its bodies.
const requestBytes = 2 << 10

// count brings what is held up to date.
func (q *Request) count() {
	n := 0
	if !q.over {
		n = requestBytes + q.head.Held() + cap(q.up.Data) + cap(q.down.Data) + cap(q.out)
	}
	*q.l.Held += int64(n - q.held)
	q.held = n
}

// counted is count after something came, and ends the request when that is more than there is room for.
func (q *Request) counted() {
	was := q.held
	if q.count(); q.held > was && *q.l.Held > q.l.Limits.Most() {
		q.fail(503, plan.Overloaded)
	}
}

// drain hands on what came of the response's body.
func (q *Request) drain() {
	if !q.answered || q.over {
		return
	}
	q.fall()
	q.counted()
}

func (q *Request) fall() {
	b := &q.down
	if len(b.Data) > 0 {
		n := q.front.Data(q.id, b.Data)
		q.note.Sent += int64(n)
		b.Data = b.Data[:copy(b.Data, b.Data[n:])]
		q.taken(n)
	}
	if b.Ended && len(b.Data) == 0 && !b.Done {
		b.Done = true
		if q.front.End(q.id, b.Trailers); q.tunnel {
			q.bothEnded()
		} else {
			q.finish()
		}
	}
}

// answer sends a response's head on.
func (q *Request) answer(head *http1.Head) {
	q.heard = true
	if head.Interim() {
		q.front.Interim(q.id, head)
		return
	}
	if q.retryStatus(head.Status) {
		return
	}
	tunnel := q.head.Upgrade && (head.Status == 101 || q.on != 0 && head.Status < 300)
	switch {
	case tunnel && q.old:
		head.Status = 101
	case tunnel:
		head.Status = 200
	case q.head.Upgrade && head.Status < 300 && !q.old: // a success would be a tunnel for the client (RFC 8441 section 5)
		q.fail(502, plan.UpgradeRefused)
		return
	}
	edit := q.way.Response
	if q.way.CORS {
		edit = q.way.Answer(q.origin, head)
	}
	q.back = http1.Edit{Remove: edit.Remove, Add: q.stay.Append(append(q.back.Add[:0], edit.Add...), q.workload, q.l.Loop.Now())}
	q.note.Status = head.Status
	switch err := q.front.Answer(q.id, head, &q.back); {
	case errors.Is(err, http2.ErrGone):
		q.finish()
	case err != nil:
		q.fail(500, plan.BadEdit)
	case tunnel:
		q.answered, q.tunnel, q.up.Cut, q.until = true, true, true, time.Time{}
		q.pump() // what the client has sent meanwhile
	default:
		q.answered = true
	}
}

// reply answers in the name of the waypoint.
func (q *Request) reply(r *plan.Reply) {
	if q.over {
		return
	}
	q.leave()
	if q.answered { // what the client has got must not look whole
		q.cut(http2.InternalError, r.Reason)
		return
	}
	if r.Reason != "" && !q.copied {
		q.l.refused(r.Reason)
	}
	if q.note.Status, q.note.Reason = r.Status, r.Reason; r.Counted != 0 {
		q.note.Status = r.Counted
	}
	err := q.front.Reply(q.id, r.Status, r.Reason, r.Fields, r.Body)
	if err != nil && !errors.Is(err, http2.ErrGone) { // a field that a route asks for
		q.note.Status, q.note.Reason = 500, plan.BadEdit
		_ = q.front.Reply(q.id, 500, plan.BadEdit, nil, nil)
	}
	q.note.Sent += int64(len(r.Body))
	q.finish()
}

// cut resets the stream, so that an answer that has begun does not look whole.
func (q *Request) cut(code http2.Code, why string) {
	if q.note.Reason = why; !q.copied {
		q.l.refused(why)
	}
	q.front.Reset(q.id, code)
	q.finish()
}

// fail answers with a status and a reason.
func (q *Request) fail(status int, why string) {
	r := plan.Refusal(status, why, q.grpc)
	q.reply(&r)
}

// wake has a request's step done soon.
func (q *Request) wake() {
	if !q.over {
		q.front.Wake()
	}
}

// finish forgets a request that has ended, in whatever way.
func (q *Request) finish() {
	if q.over {
		return
	}
	q.leave()
	l := q.l
	q.over = true
	if q.places(); !q.copied {
		q.note.Tell(l.Sinks, l.Planner.Unknown(), q.who, q.began, l.Loop.Now())
		*l.Active--
	}
	q.front.Over(q)
	q.front.Wake()
	q.free()
}

// free keeps a request's memory for another one.
func (q *Request) free() {
	clear(q.mirrors)
	q.note.Reset()
	q.asked = asked{edit: q.edit, back: q.back, remove: q.remove[:0], text: q.text[:0], mirrors: q.mirrors[:0]}
	q.tries = tries{tried: q.tried[:0]}
	q.up.Reset()
	q.down.Reset()
	q.count()
	if len(q.l.free) > largeSpares || cap(q.out)+q.head.Held() > spareBytes { // it keeps little
		q.up, q.down, q.out, q.head = pending.Body{}, pending.Body{}, nil, http1.Head{}
	}
	q.answered, q.old, q.copied, q.tunnel, q.shut = false, false, false, false, false
	if len(q.l.free) < spares {
		q.l.free = append(q.l.free, q)
	}
}
