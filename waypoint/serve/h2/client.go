package h2

import (
	"sort"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/bounds"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/reason"
	"github.com/heddle-mesh/heddle/waypoint/record"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2/turn"
	"github.com/heddle-mesh/heddle/waypoint/socket"
)

// Owner is who has a client's socket.
type Owner interface {
	// Send writes; what the socket does not take waits in its Out.
	Send(b []byte)
	// Run flushes, calls Step, and sets the timer.
	Run()
	// End closes in good order when all is written, Close at once. Both call Gone.
	End()
	Close(reset bool)
}

// Client is a client's connection. Step is called whenever something has happened.
type Client struct {
	l        *Loop
	conn     *http2.Conn
	sock     *socket.Buffered
	owner    Owner
	who      plan.Client
	requests []*Request // by their streams
	since    time.Time  // when something came, or we asked
	began    time.Time
	half     time.Time // when what has come last began to be a part of a frame
	draining time.Time
	turn     turn.Step
	gone     bool
	vain     int // bytes of heads since the last one that there was room for
}

// New begins a connection, at the first byte of its preface.
func (l *Loop) New(sock *socket.Buffered, owner Owner, who *plan.Client) *Client {
	c := &Client{l: l, conn: http2.NewServer(l.HTTP), sock: sock, owner: owner, who: *who, since: l.Loop.Now(), began: l.Loop.Now()}
	c.turn.Do = c.run
	l.out = c.conn.Start(l.out[:0])
	c.send()
	return c
}

// run is its turn, if it is still there.
func (c *Client) run() {
	if !c.gone {
		c.owner.Run()
	}
}

// send sends what the engine has appended.
func (c *Client) send() {
	if len(c.l.out) > 0 {
		c.owner.Send(c.l.out)
	}
	c.l.out = c.l.out[:0]
}

// Step does all that can be done now.
func (c *Client) Step() {
	l := c.l
	for len(c.sock.Out) < backlog {
		data, kept := c.sock.Take(l.In)
		if len(data) > 0 {
			c.since = l.Loop.Now()
		}
		ok := c.feed(data)
		if c.gone {
			return
		}
		c.sock.Used(data, kept, len(data), l.Buffers)
		if !ok {
			c.owner.End()
			return
		}
		if len(data) == 0 {
			break
		}
	}
	if c.sock.Broken() || c.sock.EOF() {
		c.owner.Close(c.sock.Broken() || len(c.requests) > 0)
		return
	}
	c.each((*Request).Step)
	switch unfinished := c.conn.Unfinished(); {
	case !unfinished:
		c.half = time.Time{}
	case c.half.IsZero():
		c.half = l.Loop.Now()
	}
	if !c.draining.IsZero() && c.conn.Done() && len(c.requests) == 0 {
		c.owner.End()
	}
	if len(c.requests) == 0 {
		c.conn.Release()
	}
}

// feed gives the engine what came. It returns false when the connection is at its end.
func (c *Client) feed(data []byte) bool {
	for {
		out, n, step, err := c.conn.Next(c.l.out[:0], data)
		c.l.out = out
		c.send()
		data = data[n:]
		if err != nil {
			c.l.refused(err.(*http2.Error).Reason.String())
			return false
		}
		if step.Event == http2.More {
			return true
		}
		c.event(&step)
		if c.gone {
			return true
		}
	}
}

func (c *Client) event(step *http2.Step) {
	if step.Event == http2.HeadRead {
		c.head(step.Stream, step.Head)
		return
	}
	if step.Event == http2.Refused {
		c.refused(step.Err.Reason)
		return
	}
	q := c.find(step.Stream)
	if q == nil { // it has ended, or was refused, and was told of
		return
	}
	switch step.Event {
	case http2.Data:
		q.Got(len(step.Data))
		q.Body(step.Data)
	case http2.End:
		q.BodyEnd(step.Trailers)
	case http2.Writable:
		q.drain()
	case http2.Reset:
		q.note.Reason = plan.ClientGone
		if step.Err.Reason != reason.PeerReset {
			q.note.Reason = step.Err.Reason.String()
			if !q.answered { // the engine has said so
				q.note.Status = step.Err.Reason.Status()
			}
		}
		c.l.refused(q.note.Reason)
		q.finish()
	}
}

// refused tells of a request that is refused at its head, of which nothing else is known.
func (c *Client) refused(why reason.Reason) {
	l := c.l
	l.refused(why.String())
	note, now := record.Note{Status: why.Status(), Reason: why.String()}, l.Loop.Now()
	note.Tell(l.Sinks, l.Planner.Unknown(), &c.who, now, now)
}

// find is the request of a stream.
func (c *Client) find(id uint32) *Request {
	i := c.index(id)
	if i < len(c.requests) && c.requests[i].id == id {
		return c.requests[i]
	}
	return nil
}

func (c *Client) index(id uint32) int {
	return sort.Search(len(c.requests), func(i int) bool { return c.requests[i].id >= id })
}

