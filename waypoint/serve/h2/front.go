package h2

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/record"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
)

// Front is the client's side of a request: a stream of a client that speaks HTTP/2, the exchange of one that speaks
// HTTP/1.1 (package serve), or nobody, of a copy. The id says which stream. No call leads to one of the request's.
type Front interface {
	// Interim and Answer send a response's head; an error is http2.ErrGone, or http1.ErrEdit. What grants a WebSocket is
	// a 101 to a client that speaks HTTP/1.1, and a 200 to one that speaks HTTP/2.
	Interim(id uint32, head *http1.Head)
	Answer(id uint32, head *http1.Head, e *http1.Edit) error
	// Data sends as much of a body as the client takes now, and returns how much that was. End is the end of
	// the response, Reset that there is none.
	Data(id uint32, p []byte) int
	End(id uint32, trailers []http1.Field)
	Reset(id uint32, code http2.Code)
	// Reply sends a whole response of our own; it has the errors of Answer.
	Reply(id uint32, status int, reason string, fields []http1.Field, body []byte) error
	// Consumed says that n bytes of the request's body have gone on.
	Consumed(id uint32, n int)
	// Wake has the request's Step called soon.
	Wake()
	// Over says that the request has ended.
	Over(q *Request)
}

// streams is a Client as the Front of its requests.
type streams Client

func (s *streams) Interim(id uint32, head *http1.Head) {
	s.l.out = s.conn.Interim(s.l.out[:0], id, head)
	(*Client)(s).send()
}

func (s *streams) Answer(id uint32, head *http1.Head, e *http1.Edit) (err error) {
	s.l.out, err = s.conn.Answer(s.l.out[:0], id, head, e)
	(*Client)(s).send()
	return err
}

func (s *streams) Data(id uint32, p []byte) (n int) {
	turn := len(s.sock.Out) < backlog // else Step comes back to it
	if turn {
		s.l.out, n = s.conn.Data(s.l.out[:0], id, p)
		(*Client)(s).send()
	}
	if q := (*Client)(s).find(id); q != nil {
		q.down.Refused(turn && n < len(p), n > 0, s.l.Loop.Now())
	}
	return n
}

func (s *streams) End(id uint32, trailers []http1.Field) {
	s.l.out = s.conn.End(s.l.out[:0], id, trailers)
	(*Client)(s).send()
}

func (s *streams) Reset(id uint32, code http2.Code) {
	s.l.out = s.conn.Reset(s.l.out[:0], id, code)
	(*Client)(s).send()
}

func (s *streams) Reply(id uint32, status int, reason string, fields []http1.Field, body []byte) (err error) {
	s.l.out, err = s.conn.Reply(s.l.out[:0], id, status, reason, fields, body)
	(*Client)(s).send()
	return err
}

func (s *streams) Consumed(id uint32, n int) {
	s.l.out = s.conn.Consumed(s.l.out[:0], id, n)
	(*Client)(s).send()
}

func (s *streams) Wake() { s.l.Turn.Last(&s.turn) }

func (s *streams) Over(q *Request) {
	i := (*Client)(s).index(q.id)
	s.requests = append(s.requests[:i], s.requests[i+1:]...)
	if len(s.requests) == 0 {
		s.since = s.l.Loop.Now()
	}
}

// Asked is a request of a client that speaks HTTP/1.1, as it was read and planned.
type Asked struct {
	Head             *http1.Head
	Plan             *plan.Plan
	Remove           []string
	GRPC, Idempotent bool
	Began            time.Time
	// Note is taken over, and given back by GiveUp.
	Note *record.Note
}

// Carry sends such a request on, for what it leads to speaks HTTP/2, or what it is copied to. It is counted as one
// that is under way already. Body and BodyEnd are to follow, and Step whenever something has happened.
func (l *Loop) Carry(f Front, who *plan.Client, a *Asked) *Request {
	q := l.newRequest(f, who, 0)
	q.old, q.began = true, a.Began
	a.Head.CopyTo(&q.head)
	q.note, *a.Note = *a.Note, q.note
	q.remove = append(q.remove[:0], a.Remove...)
	q.grpc, q.idempotent = a.GRPC, a.Idempotent
	q.begin(a.Plan, l.Use())
	return q
}

// begin sends a request on, as it was planned.
func (q *Request) begin(p *plan.Plan, snap *snapshot.Snapshot) {
	q.way, q.to, q.view, q.stay = p.Way, p.To, snap.View, p.Stay
	if q.way.CORS {
		q.origin = plan.Origin(&q.head)
	}
	if !q.head.Upgrade {
		q.mirrors = append(q.mirrors, p.Mirrors...)
	}
	q.way.Budget.Asked()
	q.edited(p)
	q.count()
	q.dispatch()
}

// Got counts bytes that came from the client.
func (q *Request) Got(n int) { q.note.Received += int64(n) }

// Body takes a part of the request's body.
func (q *Request) Body(p []byte) {
	q.up.Data = append(q.up.Data, p...)
	q.pump()
}

// BodyEnd is the end of the request, or of what a client says in a tunnel. An upgrade in HTTP/1.1 has no end: what follows it is a
// tunnel's, when it is granted.
func (q *Request) BodyEnd(trailers []http1.Field) {
	if q.old && q.head.Upgrade && !q.tunnel {
		return
	}
	q.up.End(trailers)
	q.mirror()
	q.pump()
}

// Waiting is how many bytes of the body wait for the workload; Wants says that it waits for more.
func (q *Request) Waiting() int { return len(q.up.Waiting()) }

// Wants says that the workload waits for more of the body.
func (q *Request) Wants() bool {
	return q.Waiting() == 0 && !q.answered && (q.on != 0 || q.conn != nil && !q.conn.Connecting())
}

// Step does all that can be done now.
func (q *Request) Step() {
	q.drain()
	if !q.over {
		q.step()
	}
}

// Expire does what is due, and reports whether anything was.
func (q *Request) Expire(now time.Time) bool {
	at := q.Due()
	if at.IsZero() || now.Before(at) {
		return false
	}
	q.expire(now)
	return true
}

// GiveUp forgets a request that its Front answers itself, or whose client is gone. It gives the note back, with
// where the request went; the request stays counted as one that is under way.
func (q *Request) GiveUp(note *record.Note) {
	q.leave()
	q.places()
	q.note, *note = *note, q.note
	q.over = true
	q.free()
}

// Review ends a request whose client may, by another View, no longer reach the workload that
// answers it.
func (q *Request) Review(view *mesh.View) {
	if q.view = view; q.place == nil { // dispatch asks
		return
	}
	if why, over := plan.Revoked(q.authorize(q.workload, q.place.At.Port())); over {
		q.fail(403, why)
	}
}

// places notes where a request went.
func (q *Request) places() {
	if q.way != nil {
		q.note.Backend = q.way.Backend
	}
	if q.place != nil {
		q.note.Went(q.workload, q.place.At, q.place.Name)
	}
}

// authorize asks policy whether the client may reach a workload with the request.
func (q *Request) authorize(to *mesh.Workload, port uint16) mesh.Decision {
	return q.l.Planner.AuthorizeSent(q.view, q.who, to, port, &q.head, &q.edit)
}
