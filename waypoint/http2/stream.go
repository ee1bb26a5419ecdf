package http2

import (
	"slices"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2/wire"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// stream is a request and its response.
type stream struct {
	id       uint32
	send     int64  // what the peer lets us send
	receive  window // what we let it send
	unread   int64  // that Consumed was not told of
	left     int64  // of the peer's Content-Length; -1 without one
	body     int64  // bytes of the peer's body
	interim  int    // 1xx responses that came
	removed  []string
	head     bool // the method is HEAD
	connect  bool // a tunnel is asked for
	tunnel   bool // and granted: each direction ends by itself (section 8.5)
	expects  bool // the client waits for a 100
	answered bool // the head of the final response was sent, or has come
	ourEnd   bool
	theirEnd bool
	waiting  bool // it is in Conn.waiting
}

// idle says that a stream was not opened yet (section 5.1).
func (c *Conn) idle(id uint32) bool {
	odd := id%2 == 1
	if c.server {
		return !odd || id > c.got.last
	}
	return !odd || id >= c.sent.next
}

// add opens a stream.
func (c *Conn) add(id uint32) *stream {
	var s *stream
	if n := len(c.spare); n > 0 {
		s, c.spare = c.spare[n-1], c.spare[:n-1]
	} else {
		s = new(stream)
	}
	size, available := int64(c.config.Window), int64(firstWindow)
	if c.sent.acked {
		available = size
	}
	*s = stream{id: id, send: c.got.window, receive: window{size: size, available: available}, left: -1}
	c.streams[id] = s
	return s
}

// remove closes a stream.
func (c *Conn) remove(s *stream) {
	if s.waiting {
		c.waiting = slices.DeleteFunc(c.waiting, func(id uint32) bool { return id == s.id })
	}
	c.flow.unread -= s.unread
	delete(c.streams, s.id)
	s.removed = nil
	c.spare = append(c.spare, s)
}

// reset closes a stream with a RST_STREAM.
func (c *Conn) reset(s *stream, code Code) {
	c.out = wire.AppendReset(c.out, s.id, uint32(code))
	c.gone[c.goneAt%len(c.gone)] = s.id
	if c.goneAt++; !c.server { // what a backend has on its way is no flood of its own
		c.earn(reason.ClosedFlood, 4)
	}
	c.remove(s)
}

// well is the end of a stream that ended well.
func (c *Conn) well(s *stream) {
	c.earn(reason.RapidReset, 1)
	c.earn(reason.ClosedFlood, 1)
	c.earn(reason.UpdateFlood, 2)
	c.remove(s)
}

// theyEnd is the end of what the peer sends on a stream.
func (c *Conn) theyEnd(s *stream, trailers []http1.Field) Step {
	s.theirEnd = true
	switch {
	case s.ourEnd:
		c.well(s)
	case !c.server && !s.tunnel: // its response is whole: what is left of the request is not waited for
		c.reset(s, Cancel)
	}
	return Step{Event: End, Stream: s.id, Trailers: trailers}
}

// weEnd is the end of what we send on a stream.
func (c *Conn) weEnd(s *stream) {
	s.ourEnd = true
	switch {
	case s.theirEnd && (c.server || s.tunnel):
		c.well(s)
	case c.server && !s.tunnel: // the client need not send the rest (section 8.1)
		c.reset(s, NoError)
	}
}

// fail ends a stream for what the peer has sent on it. A client that makes us do so again and again has its requests begun for
// nothing; a backend cannot do it oftener than it is asked.
func (c *Conn) fail(s *stream, r reason.Reason) (Step, reason.Reason) {
	step := c.refuse(s, r)
	if c.server && step.Err.Code != NoError {
		return step, c.spend(reason.MadeYouReset)
	}
	return step, 0
}

// refuse ends a stream. A request that has no response gets one that says why.
func (c *Conn) refuse(s *stream, r reason.Reason) Step {
	id, code := s.id, codeOf(r)
	step := Step{Event: Reset, Stream: id, Err: &Error{id, r, code, !c.server}}
	if c.server && !s.answered && r.Status() != 0 {
		whole := code == NoError
		c.out = c.appendRefusal(c.out, s, r.Status(), r.String(), whole)
		if s.answered = true; whole {
			c.weEnd(s)
			return step
		}
	}
	c.reset(s, code)
	return step
}

// peerReset reads a RST_STREAM.
func (c *Conn) peerReset(id uint32, code Code) (Step, reason.Reason) {
	s := c.streams[id]
	switch {
	case s == nil && c.idle(id):
		return Step{}, reason.BadStream
	case s == nil:
		return Step{}, c.spend(reason.ClosedFlood)
	}
	c.remove(s)
	step := Step{Event: Reset, Stream: id, Err: &Error{id, reason.PeerReset, code, !c.server}, Retry: !c.server && code == RefusedStream}
	if c.server {
		return step, c.spend(reason.RapidReset)
	}
	return step, 0
}

// update reads a WINDOW_UPDATE (section 6.9).
func (c *Conn) update(id uint32, n int64) (Step, reason.Reason) {
	if r := c.spend(reason.UpdateFlood); r != 0 {
		return Step{}, r
	}
	if id == 0 {
		switch c.flow.send += n; {
		case n == 0:
			return Step{}, reason.ZeroUpdate
		case c.flow.send > maxWindow:
			return Step{}, reason.WindowTooLarge
		}
		c.flow.look = true
		return Step{}, 0
	}
	s := c.streams[id]
	switch {
	case s == nil && c.idle(id):
		return Step{}, reason.BadStream
	case s == nil: // it has ended meanwhile
		return Step{}, 0
	case n == 0:
		return c.fail(s, reason.ZeroUpdate)
	case s.send+n > maxWindow:
		return c.fail(s, reason.WindowTooLarge)
	}
	s.send += n
	c.flow.look = c.flow.look || s.waiting
	return Step{}, 0
}

// beginData judges a frame of DATA by its header: the whole payload counts (section 6.9.1).
func (c *Conn) beginData() (Step, reason.Reason) {
	f := &c.frame
	if f.pad = 0; f.has(wire.Padded) {
		f.pad = -1
	}
	n, id := int64(f.left), f.stream()
	if n > c.flow.receive.available {
		return Step{}, reason.WindowExceeded
	}
	c.flow.receive.available -= n
	if n = c.flow.receive.give(n); n > 0 {
		c.out = wire.AppendUpdate(c.out, 0, n)
	}
	s := c.streams[id]
	switch {
	case s == nil && c.idle(id):
		return Step{}, reason.BadStream
	case s == nil && c.resetLately(id):
		return Step{}, 0
	case s == nil:
		c.out = wire.AppendReset(c.out, id, uint32(CodeStreamClosed))
		return Step{}, c.spend(reason.ClosedFlood)
	case s.theirEnd:
		return c.fail(s, reason.StreamClosed)
	case int64(f.left) > s.receive.available:
		return c.fail(s, reason.WindowExceeded)
	case !c.server && !s.answered:
		return c.fail(s, reason.BadStatusLine) // section 8.1: a body without a head
	case f.left == 0 && !f.has(wire.EndStream):
		return Step{}, c.spend(reason.EmptyFlood)
	}
	s.receive.available -= int64(f.left)
	if f.pad < 0 {
		return Step{}, 0
	}
	return c.count(s, int64(f.left))
}

// count counts what a frame has of a body, which is never more than was announced (section 8.1.1), before any of it is handed on.
func (c *Conn) count(s *stream, n int64) (Step, reason.Reason) {
	if s.left >= 0 {
		if n > s.left {
			return c.fail(s, reason.LengthDiffers)
		}
		s.left -= n
	}
	s.body += n
	if limit := c.config.Messages.BodyBytes; c.server && limit > 0 && s.body > limit && !s.connect {
		return c.fail(s, reason.BodyTooLarge)
	}
	return Step{}, 0
}

// resetLately says that what comes on a stream was sent before the peer knew that it has ended.
func (c *Conn) resetLately(id uint32) bool { return slices.Contains(c.gone[:], id) }

// data hands on what there is of a frame of DATA. More says that bytes are needed.
func (c *Conn) data(in []byte) (step Step, n int, more bool, r reason.Reason) {
	f := &c.frame
	s := c.streams[f.stream()]
	switch {
	case f.left > 0 && len(in) == 0:
		return Step{}, 0, true, 0
	case f.pad < 0:
		f.pad = int(in[0])
		if f.left--; f.pad > f.left {
			return Step{}, 1, false, reason.BadPadding
		}
		if f.left == f.pad && !f.has(wire.EndStream) {
			r = c.spend(reason.EmptyFlood)
		}
		if s == nil || r != 0 {
			return Step{}, 1, false, r
		}
		c.giveBack(s, int64(f.pad)+1)
		step, r = c.count(s, int64(f.left-f.pad))
		return step, 1, false, r
	case f.left > f.pad:
		n = min(len(in), f.left-f.pad)
		f.left -= n
		if s == nil {
			return Step{}, n, false, 0
		}
		s.unread += int64(n)
		c.flow.unread += int64(n)
		return Step{Event: Data, Stream: s.id, Data: in[:n]}, n, false, 0
	case f.left > 0:
		n = min(len(in), f.left)
		f.left -= n
		f.pad -= n
		return Step{}, n, false, 0
	}
	if f.have = 0; s == nil || !f.has(wire.EndStream) {
		return Step{}, 0, false, 0
	}
	if s.left > 0 {
		step, r = c.fail(s, reason.LengthDiffers)
		return step, 0, false, r
	}
	return c.theyEnd(s, nil), 0, false, 0
}

// giveBack lets the peer send n bytes more on a stream.
func (c *Conn) giveBack(s *stream, n int64) {
	if s.theirEnd {
		return
	}
	if n = s.receive.give(n); n > 0 {
		c.out = wire.AppendUpdate(c.out, s.id, n)
	}
}