// head decides what becomes of a request.
func (c *Client) head(id uint32, head *http1.Head) {
	l := c.l
	q := l.newRequest((*streams)(c), &c.who, id)
	c.requests = append(c.requests, q)
	*l.Active++
	snap := l.Use()
	full := *l.Active > l.Limits.Requests || *l.Held > l.Limits.Bytes
	if !full { // what is refused at once is not kept
		head.CopyTo(&q.head)
		head = &q.head
	}
	q.remove = l.request.Read(head, q.remove[:0])
	q.grpc, q.idempotent = l.request.GRPC, plan.Idempotent(head)
	q.note.Head(l.Sinks, head)
	p := &l.plan
	l.Planner.Plan(p, &c.who, &l.request, q.began)
	q.note.Planned(l.Sinks, p, l.request.Path)
	switch {
	case p.Way == nil:
		q.reply(&p.Reply)
		return
	case full:
		q.fail(503, plan.Overloaded)
		c.inVain(head)
		return
	}
	c.vain = 0
	q.begin(p, snap)
}

// vainBytes is how much of heads is read in vain, for each request under way and one more: reading them is what a client can have done
// while there is no room.
const vainBytes = 256 << 10

// inVain counts a head that there was no room for, and ends the connection when its client goes on with them.
func (c *Client) inVain(head *http1.Head) {
	for _, f := range head.Fields {
		c.vain += len(f.Name) + len(f.Value)
	}
	if c.vain > vainBytes*(1+len(c.requests)) {
		c.l.out = c.conn.Fail(c.l.out[:0], reason.RefusedFlood)
		c.send()
	}
}

// Held is how many bytes of memory the connection takes beside its requests, and what waits at its socket.
func (c *Client) Held() int { return c.conn.Held() }

// Begins says that something has begun to come, a head maybe, and that there are no requests of which anybody waits for an answer.
func (c *Client) Begins() bool { return len(c.requests) == 0 && c.conn.Unfinished() }

// Due is when Expire is to be called.
func (c *Client) Due() time.Time {
	t := c.l.Timeouts
	at := time.Time{}
	if !c.conn.Acknowledged() {
		at = c.began.Add(t.Header)
	}
	if !c.half.IsZero() {
		at = bounds.Earlier(at, c.half.Add(t.Header))
	}
	if !c.draining.IsZero() {
		at = bounds.Earlier(at, c.draining.Add(t.DrainIdle))
	}
	if len(c.requests) == 0 {
		at = bounds.Earlier(at, c.since.Add(t.Idle))
	} else {
		at = bounds.Earlier(at, c.since.Add(t.Stall))
	}
	for _, q := range c.requests {
		at = bounds.Earlier(at, q.Due())
	}
	return at
}

// Expire does what is due.
func (c *Client) Expire(now time.Time) {
	t := c.l.Timeouts
	reached := func(from time.Time, d time.Duration) bool { return !from.IsZero() && !now.Before(from.Add(d)) }
	stalls := len(c.requests) > 0 && reached(c.since, t.Stall)
	switch {
	case !c.conn.Acknowledged() && reached(c.began, t.Header):
		c.l.refused(reason.SettingsTimeout.String())
		c.l.out = c.conn.Fail(c.l.out[:0], reason.SettingsTimeout)
		c.send()
		c.owner.End()
		return
	case reached(c.half, t.Header), stalls && c.conn.Pinged() > 0: // it was asked, and has not answered
		c.l.refused(plan.SlowClient)
		c.owner.Close(true)
		return
	case len(c.requests) == 0 && reached(c.since, t.Idle):
		c.since = now
		c.Drain()
	case stalls:
		c.since = now
		c.l.out = c.conn.Ping(c.l.out[:0])
		c.send()
	case reached(c.draining, t.DrainIdle):
		c.draining = now
		c.l.out = c.conn.Drain(c.l.out[:0])
		c.send()
	}
	c.each(func(q *Request) { q.expire(now) })
}

// Review ends the requests whose client may, by another View, no longer reach the workload
// that answers them. The rest is Run's.
func (c *Client) Review(view *mesh.View) {
	c.each(func(q *Request) { q.Review(view) })
}

// each calls do with each request, which may end it.
func (c *Client) each(do func(q *Request)) {
	for i := 0; i < len(c.requests); {
		q := c.requests[i]
		if do(q); i < len(c.requests) && c.requests[i] == q {
			i++
		}
	}
}

// Drain tells the client that the end is near; it is at its end when its streams are.
func (c *Client) Drain() {
	if c.draining.IsZero() {
		c.draining = c.l.Loop.Now()
		c.l.out = c.conn.Drain(c.l.out[:0])
		c.send()
		c.l.Turn.Last(&c.turn)
	}
}

// Gone is the end of the connection: nothing is written to it any more.
func (c *Client) Gone() {
	c.gone = true
	for len(c.requests) > 0 {
		q := c.requests[len(c.requests)-1]
		if q.note.Reason == "" {
			q.note.Reason = plan.ClientGone
			if !c.draining.IsZero() {
				q.note.Reason = mesh.ReasonDraining.String()
			}
		}
		q.finish()
	}
}
