package tunnel

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// pathPing marks the PING that measures.
func pathPing() [8]byte { return [8]byte{'p', 'a', 't', 'h'} }

// measure returns the round-trip time, and asks for it anew now and then. It is
// called while a peer sends much, so an idle connection is not asked. What the
// kernel knows is good enough for the beginning.
func (c *Conn) measure() time.Duration {
	p := &c.flow.recv.Path
	if p.RTT == 0 {
		p.RTT = hbone.PathOfSocket(c.fd).RTT
	}
	if p.Ask(c.loop.Now()) {
		c.ping(pathPing(), false)
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
// the beginning of a record. What is written to a lost one goes nowhere.
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
	s.recv.Leave(&s.conn.flow.recv)
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
