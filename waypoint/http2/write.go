package http2

import (
	"errors"
	"net/http"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
	"github.com/heddle-mesh/heddle/waypoint/http2/wire"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// Open appends a request's head for a backend, and is its stream. When it has a body, Data and End are to follow. An upgrade to
// WebSocket is an extended CONNECT (RFC 8441), of which a success makes a tunnel. After http1.ErrEdit, ErrFull or ErrNoWebSocket nothing
// is appended.
func (c *Conn) Open(dst []byte, h *http1.Head, e *http1.Edit) (out []byte, id uint32, err error) {
	switch {
	case c.Room() == 0:
		return dst, 0, ErrFull
	case h.CheckEdit(e) != nil:
		return dst, 0, http1.ErrEdit
	case h.Upgrade && c.got.connect == 0:
		return dst, 0, ErrNoWebSocket
	}
	id = c.sent.next
	c.sent.next += 2
	s := c.add(id)
	s.head, s.connect, s.removed = string(h.Method) == "HEAD", h.Upgrade || len(h.Path) == 0, removed(e)
	end := !s.connect && (h.Body == http1.NoBody || h.Body == http1.Length && h.Length == 0)
	at := len(dst)
	dst = c.beginHead(dst)
	dst = c.appendRequest(dst, s, h, e)
	dst = c.endHead(dst, at, id, end)
	s.ourEnd = end
	return dst, id, nil
}

// WebSocket says whether the server takes a WebSocket (RFC 8441 section 3); known is false before its SETTINGS have come.
func (c *Conn) WebSocket() (takes, known bool) { return c.got.connect > 0, c.got.settings }

// Room is how many more requests can be opened now.
func (c *Conn) Room() int {
	if c.server || c.err != nil || c.got.goAway || c.sent.drain != open || c.sent.next > maxStream {
		return 0
	}
	return max(0, min(c.config.Streams, int(min(c.got.streams, maxStream)))-len(c.streams))
}

func (c *Conn) appendRequest(b []byte, s *stream, h *http1.Head, e *http1.Edit) []byte {
	host, target := h.Host, h.Path
	if e != nil && e.Host != nil {
		host = e.Host
	}
	if e != nil && e.Path != nil && len(target) > 0 && target[0] == '/' {
		target = e.Path
	}
	b = wire.AppendAsk(b, wire.Ask{Method: h.Method, Authority: host, Path: target, Secure: c.config.Messages.Secure, WebSocket: h.Upgrade})
	b = c.appendFields(b, h, e)
	if h.Length >= 0 && !s.connect {
		b = wire.AppendNumber(b, wire.ContentLength, h.Length)
	}
	if h.Trailers {
		b = wire.AppendField(b, "te", "trailers")
	}
	if h.Continue {
		b = wire.AppendField(b, "expect", "100-continue")
	}
	if via := c.config.Messages.Via; via != "" {
		var few [64]byte
		b = wire.AppendIndexed(b, wire.Via, h.AppendVia(few[:0], via))
	}
	return b
}

// Answer appends a final response's head. When it has a body, Data and End are to follow. After an error
// nothing is appended: Reply is to follow http1.ErrEdit.
func (c *Conn) Answer(dst []byte, id uint32, h *http1.Head, e *http1.Edit) ([]byte, error) {
	s := c.streams[id]
	switch {
	case s == nil || !c.server || s.answered:
		return dst, ErrGone
	case h.CheckEdit(e) != nil || h.Interim() || h.Status < 200:
		return dst, http1.ErrEdit
	}
	tunnel := s.connect && h.Status < 300
	end := !tunnel && (h.Body == http1.NoBody || s.head || h.Body == http1.Length && h.Length == 0)
	at := len(dst)
	dst = wire.AppendStatus(c.beginHead(dst), h.Status)
	dst = c.appendFields(dst, h, e)
	if h.Length >= 0 && !tunnel {
		dst = wire.AppendNumber(dst, wire.ContentLength, h.Length)
	}
	dst = c.endHead(dst, at, id, end)
	s.answered, s.tunnel, s.removed = true, tunnel, removed(e)
	if end {
		dst = c.ended(dst, s)
	}
	return dst, nil
}

// ended is weEnd outside of Next.
func (c *Conn) ended(dst []byte, s *stream) []byte {
	c.out = dst
	c.weEnd(s)
	dst, c.out = c.out, nil
	return dst
}

// Interim appends a 1xx, unless the client has not asked for it. Of its fields only Link goes on, as in
// HTTP/1.1: no route has edited them.
func (c *Conn) Interim(dst []byte, id uint32, h *http1.Head) []byte {
	s := c.streams[id]
	if s == nil || !c.server || s.answered || !h.Interim() || h.Status == 100 && !s.expects {
		return dst
	}
	at := len(dst)
	dst = wire.AppendStatus(c.beginHead(dst), h.Status)
	for i := range h.Fields {
		if f := &h.Fields[i]; grammar.FoldEqual(f.Name, "link") && !h.Hop(f) {
			dst = wire.AppendField(dst, f.Name, f.Value)
		}
	}
	return c.endHead(dst, at, id, false)
}

// Reply appends a response of our own. Its body goes as far as the client's windows let it, which is
// all of it unless the client has made them tiny.
func (c *Conn) Reply(dst []byte, id uint32, code int, reason string, fields []http1.Field, body []byte) ([]byte, error) {
	s := c.streams[id]
	if s == nil || !c.server || s.answered {
		return dst, ErrGone
	}
	if err := http1.CheckReply(code, reason, fields); err != nil {
		return dst, err
	}
	bodiless := code == 204 || code == 304
	at := len(dst)
	dst = wire.AppendStatus(c.beginHead(dst), code)
	for _, f := range fields {
		dst = wire.AppendField(dst, f.Name, f.Value)
	}
	if reason != "" {
		dst = wire.AppendField(dst, "x-heddle-reason", reason)
	}
	fits := int64(len(body)) <= min(s.send, c.flow.send)
	if !bodiless && (fits || s.head) {
		dst = wire.AppendNumber(dst, wire.ContentLength, int64(len(body)))
	}
	s.answered = true
	if end := bodiless || s.head || len(body) == 0 || !fits; end {
		return c.ended(c.endHead(dst, at, id, true), s), nil
	}
	dst = c.endHead(dst, at, id, false)
	dst, _ = c.Data(dst, id, body)
	return c.End(dst, id, nil), nil
}

// Refuse appends the answer to a request for which something is wrong with the backend's response: an *Error, or a
// *http1.Error. When the response has begun already, the stream is reset, and also when the backend has cancelled it:
// gRPC's servers do when the time is over, and their clients know what that means. What is wrong with the request itself, Next
// has answered.
func (c *Conn) Refuse(dst []byte, id uint32, err error) []byte {
	s := c.streams[id]
	if s == nil || !c.server {
		return dst
	}
	if s.answered {
		return c.Reset(dst, id, InternalError)
	}
	name := ""
	if wrong, ok := errors.AsType[*Error](err); ok && wrong.Reason == reason.PeerReset && wrong.Code == Cancel {
		return c.Reset(dst, id, Cancel)
	} else if ok {
		name = wrong.Reason.String()
	} else if wrong, ok := errors.AsType[*http1.Error](err); ok {
		name = wrong.Reason.String()
	}
	s.answered = true
	return c.ended(c.appendRefusal(dst, s, http.StatusBadGateway, name, true), s)
}

// beginHead leaves room for a frame's header. The first block says that there will be no table.
func (c *Conn) beginHead(dst []byte) []byte {
	dst = wire.AppendFrame(dst, wire.Headers, 0, 0, 0)
	if !c.sent.table {
		c.sent.table = true
		dst = append(dst, wire.NoTable)
	}
	return dst
}

// endHead writes the frame's header, and cuts the block in several if it is long.
func (c *Conn) endHead(dst []byte, at int, id uint32, end bool) []byte {
	flags, kind := byte(0), byte(wire.Headers)
	if end {
		flags = wire.EndStream
	}
	block := dst[at+wire.HeaderBytes:]
	if len(block) <= wire.MaxFrame {
		wire.AppendFrame(dst[:at], kind, flags|wire.EndHeaders, id, len(block))
		return dst
	}
	c.section.split = append(c.section.split[:0], block...)
	dst = dst[:at]
	for rest := c.section.split; len(rest) > 0; kind, flags = wire.Continuation, 0 {
		part := rest[:min(len(rest), wire.MaxFrame)]
		if rest = rest[len(part):]; len(rest) == 0 {
			flags |= wire.EndHeaders
		}
		dst = append(wire.AppendFrame(dst, kind, flags, id, len(part)), part...)
	}
	return dst
}

// appendFields appends the fields that go on to the next hop, and what an edit adds.
func (c *Conn) appendFields(b []byte, h *http1.Head, e *http1.Edit) []byte {
	gone := removed(e)
	for i := range h.Fields {
		if f := &h.Fields[i]; h.Carried(f, gone) {
			b = wire.AppendField(b, f.Name, f.Value)
		}
	}
	if e != nil {
		for _, f := range e.Add {
			b = wire.AppendField(b, f.Name, f.Value)
		}
	}
	return b
}

// appendRefusal appends the head of a response that says why there is no other one.
func (c *Conn) appendRefusal(dst []byte, s *stream, code int, name string, end bool) []byte {
	at := len(dst)
	dst = wire.AppendStatus(c.beginHead(dst), code)
	if end {
		dst = wire.AppendNumber(dst, wire.ContentLength, 0)
	}
	if name != "" {
		dst = wire.AppendField(dst, "x-heddle-reason", name)
	}
	return c.endHead(dst, at, s.id, end)
}

// Data appends a part of a body, as much of it as the peer's windows let it: n bytes. When that is not all, the
// stream is Writable later. What is for a stream that has ended is used, and goes nowhere.
func (c *Conn) Data(dst []byte, id uint32, p []byte) (out []byte, n int) {
	s := c.streams[id]
	if s == nil || s.ourEnd || c.server && !s.answered {
		return dst, len(p)
	}
	room := int(max(0, min(int64(len(p)), s.send, c.flow.send)))
	if len(c.waiting) > 0 { // others wait: a frame each
		room = min(room, wire.MaxFrame)
	}
	for n < room {
		k := min(room-n, wire.MaxFrame)
		dst = append(wire.AppendFrame(dst, wire.Data, 0, id, k), p[n:n+k]...)
		n += k
		c.earn(reason.UpdateFlood, 2+float64(k)/256)
		c.earn(reason.PingFlood, 1)
	}
	s.send -= int64(n)
	c.flow.send -= int64(n)
	if n < len(p) && !s.waiting {
		s.waiting = true
		c.waiting = append(c.waiting, id)
		c.flow.look = c.flow.look || s.send > 0 && c.flow.send > 0
	}
	return dst, n
}

// End appends the end of a message, behind all of its Data. Trailers that an edit has removed do not go.
func (c *Conn) End(dst []byte, id uint32, trailers []http1.Field) []byte {
	s := c.streams[id]
	if s == nil || s.ourEnd || c.server && !s.answered {
		return dst
	}
	at, any := len(dst), false
	for i := range trailers {
		if f := &trailers[i]; !s.connect && !removes(s.removed, f.Name) {
			if !any {
				dst, any = c.beginHead(dst), true
			}
			dst = wire.AppendField(dst, f.Name, f.Value)
		}
	}
	if any {
		dst = c.endHead(dst, at, id, true)
	} else {
		dst = wire.AppendFrame(dst, wire.Data, wire.EndStream, id, 0)
	}
	return c.ended(dst, s)
}

// Reset ends a stream at once: Cancel when nobody wants the response, RefusedStream when nothing was done for the request.
func (c *Conn) Reset(dst []byte, id uint32, code Code) []byte {
	s := c.streams[id]
	if s == nil {
		return dst
	}
	c.out = dst
	c.reset(s, code)
	dst, c.out = c.out, nil
	return dst
}

// Consumed says that n bytes of a body are not held any more, so that the peer may send as many again.
func (c *Conn) Consumed(dst []byte, id uint32, n int) []byte {
	s := c.streams[id]
	if s == nil {
		return dst
	}
	free := min(int64(n), s.unread)
	s.unread -= free
	c.flow.unread -= free
	c.out = dst
	c.giveBack(s, free)
	dst, c.out = c.out, nil
	return dst
}

// Ping appends a PING; its answer is a Pong. Pinged is how many have none.
func (c *Conn) Ping(dst []byte) []byte {
	c.sent.pinged++
	return append(wire.AppendFrame(dst, wire.Ping, 0, 0, wire.PingBytes), make([]byte, wire.PingBytes)...)
}

// Pinged is how many PINGs have no answer.
func (c *Conn) Pinged() int { return c.sent.pinged }

// Drain ends a connection without losing a request (section 6.8). A server says first that it will go, and takes what is on
// its way; when its PING is answered, or Drain is called again, it names the last request that it takes. A
// client opens no more. When Done, the connection can be closed.
func (c *Conn) Drain(dst []byte) []byte {
	switch {
	case c.err != nil || c.sent.drain == draining:
		return dst
	case c.server && c.sent.drain == open:
		c.sent.drain = warned
		return c.Ping(wire.AppendGoAway(dst, maxStream, uint32(NoError)))
	}
	return c.lastGoAway(dst)
}

func (c *Conn) lastGoAway(dst []byte) []byte {
	if c.sent.drain = draining; c.server {
		c.sent.bound = c.got.last
	}
	return wire.AppendGoAway(dst, c.sent.bound, uint32(NoError))
}

// Done says that no stream is open, and none will be.
func (c *Conn) Done() bool {
	return c.err != nil || len(c.streams) == 0 && (c.sent.drain == draining || c.got.goAway && !c.server)
}

func removed(e *http1.Edit) []string {
	if e == nil {
		return nil
	}
	return e.Remove
}

func removes(names []string, name []byte) bool {
	for _, n := range names {
		if grammar.FoldEqual(name, n) {
			return true
		}
	}
	return false
}
