package serve

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/bounds"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/sniff"
	"github.com/heddle-mesh/heddle/waypoint/socket"
)

// stage is where a client's connection is.
type stage uint8

const (
	atHeader  stage = iota // who it is has not come
	atService              // the service that it dialled is not known
	atSniff                // what it speaks is not known
	idle                   // HTTP/1.1, between two requests
	active                 // proto carries it
	ending                 // what is left goes out, and a FIN
	closed
)

// protocol carries a connection that is active. HTTP/1.1 is one (h1), bytes as they are another (relay).
type protocol interface {
	// step does all that can be done now. It is called whenever something has happened.
	step()
	// due is when expire is to be called, the zero time for never.
	due() time.Time
	expire(now time.Time)
	// gone is the end of the connection; nothing is written to it any more.
	gone()
}

// conn is a client's connection. It is used for one after the other.
type conn struct {
	socket.Buffered
	w       *worker
	client  plan.Client
	proto   protocol
	stage   stage
	says    sniff.Spoken // what the port is for, in which version
	version sniff.Version
	index   int       // in the worker's conns
	held    int       // of the worker's, by this connection
	since   time.Time // when the stage began, or the client did something
	shut    bool      // a FIN was sent
	dropped int       // bytes that were read and dropped after it
	leaving leaving
	timer   eventloop.Timer
	armed   time.Time // what the timer is set to
	expired func()    // bound once
	again   func()    // likewise
	queued  bool      // again is to be called
	budget  int       // bytes that may still be carried in this turn
}

// leaving is the end of a connection that nothing more is to come on, as the service that the client
// dialled has this waypoint no more, or is carried in another way. It is zero of all others.
type leaving struct {
	service mesh.Key  // that was dialled, when it was known last
	atOnce  bool      // it ends when nothing is under way: what comes next would not be answered as it has to be
	since   time.Time // a request that comes from then on is the last one
	until   time.Time // what is under way then ends; zero for never
}

const (
	// lingerFor and lingerBytes bound what is read and dropped after the last answer, so that a
	// client that is still sending gets it (RFC 9112 section 9.6).
	lingerFor   = 2 * time.Second
	lingerBytes = 1 << 20
	// holdPoll is how often it is looked whether a service is known.
	holdPoll = 20 * time.Millisecond
)

const (
	// turnBytes is what is carried of one connection before others have their turn, requestCost what
	// a request counts beside its bytes.
	turnBytes   = 256 << 10
	requestCost = 4 << 10
)

// Ready implements eventloop.Source.
func (c *conn) Ready(e eventloop.Events) {
	c.Note(e)
	if h, ok := c.proto.(*h1); ok && e.Broken() && !h.x.Tunnel() {
		c.refused() // nobody waits for the answer; of a tunnel it is so, too, when both ends have ended it
		return
	}
	c.run()
}

// run does all that can be done now.
func (c *conn) run() {
	c.budget = turnBytes
	for {
		before := c.stage
		if c.Flush(&c.w.buffers) {
			c.since = c.w.loop.Now()
		}
		if c.stage != closed && c.Refused() {
			c.refused()
		}
		switch c.stage {
		case atHeader:
			c.readHeader()
		case atService:
			c.await()
		case atSniff:
			c.sniff()
		case idle:
			c.idle()
		case active:
			c.proto.step()
		case ending:
			c.linger()
		case closed:
			return
		}
		if c.stage == before {
			break
		}
	}
	if c.stage != closed {
		if c.account(); c.stage == closed {
			return
		}
		c.arm()
		if c.budget <= 0 { // nothing may tell of what is left
			c.soon()
		}
	}
}

// soon has run called again.
func (c *conn) soon() {
	if !c.queued {
		c.queued = true
		c.w.loop.Later(c.again)
	}
}

// resume is the next turn of a connection that has had its part of the one before.
func (c *conn) resume() {
	c.queued = false
	c.run()
}

// refused is the end of a client that has gone.
func (c *conn) refused() {
	if c.stage == active {
		c.w.refused(plan.ClientGone)
	}
	c.close(true)
}

// account tells the worker how many bytes are held. Under pressure it ends what nobody waits for an answer to yet, as it has not
// come whole.
func (c *conn) account() {
	n := cap(c.In) + cap(c.Out)
	switch p := c.proto.(type) {
	case *h1:
		n += cap(p.sent) + p.x.Held() + p.asked.Held()
	case *two:
		n += p.Held()
	case *relay:
		n += cap(p.out) + p.asked.Held()
	}
	grew := n > c.held
	c.w.held += int64(n - c.held)
	if c.held = n; n > 0 && c.w.full() {
		c.shed(grew && c.w.held > c.w.limits.Most())
	}
}

// shed ends a connection under pressure: one on which nobody waits for an answer, as what was asked has not come whole, and of those
// that ask for more beyond all bounds each.
func (c *conn) shed(beyond bool) {
	switch p := c.proto.(type) {
	case *hello:
		p.refuse(plan.Overloaded, 0)
	case *h1:
		switch {
		case !p.begun:
			c.overloaded()
		case beyond && p.carried == nil && !p.answered: // package h2 sees to those that it carries
			p.fail(503, plan.Overloaded)
			c.soon()
		}
	case *relay:
		if beyond {
			p.refuse(plan.Overloaded)
		}
	case *two:
		if beyond || p.Begins() {
			c.overloaded()
		}
	}
}

// overloaded ends a connection for which there is no room.
func (c *conn) overloaded() {
	c.w.refused(plan.Overloaded)
	c.close(true)
}

