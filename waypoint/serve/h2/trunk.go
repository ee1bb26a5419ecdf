package h2

import (
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/pool"
	"github.com/heddle-mesh/heddle/waypoint/reason"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2/turn"
)

// trunk is a connection to a workload that speaks HTTP/2, which many requests share.
type trunk struct {
	l       *Loop
	place   *pool.Place
	c       *pool.Conn // nil when it has ended
	conn    *http2.Conn
	out     []byte
	held    int // bytes of out, as Held has them
	streams map[uint32]*Request
	waiting []*Request // until it is there and takes what waits for it, a WebSocket until SETTINGS say whether it may be asked for
	leaving bool       // it takes no more
	used    bool       // it has answered something
	turn    turn.Step
	since   time.Time // when something came, or it was asked
	timer   eventloop.Timer
	expired func()
}

// join sends a request on a trunk that has room, or a new one.
func (l *Loop) join(q *Request) error {
	for _, t := range l.trunks[q.place] {
		if !t.leaving && t.conn.Room()-len(t.waiting) > 0 {
			t.take(q)
			return nil
		}
	}
	t := &trunk{l: l, place: q.place, conn: http2.NewClient(l.HTTP), streams: map[uint32]*Request{}, since: l.Loop.Now()}
	c, err := l.Pool.Dial(q.place, t)
	if err != nil {
		return err
	}
	t.c, t.expired, t.turn.Do = c, t.expire, t.run
	if l.trunks == nil {
		l.trunks = map[*pool.Place][]*trunk{}
	}
	l.trunks[t.place] = append(l.trunks[t.place], t)
	t.take(q)
	return nil
}

// take has a request on this trunk.
func (t *trunk) take(q *Request) {
	q.trunk, q.on = t, 0
	switch takes, known := t.conn.WebSocket(); {
	case t.c.Connecting(), len(t.out) >= backlog, q.head.Upgrade && !known:
		t.waiting = append(t.waiting, q)
		return
	case q.head.Upgrade && !takes:
		q.plainly()
		return
	}
	out, id, err := t.conn.Open(t.l.out[:0], &q.head, &q.edit)
	t.send(out)
	switch {
	case err == http2.ErrFull: // it takes fewer than was thought
		q.trunk = nil
		t.leaving = t.conn.Streams() == 0
		q.broke(unsent, reason.PeerReset.String(), nil)
		return
	case err != nil:
		q.trunk = nil
		q.fail(500, plan.BadEdit)
		return
	}
	q.on, q.sent = id, true
	t.streams[id] = q
	t.place.Carry(1)
	q.pump()
}

// forget takes a request's stream off.
func (t *trunk) forget(q *Request) {
	delete(t.streams, q.on)
	t.place.Carry(-1)
	q.trunk, q.on = nil, 0
	t.l.Turn.First(&t.turn)
}

func (t *trunk) unwait(q *Request) {
	q.trunk = nil
	t.waiting = slices.DeleteFunc(t.waiting, func(o *Request) bool { return o == q })
}

// Connected implements pool.Owner.
func (t *trunk) Connected(_ *pool.Conn, err error) {
	if err != nil {
		waiting := t.waiting
		t.c, t.waiting = nil, nil
		t.gone()
		for _, q := range waiting {
			q.trunk = nil
			q.unreachable(err)
			q.wake()
		}
		return
	}
	t.send(t.conn.Start(t.l.out[:0]))
	t.since = t.l.Loop.Now()
	t.l.Loop.SetAfter(&t.timer, t.l.Timeouts.Connect, t.expired)
	t.admit()
	t.l.Turn.First(&t.turn)
}

// admit takes those who wait, as far as they need not wait still.
func (t *trunk) admit() {
	waiting := t.waiting
	t.waiting = nil
	for _, q := range waiting {
		if !q.over {
			t.take(q)
			q.wake() // what its client owes is due from now on
		}
	}
}

// Happened implements pool.Owner.
func (t *trunk) Happened(*pool.Conn) { t.step() }

// send writes what the engine has appended to the loop's out.
func (t *trunk) send(out []byte) {
	if t.sendQuietly(out); t.c != nil && len(out) > 0 {
		t.l.Turn.First(&t.turn) // the engine has more to say, maybe
	}
}

// sendQuietly is send of what Next has appended: it is called until it has no more.
func (t *trunk) sendQuietly(out []byte) {
	if t.l.out = out[:0]; t.c == nil || len(out) == 0 {
		return
	}
	if len(t.out) == 0 {
		out = out[t.c.Write(out):]
	}
	if len(out) > 0 && t.out == nil {
		t.out = t.l.Buffers.Get()
	}
	t.out = append(t.out, out...)
	t.count()
}

// count brings what is held up to date. There is memory while something waits only.
func (t *trunk) count() {
	if len(t.out) == 0 {
		t.l.Buffers.Put(t.out)
		t.out = nil
	}
	*t.l.Held += int64(cap(t.out) - t.held)
	t.held = cap(t.out)
}

