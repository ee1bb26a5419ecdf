// Package mirror sends copies of requests to workloads, and drops what they answer. A copy is
// sent once, within bounds of number and time, and nobody waits for it.
//
// It belongs to one event loop: nothing here is safe for use by another goroutine.
package mirror

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/pool"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

// Sender sends the copies of one loop.
type Sender struct {
	Loop    *eventloop.Loop
	Pool    *pool.Pool
	HTTP    *http1.Config
	Metrics *telemetry.Metrics
	// Most is how many may be under way, with Bytes in all, Within how long each may take.
	Most   int
	Bytes  int64
	Within time.Duration
	// Held is how many bytes the loop holds, the copies' among them.
	Held *int64

	all    map[*copied]struct{} // under way
	others int                  // that somebody else sends
	held   int64                // by both
}

// Drop counts copies that are not sent.
func (s *Sender) Drop(n int) {
	if n > 0 {
		s.Metrics.Mirrored.WithLabelValues(telemetry.Dropped).Add(float64(n))
	}
}

// Begin reports whether there is room for a copy of n bytes that somebody else sends, and counts towards Held; if not,
// it is counted as dropped. End is to follow, with what became of it.
func (s *Sender) Begin(n int) bool {
	if !s.room(n) {
		s.Drop(1)
		return false
	}
	s.others++
	s.held += int64(n)
	return true
}

// End is that of a copy of n bytes that somebody else has sent.
func (s *Sender) End(outcome string, n int) {
	s.others--
	s.held -= int64(n)
	s.Metrics.Mirrored.WithLabelValues(outcome).Inc()
}

// room reports whether one more of n bytes is within the bounds.
func (s *Sender) room(n int) bool { return s.Active() < s.Most && s.held+int64(n) <= s.Bytes }

// Fail counts a copy that could not be sent.
func (s *Sender) Fail() { s.Metrics.Mirrored.WithLabelValues(telemetry.Failed).Inc() }

// Send sends a copy of what a backend got of a request; head says that its method is HEAD.
func (s *Sender) Send(at *pool.Place, request []byte, head bool) {
	if !s.room(len(request)) {
		s.Drop(1)
		return
	}
	c := &copied{s: s, at: at, request: append([]byte(nil), request...), parser: http1.NewResponses(s.HTTP), asked: http1.Asked{Head: head}}
	c.parser.Ask(&c.asked)
	// Each copy has a connection of its own, that nothing else ever goes on: whether its answer left
	// a part of it unread, nobody can say.
	b, err := s.Pool.Dial(at, c)
	if err != nil {
		s.Pool.Failed(at)
		s.Fail()
		return
	}
	c.backend = b
	if s.all == nil {
		s.all = map[*copied]struct{}{}
	}
	s.all[c] = struct{}{}
	s.hold(len(c.request))
	s.Loop.SetAfter(&c.timer, s.Within, func() { c.end(telemetry.Failed) })
	c.step()
}

// readsPerTurn bounds what is read of one copy's answer before others have their turn.
const readsPerTurn = 16

// copied is one copy under way.
type copied struct {
	s       *Sender
	at      *pool.Place
	backend *pool.Conn
	parser  http1.Parser
	asked   http1.Asked
	request []byte
	written int
	timer   eventloop.Timer
}

// Connected implements pool.Owner.
func (c *copied) Connected(_ *pool.Conn, err error) {
	if err != nil {
		c.backend = nil
		c.s.Pool.Failed(c.at)
		c.end(telemetry.Failed)
		return
	}
	c.step()
}

// Happened implements pool.Owner.
func (c *copied) Happened(*pool.Conn) { c.step() }

// step sends what is left, and reads.
func (c *copied) step() {
	b := c.backend
	if b == nil || b.Connecting() { // nil: it has ended
		return
	}
	c.written += b.Write(c.request[c.written:])
	var few [4 << 10]byte // of its own: a request may be being read meanwhile
	for range readsPerTurn {
		if n := b.Read(few[:]); n > 0 && c.read(few[:n]) {
			return
		}
	}
	switch {
	case b.Readable():
		c.s.Loop.Later(c.step)
	case b.EOF():
		if e, _ := c.parser.EOF(); e == http1.End {
			c.end(telemetry.Sent)
			return
		}
		c.end(telemetry.Failed)
	case b.Broken():
		c.end(telemetry.Failed)
	}
}

// read drops a part of the answer, and reports whether that was the last.
func (c *copied) read(data []byte) bool {
	for {
		e, _, n, err := c.parser.Next(data)
		data = data[n:]
		switch {
		case err != nil:
			c.end(telemetry.Failed)
			return true
		case e == http1.End:
			c.end(telemetry.Sent)
			return true
		case e == http1.More:
			return false
		}
	}
}

func (s *Sender) hold(n int) {
	s.held += int64(n)
	*s.Held += int64(n)
}

func (c *copied) end(outcome string) {
	if _, under := c.s.all[c]; !under {
		return
	}
	c.s.Loop.Clear(&c.timer)
	delete(c.s.all, c)
	c.s.hold(-len(c.request))
	c.s.Metrics.Mirrored.WithLabelValues(outcome).Inc()
	if c.backend != nil {
		c.backend.Close(true)
		c.backend = nil
	}
}

// Active is the number of copies under way.
func (s *Sender) Active() int { return len(s.all) + s.others }

// Close ends all copies under way that it sends itself.
func (s *Sender) Close() {
	for c := range s.all {
		c.end(telemetry.Failed)
	}
}