// send writes to the client; what it does not take waits.
func (c *conn) send(b []byte) {
	if c.Send(b, &c.w.buffers) {
		c.since = c.w.loop.Now() // it stalls from now on
	}
}

// read is Take, of which the client's time is noted.
func (c *conn) read() (data []byte, kept bool) {
	data, kept = c.Take(c.w.in)
	if !kept {
		c.budget -= len(data)
	}
	if !kept && len(data) > 0 {
		c.since = c.w.loop.Now()
	}
	return data, kept
}

// used is Used.
func (c *conn) used(data []byte, kept bool, n int) { c.Used(data, kept, n, &c.w.buffers) }

// idle begins a request as soon as something of it is there.
func (c *conn) idle() {
	if len(c.In) == 0 && !c.Readable() {
		return
	}
	if len(c.In) == 0 {
		data, kept := c.read()
		if len(data) == 0 {
			if c.EOF() || c.Broken() {
				c.end()
			}
			return
		}
		h := c.w.newH1(c)
		h.request(data, kept)
		return
	}
	c.w.newH1(c)
}

// end closes a connection in good order when all was written.
func (c *conn) end() {
	if c.stage == closed {
		return
	}
	if c.proto != nil {
		c.proto.gone()
		c.proto = nil
	}
	c.stage, c.since = ending, c.w.loop.Now()
}

// linger is the rest of a connection that ends.
func (c *conn) linger() {
	if len(c.Out) > 0 {
		return
	}
	c.Drop(&c.w.buffers)
	if !c.shut {
		c.shut = true
		if c.CloseWrite(); !c.EOF() {
			c.since = c.w.loop.Now()
		}
	}
	for c.Readable() && c.dropped < lingerBytes {
		c.dropped += c.Read(c.w.in)
	}
	if c.EOF() || c.Broken() || c.Refused() || c.dropped >= lingerBytes {
		c.close(false)
	}
}

// close closes a connection now, with a RST if reset is set.
func (c *conn) close(reset bool) {
	if c.stage == closed {
		return
	}
	w := c.w
	if c.proto != nil {
		c.proto.gone()
	}
	c.stage = closed
	w.loop.Clear(&c.timer)
	c.Socket.Close(w.loop, reset)
	w.forget(c)
	w.held -= int64(c.held)
	c.Drop(&w.buffers)
	w.buffers.Put(c.Out)
	*c = conn{w: w, stage: closed, expired: c.expired, again: c.again, queued: c.queued}
	if len(w.free.conns) < spares {
		w.free.conns = append(w.free.conns, c)
	}
}

// drain has a connection end when it has answered what it was asked.
func (c *conn) drain() {
	switch p := c.proto.(type) {
	case *h1:
		p.x.Drain = true
	case *two:
		p.Drain()
	}
	c.arm()
}

// due is when something is to be done unless something happens before; zero for never.
func (c *conn) due() time.Time {
	t := &c.w.cfg.Timeouts
	at := time.Time{}
	switch c.stage {
	case atHeader:
		return c.since.Add(t.Header)
	case atService:
		return c.w.loop.Now().Add(holdPoll)
	case atSniff:
		switch {
		case c.says != sniff.HTTP:
			return c.since.Add(t.Sniff)
		case len(c.In) > 0:
			return c.since.Add(t.Header)
		}
		return c.idleUntil()
	case ending:
		if c.shut {
			return c.since.Add(lingerFor)
		}
	case idle:
		at = c.idleUntil()
	case active:
		at = bounds.Earlier(c.proto.due(), c.leaving.until)
	}
	if len(c.Out) > 0 {
		at = bounds.Earlier(at, c.since.Add(t.Stall))
	}
	return at
}

// idleUntil is when a connection ends that idles.
func (c *conn) idleUntil() time.Time {
	t := &c.w.cfg.Timeouts
	at := c.since.Add(t.Idle)
	if !c.leaving.since.IsZero() {
		at = bounds.Earlier(at, c.leaving.since.Add(t.LeaveIdle))
	}
	if c.w.draining.IsZero() {
		return at
	}
	return bounds.Earlier(at, c.w.draining.Add(t.DrainIdle))
}

// arm sets the timer, unless it fires soon enough anyhow.
func (c *conn) arm() {
	at := c.due()
	if at.IsZero() || c.timer.IsSet() && !at.Before(c.armed) {
		return
	}
	c.armed = at
	c.w.loop.Set(&c.timer, at, c.expired)
}

// expire is what the timer calls.
func (c *conn) expire() {
	if c.stage == atService {
		c.run()
		return
	}
	now := c.w.loop.Now()
	at := c.due()
	if at.IsZero() {
		return
	}
	if now.Before(at) {
		c.arm()
		return
	}
	switch {
	case len(c.Out) > 0 && !now.Before(c.since.Add(c.w.cfg.Timeouts.Stall)):
		c.w.refused(plan.SlowClient)
		c.close(true)
	case c.stage == active && !c.leaving.until.IsZero() && !now.Before(c.leaving.until):
		c.over(mesh.ReasonDraining.String())
	case c.stage == idle && !c.Quiet(): // a request has come, of which the loop tells next
		c.arm()
		return
	case c.stage == atHeader:
		c.w.refused(plan.NoHeader)
		c.close(true)
	case c.stage == atSniff && c.says == sniff.HTTP:
		c.end()
	case c.stage == atSniff:
		c.pass() // it waits for the server
	case c.stage == active:
		c.proto.expire(now)
	case c.stage == idle:
		c.end()
	default:
		c.close(false)
	}
	c.run()
}
