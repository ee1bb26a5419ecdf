package pool

import (
	"syscall"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/waypoint/socket"
)

// Owner is whose a connection is while it is in use.
type Owner interface {
	// Connected is told once of a connection that Dial began: it is there, or an error says why
	// not; then it is closed already.
	Connected(c *Conn, err error)
	// Happened is told that there may be something to read or room to write.
	Happened(c *Conn)
}

// Conn is one connection to a workload. It is its owner's from Get or Dial until Keep or Close,
// and not to be touched afterwards: the pool uses it again.
type Conn struct {
	socket.Socket
	// At is where it leads to.
	At *Place
	// Used is how many times it was kept before.
	Used int

	pool      *Pool
	owner     Owner
	connected bool
	timer     eventloop.Timer
	expired   func() // bound once
	// ofPlace and ofPool are its links while it idles.
	ofPlace, ofPool links
}

// ErrTimeout is that a connection was not there in time.
const ErrTimeout = syscall.ETIMEDOUT

// Get takes a connection that was kept, the one that was used last; nil when there is none. Each is
// looked at once more: one that has ended, of which the loop has not told yet, would cost a request
// that cannot be sent twice.
func (p *Pool) Get(at *Place, owner Owner) *Conn {
	c := at.idle.last
	for ; c != nil && !c.Quiet(); c = at.idle.last {
		c.Close(false)
	}
	if c == nil {
		return nil
	}
	c.unlink()
	c.owner = owner
	at.active++
	return c
}

// Dial begins a connection. An error is known at once; then there is no connection.
func (p *Pool) Dial(at *Place, owner Owner) (*Conn, error) {
	to := at.At
	if p.cfg.Reach != nil {
		to = p.cfg.Reach(to)
	}
	fd, errno := socket.Dial(to)
	if errno != 0 {
		return nil, errno
	}
	c := p.conn()
	c.Adopt(fd)
	c.At, c.owner = at, owner
	if err := p.loop.Register(fd, c); err != nil {
		c.Socket.Close(p.loop, false)
		p.spare = append(p.spare, c)
		return nil, err
	}
	at.active++
	p.open++
	p.loop.SetAfter(&c.timer, p.cfg.Connect, c.expired)
	return c, nil
}

func (p *Pool) conn() *Conn {
	if n := len(p.spare); n > 0 {
		c := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return c
	}
	c := &Conn{pool: p}
	c.expired = c.expire
	return c
}

// Own makes a connection that is in use another owner's.
func (c *Conn) Own(o Owner) { c.owner = o }

// Ready implements eventloop.Source.
func (c *Conn) Ready(e eventloop.Events) {
	if !c.connected {
		c.finish(e)
		return
	}
	c.Note(e)
	switch {
	case c.owner != nil:
		c.owner.Happened(c)
	case e.Readable():
		c.Close(false) // it says something that nobody has asked for, or ends
	}
}

// finish is the end of connecting.
func (c *Conn) finish(e eventloop.Events) {
	if !e.Writable() && !e.Broken() {
		return
	}
	owner := c.owner
	if errno := eventloop.SocketError(c.FD()); errno != 0 {
		c.Close(false)
		owner.Connected(c, errno)
		return
	}
	c.connected = true
	c.pool.loop.Clear(&c.timer)
	c.Note(e)
	owner.Connected(c, nil)
}

// expire is the end of waiting for a connection, or of keeping one.
func (c *Conn) expire() {
	owner, connected := c.owner, c.connected
	if owner != nil && connected {
		return // in use: it was kept when the timer was set
	}
	if owner == nil && c.pool.loop.Now().Before(c.ofPool.until) {
		c.pool.loop.Set(&c.timer, c.ofPool.until, c.expired) // it was used since
		return
	}
	c.Close(false)
	if owner != nil {
		owner.Connected(c, ErrTimeout)
	}
}

// Connecting reports whether it is not there yet.
func (c *Conn) Connecting() bool { return !c.connected }

// Keep gives a connection back on which nothing is under way. Of too many, the one that has
// idled longest ends.
func (c *Conn) Keep() {
	p := c.pool
	if c.Readable() || c.EOF() || c.Refused() || p.cfg.IdlePerWorkload == 0 || p.cfg.Idle == 0 {
		c.Close(false)
		return
	}
	if c.At.idle.n >= p.cfg.IdlePerWorkload {
		c.At.idle.first.Close(false)
	} else if p.idle.n >= p.cfg.Idle {
		p.idle.first.Close(false)
	}
	c.owner = nil
	c.Used++
	c.At.active--
	c.ofPool.until = p.loop.Now().Add(p.cfg.IdleFor)
	c.At.idle.push(c)
	p.idle.push(c)
	if !c.timer.IsSet() { // one that is set looks again when it fires
		p.loop.Set(&c.timer, c.ofPool.until, c.expired)
	}
}

// unlink takes a connection that idles out of the lists.
func (c *Conn) unlink() {
	c.At.idle.remove(c)
	c.pool.idle.remove(c)
}

// Close ends a connection, with a RST if reset is set. The place keeps counting it
// until then.
func (c *Conn) Close(reset bool) {
	if !c.Open() {
		return
	}
	p := c.pool
	if c.owner == nil {
		c.unlink()
	} else {
		c.At.active--
	}
	p.open--
	p.loop.Clear(&c.timer)
	c.Socket.Close(p.loop, reset)
	expired, timer := c.expired, eventloop.Timer{}
	*c = Conn{pool: p, expired: expired, timer: timer}
	p.spare = append(p.spare, c)
}