func (t *trunk) data(id uint32, p []byte) int {
	out, n := t.conn.Data(t.l.out[:0], id, p)
	t.send(out)
	return n
}

// run is its turn, if it is still there.
func (t *trunk) run() {
	if t.c != nil {
		t.step()
	}
}

// step does all that can be done now.
func (t *trunk) step() {
	if len(t.out) > 0 {
		full := len(t.out) >= backlog
		t.out = t.out[:copy(t.out, t.out[t.c.Write(t.out):])]
		t.count()
		if full && len(t.out) < backlog {
			t.admit()
			for _, q := range t.streams {
				q.pump()
				q.wake()
			}
		}
	}
	for t.c != nil && len(t.out) < backlog {
		n := t.c.Read(t.l.In)
		if n > 0 {
			t.since = t.l.Loop.Now()
		}
		if !t.feed(t.l.In[:n]) {
			t.close(true)
			return
		}
		if n == 0 {
			break
		}
	}
	switch {
	case t.c == nil:
	case t.c.EOF(), t.c.Broken(), t.c.Refused():
		t.close(true)
	case t.leaving && len(t.streams) == 0:
		t.close(false)
	}
}

// feed gives the engine what came. It returns false when the connection is at its end.
func (t *trunk) feed(data []byte) bool {
	for {
		out, n, step, err := t.conn.Next(t.l.out[:0], data)
		t.sendQuietly(out)
		data = data[n:]
		if err != nil {
			return false
		}
		switch step.Event {
		case http2.More:
			if _, known := t.conn.WebSocket(); known && len(t.waiting) > 0 {
				t.admit()
			}
			return true
		case http2.GoAway:
			t.leaving = true
			continue
		}
		if q := t.streams[step.Stream]; q != nil {
			t.event(q, &step)
		}
	}
}

func (t *trunk) event(q *Request, step *http2.Step) {
	q.wake()
	switch step.Event {
	case http2.HeadRead:
		t.used = true
		q.answer(step.Head)
	case http2.Data:
		q.down.Data = append(q.down.Data, step.Data...)
		q.drain()
	case http2.End:
		t.place.Answered()
		if !q.tunnel { // what goes the other way may go on
			t.forget(q)
		}
		q.down.End(step.Trailers)
		q.drain()
	case http2.Writable:
		q.pump()
	case http2.Reset:
		t.forget(q)
		k := broken
		switch {
		case q.tunnel && q.down.Ended && step.Err.Code == http2.NoError: // it has said all, and hears no more (RFC 9113 section 8.1)
			q.up.Done = true
			q.bothEnded()
			return
		case step.Retry:
			k = unseen
		}
		q.broke(k, step.Err.Reason.String(), step.Err)
	}
}

// expire looks whether the trunk is of use: it answers what it is asked, and is not idle for too long.
func (t *trunk) expire() {
	now, to := t.l.Loop.Now(), t.l.Timeouts
	silent := now.Sub(t.since)
	switch {
	case !t.conn.Acknowledged() && silent >= to.Connect:
		t.close(true)
		return
	case len(t.streams) == 0 && silent >= to.IdleWorkload:
		t.send(t.conn.Drain(t.l.out[:0]))
		t.close(false)
		return
	case silent >= to.Stall && t.conn.Pinged() > 0:
		t.close(true)
		return
	case len(t.streams) > 0 && silent >= to.Stall:
		t.since = now
		t.send(t.conn.Ping(t.l.out[:0]))
	}
	t.l.Loop.SetAfter(&t.timer, max(min(to.Connect, to.Stall, to.IdleWorkload), time.Second), t.expired)
}

// close ends the trunk, and what is on it is tried elsewhere, or fails.
func (t *trunk) close(reset bool) {
	if t.c == nil {
		return
	}
	c := t.c
	t.c = nil
	t.gone()
	c.Close(reset)
	all := t.waiting
	for _, q := range t.streams {
		all = append(all, q)
	}
	t.waiting = nil
	for _, q := range all {
		k := broken
		if q.on == 0 {
			k = unsent
		} else if t.used && !q.heard && q.idempotent {
			k = stale
		}
		if q.on != 0 {
			t.place.Carry(-1)
		}
		q.wake()
		if _, known := t.conn.WebSocket(); q.on == 0 && q.head.Upgrade && !known { // it speaks no HTTP/2
			q.plainly()
			continue
		}
		q.trunk, q.on = nil, 0
		q.broke(k, plan.BackendReset, nil)
	}
	clear(t.streams)
}

// gone takes it out of the list.
func (t *trunk) gone() {
	t.leaving, t.out = true, t.out[:0]
	t.count()
	t.l.Loop.Clear(&t.timer)
	rest := slices.DeleteFunc(t.l.trunks[t.place], func(o *trunk) bool { return o == t })
	if t.l.trunks[t.place] = rest; len(rest) == 0 {
		delete(t.l.trunks, t.place)
	}
}
