package tunnel

import (
	"errors"
	"fmt"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
)

// moving is a connection's part in a move.
type moving struct {
	deciding int  // owners that have not decided, dead streams' too
	held     bool // nothing is read
	resting  bool // nothing is done: the state may go on elsewhere
	// Diverted refuses the streams that the peer opens as not processed, so that
	// it repeats them (RFC 9113 section 8.7).
	Diverted bool
	later    []func() // what came while it rested, for the case that it stays
}

// Obstacle looks at the connection and its streams.
func (c *Conn) Obstacle() frozen.Obstacle {
	if c.closed || c.out.closing || c.resting || c.client && !c.ready || !c.client && !c.in.Parser.Started() {
		return frozen.Opening
	}
	found := frozen.None
	if c.deciding > 0 {
		found = frozen.Deciding
	}
	for _, s := range c.streams {
		switch {
		case s.accepting:
		case s.fate != nil:
			found = frozen.Delivering // until fated
		case !s.answered:
			return frozen.Opening
		case !s.owner.Movable():
			return frozen.Owned
		}
	}
	return found
}

// Hold leaves what the peer sends in the socket, until Release or Rest. Streams
// go on sending.
func (c *Conn) Hold() { c.held = true }

// Release is the end of Hold.
func (c *Conn) Release() {
	c.held = false
	c.loop.queueConn(c)
}

// RefuseUndecided refuses the streams whose owners have not decided, as
// Diverted does. The owners' Ended is called; Decided, when they have, is still theirs.
func (c *Conn) RefuseUndecided() {
	for _, s := range c.streams {
		if s.accepting {
			s.Fail(fmt.Errorf("%w: the connection moves to another process", hbone.ErrDraining), http2.ErrCodeRefusedStream)
		}
	}
}

// Rest writes what the socket takes, seals what it does not, and stops: nothing
// is read, written or sealed until Resume. It returns the connection as a value
// and its sockets, the connection's first, then the streams'; nil when there is
// an Obstacle, or one showed. After an error it goes on, and stays after an
// ErrStays.
func (c *Conn) Rest() (z *frozen.Conn, files []int, err error) {
	c.flush()
	if c.Obstacle() != frozen.None {
		return nil, nil, nil
	}
	c.out.Enqueue()
	z, files = c.freeze(), []int{c.fd}
	for _, s := range c.streams {
		one, err := s.freeze(z)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: stream %d: %w", hbone.ErrStays, s.id, err)
		}
		z.Streams, files = append(z.Streams, one), append(files, s.local.FD)
	}
	c.role.Freeze(z)
	c.resting, c.held = true, false
	c.stopClocks()
	for _, fd := range files { // all of them: Resume registers each
		err = errors.Join(err, c.loop.Remove(fd))
	}
	if err != nil {
		c.Resume()
	}
	return z, files, err
}

// freeze is the connection without its streams.
func (c *Conn) freeze() *frozen.Conn {
	c.life.idleLeft = c.loop.Left(&c.life.idle)
	z := &frozen.Conn{
		Server: !c.client, LastID: c.lastID, DataLen: c.dataLen,
		Identity: frozen.Identity{Source: c.id.Source, Leaf: c.id.Leaf[:], Peer: c.id.Peer.String(), NotAfter: c.id.NotAfter},
		Session:  c.session.State(), Parser: c.in.Parser.State(), Guard: c.guard.State(),
		Flow: frozen.Flow{Send: c.flow.send, Initial: c.flow.initial, Recv: c.flow.recv.Window, StreamWindow: c.flow.recv.First, Acked: c.flow.recv.Acked, Streams: c.flow.streams, Sent: c.flow.sent, Late: c.flow.recv.Late},
		Life: frozen.Life{Heard: c.life.heard, Asked: c.life.asked, Announced: c.life.announced, Left: c.left, GoAway: c.life.goaway, IdleLeft: c.life.idleLeft},
	}
	z.Life.FrameAge, z.Life.RecordAge = c.in.Ages(c.loop.Now())
	z.Chain, z.Roots, z.Group = c.id.Trust.State()
	if c.data != nil {
		z.DataID = c.data.id
	}
	z.Partial, z.Out = z.Put(c.in.Append), z.Put(c.out.Append)
	return z
}

func (s *Stream) freeze(z *frozen.Conn) (frozen.Stream, error) {
	owner, timing, err := s.owner.Freeze()
	return frozen.Stream{
		ID: s.id, SendWindow: s.sendWindow, Recv: s.recv.Window, Sent: s.sent, Received: s.received,
		RecvEnd: s.recvEnd, SentEnd: s.sentEnd, FinSent: s.local.FinSent, Finishing: s.finishing, Parting: s.parting, Placed: s.placed, Pending: z.Put(s.local.Append), Timing: timing, Owner: owner,
	}, err
}

// Resume goes on after Rest as if nothing had been.
func (c *Conn) Resume() {
	c.resting = false
	l := c.loop
	for _, s := range c.streams {
		// Registering tells of what is there already, as the edges did that
		// nobody looked at.
		if err := l.Register(s.local.FD, s); err != nil {
			s.LocalFailed(err)
		}
	}
	c.startClocks()
	if err := l.Register(c.fd, c); err != nil {
		c.lost(fmt.Errorf("%w: %w", hbone.ErrLimit, err))
		return
	}
	l.queueConn(c)
	c.touch()
	c.grant()
	later := c.later
	c.later = nil
	for _, do := range later {
		do()
	}
}

// Gone is the end of a connection at rest that goes on in another process. What
// came for it meanwhile is for that process to know. Closing shows nobody
// anything: the other process has the sockets too.
func (c *Conn) Gone() {
	c.closed, c.resting, c.later = true, false, nil
	l := c.loop
	for id, s := range c.streams {
		s.dead = true
		delete(c.streams, id)
		s.free()
		eventloop.CloseSocket(s.local.FD)
		s.owner.Left()
	}
	eventloop.CloseSocket(c.fd)
	c.free()
	delete(l.conns, c)
	c.role.Left()
}

// atRest keeps what is to be done with a connection that rests until it does
// not.
func (c *Conn) atRest(do func()) bool {
	if c.resting {
		c.later = append(c.later, do)
	}
	return c.resting
}

// startClocks sets the timers of a connection that has begun. One whose time
// for a PING was running gets it once more.
func (c *Conn) startClocks() {
	l := c.loop
	next := c.cfg.PingInterval
	if c.life.asked {
		next = c.cfg.PingTimeout
	}
	l.SetAfter(&c.life.clock, next, c.tick)
	l.Set(&c.life.expiry, c.id.NotAfter, c.Drain)
	if len(c.streams) == 0 && c.deciding == 0 {
		left := c.cfg.IdleTimeout
		if c.life.idleLeft > 0 {
			left = min(left, c.life.idleLeft)
		}
		l.SetAfter(&c.life.idle, left, c.idleClose)
	}
}
