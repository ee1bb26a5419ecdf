package h2

import (
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/pool"
)

// backend is where a request is sent: a stream of a trunk, or a connection of its own that speaks HTTP/1.1.
type backend struct {
	trunk *trunk
	on    uint32 // stream of the trunk; 0 while it waits for one
	one   *http1.Exchange
	clean bool // one is as if new
	conn  *pool.Conn
	out   []byte // what conn did not take
	shut  bool   // a FIN was sent on conn
}

// dial asks a workload by HTTP/1.1.
func (q *Request) dial() error {
	l := q.l
	q.out, q.shut = q.out[:0], false
	if q.one == nil || !q.clean {
		q.one = http1.NewExchange(l.HTTP.Messages)
	}
	q.clean = false
	q.one.TakeRequest(&q.head)
	out, err := q.one.Forward(q.out, &q.edit)
	if q.out = out; err != nil {
		q.fail(500, plan.BadEdit)
		return nil
	}
	if q.unseen == 0 {
		if q.conn = l.Pool.Get(q.place, q); q.conn != nil {
			q.flush()
			q.pump()
			q.wake() // nothing is read here: what calls may be reading
			return nil
		}
	}
	q.conn, err = l.Pool.Dial(q.place, q)
	return err
}

// Connected implements pool.Owner.
func (q *Request) Connected(_ *pool.Conn, err error) {
	if err != nil {
		q.conn = nil
		q.unreachable(err)
		return
	}
	q.step()
	q.wake()
}

// Happened implements pool.Owner.
func (q *Request) Happened(*pool.Conn) {
	q.step()
	q.wake()
}

// step does what can be done with a backend of HTTP/1.1.
func (q *Request) step() {
	l := q.l
	if q.conn == nil || q.conn.Connecting() {
		return
	}
	q.flush()
	q.pump()
	q.flush()
	for b := q.conn; b != nil && q.conn == b && len(q.down.Data) < backlog && !q.down.Ended; {
		if n := b.Read(l.In); n > 0 {
			q.response(l.In[:n])
			continue
		}
		if b.EOF() || b.Broken() {
			q.ended()
		}
		break
	}
}

func (q *Request) flush() {
	if q.conn == nil {
		return
	}
	if n := q.conn.Write(q.out); n > 0 {
		q.sent = true
		q.out = q.out[:copy(q.out, q.out[n:])]
	}
	if q.tunnel && q.up.Done && len(q.out) == 0 && !q.shut {
		q.shut = true
		q.conn.CloseWrite()
		q.bothEnded()
	}
}

// response takes what such a backend says.
func (q *Request) response(data []byte) {
	for q.conn != nil {
		var n int
		var at http1.Event
		var err error
		q.down.Data, n, at, err = q.one.Response(q.down.Data, data)
		data = data[n:]
		switch {
		case err != nil:
			q.broke(broken, err.(*http1.Error).Reason.String(), err)
			return
		case at == http1.HeadRead:
			q.answer(q.one.ResponseHead())
		case at == http1.End:
			q.whole(q.one.ResponseTrailers())
			return
		case len(data) == 0:
			q.drain()
			return
		}
	}
}

// whole is the end of such a response.
func (q *Request) whole(trailers []http1.Field) {
	q.place.Answered()
	if q.down.End(trailers); q.tunnel { // what goes the other way may go on
		q.drain()
		return
	}
	if q.one.Reusable() && len(q.out) == 0 {
		q.conn.Keep()
		q.clean = q.one.Done()
	} else {
		q.conn.Close(false)
	}
	q.conn = nil
	q.drain()
}

// ended is the end of such a backend's connection.
func (q *Request) ended() {
	if !q.conn.Broken() {
		var at http1.Event
		var err error
		if q.down.Data, at, err = q.one.ResponseEOF(q.down.Data); at == http1.End && err == nil {
			q.whole(nil)
			return
		}
	}
	k := broken
	if q.conn.Used > 0 && !q.heard && (q.idempotent || !q.sent) {
		k = stale
	}
	q.broke(k, plan.BackendReset, nil)
}

// write hands on a part of the body, and returns how much went.
func (q *Request) write(p []byte) (n int) {
	switch {
	case !q.ready():
	case q.on != 0:
		if len(q.trunk.out) < backlog {
			n = q.trunk.data(q.on, p)
		}
		q.sent = true
	case len(q.out) < backlog:
		q.out = q.one.TakeRequestData(q.out, p)
		q.flush()
		n = len(p)
	}
	return n
}

// ready says that a backend can be sent the body, or its end: there is nothing for one of which a tunnel is asked until it has
// granted it.
func (q *Request) ready() bool {
	return (q.tunnel || !q.head.Upgrade) && (q.on != 0 || q.conn != nil && !q.conn.Connecting())
}

func (q *Request) writeEnd(trailers []http1.Field) {
	if q.on != 0 {
		t := q.trunk
		t.send(t.conn.End(t.l.out[:0], q.on, trailers))
		return
	}
	q.out = q.one.TakeRequestEnd(q.out, trailers)
	q.flush()
}

// taken tells a trunk's backend that the client took something.
func (q *Request) taken(n int) {
	if q.on != 0 && n > 0 {
		t := q.trunk
		t.send(t.conn.Consumed(t.l.out[:0], q.on, n))
	}
}

// leave gives the backend up.
func (q *Request) leave() {
	if q.conn != nil {
		q.conn.Close(true)
		q.conn = nil
	}
	if t := q.trunk; t != nil {
		if on := q.on; on != 0 {
			t.forget(q)
			t.send(t.conn.Reset(t.l.out[:0], on, http2.Cancel))
		} else {
			t.unwait(q)
		}
	}
}
