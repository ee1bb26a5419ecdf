package tunnel

import (
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/wire"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// measure returns the round-trip time, and asks for it anew now and then. It is
// called while a peer sends much, so an idle connection is not asked. What the
// kernel knows is good enough for the beginning.
func (c *Conn) measure() time.Duration {
	p := &c.flow.recv.Path
	if p.RTT == 0 {
		p.RTT = hbone.PathOfSocket(c.fd).RTT
	}
	if p.Ask(c.loop.Now()) {
		c.ping(wire.PathPing(), false)
	}
	return p.RTT
}

// grant lets the peer send more on the connection, unless the pod's budget is
// full: then it does when it is not any more. Nothing else stops: frames that
// cost no window go on both ways, so a full budget is no dead peer.
func (c *Conn) grant() {
	w := &c.flow.recv
	if !w.IsDue() || c.closed || c.out.closing || c.resting {
		return
	}
	if w.IsFull() && w.Wait(func() { c.loop.Post(c.granted) }) { // a stopped loop has no connections
		return
	}
	if inc := w.Grant(c.loop.Now(), c.measure()); inc > 0 {
		c.windowUpdate(0, inc)
	}
}

// granted is the end of grant's wait.
func (c *Conn) granted() {
	c.flow.recv.Granted()
	c.grant() // if it rests, Resume does
}

// account tells the budget what the connection itself holds: sealed output, and
// the beginnings of a record, a frame and a header. What is written to a lost one goes nowhere.
func (c *Conn) account() {
	held := 0
	if !c.closed {
		held = c.out.Held() + c.in.Held()
	}
	c.flow.recv.Hold(held)
}

// free drops what the local socket has not taken, and what the window was
// promised, at the stream's end.
func (s *Stream) free() {
	if s.last != nil {
		s.conn.loop.Clear(s.last)
	}
	s.local.Free(&s.conn.loop.Buffers)
	s.account()
	s.recv.Leave(&s.conn.flow.recv, !s.recvEnd)
}

// account tells the budget of it: no more than the stream's window.
func (s *Stream) account() { s.recv.Hold(&s.conn.flow.recv, s.local.Held()) }

// consumed gives the stream's window back for what its local socket has taken.
func (s *Stream) consumed(n int64) {
	c := s.conn
	if c.closed || c.out.closing || n == 0 || s.recvEnd || s.dead {
		return
	}
	if inc := s.recv.Consumed(&c.flow.recv, n, s.local.Waits(), c.loop.Now()); inc > 0 {
		c.windowUpdate(s.id, inc)
	}
}

// heardFor is for how long a peer that was heard of is taken to be there.
const heardFor = time.Second

// sendEarly sends what the program has said already behind the CONNECT, without
// waiting for the 200: RFC 9113 section 8.5 has DATA on such a stream, and a
// server keeps it until its upstream is there. The peer has proved its identity
// by TLS before any stream is opened, so nobody else gets these bytes, and it
// passes them on only after it has authorized the stream. They stay in the
// socket until the 200, so that a stream that the peer surely refused can be
// repeated with them; one of which that is not known cannot, for the application
// might get them twice. A peer that was not heard of lately may be gone: it gets
// nothing that would keep its streams from being repeated. A FIN has to wait.
func (s *Stream) sendEarly(local syscall.Conn) {
	c := s.conn
	if s.dead || c.out.closing || c.loop.Now().Sub(c.life.heardAt) > heardFor || min(s.sendWindow, c.flow.send) <= 0 {
		return
	}
	room := c.room(h2.HeaderBytes + minRead)
	if s.dead || c.out.Queued() > 0 {
		return // making room met a full socket
	}
	if n := s.local.Peek(local, room[h2.HeaderBytes:][:min(s.most(room), wire.MaxEarly)]); n > 0 {
		s.exposed = true
		s.data(room, n)
	}
}

// Exposed says that a stream has ended of which the application may have got
// some, whether there was a 200 or not.
func (s *Stream) Exposed() bool { return s.exposed }
