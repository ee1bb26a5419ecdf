package tunnel

import (
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone/fast/wire"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

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
