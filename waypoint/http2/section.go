package http2

import (
	"slices"

	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
	"github.com/heddle-mesh/heddle/waypoint/http1/names"
	"github.com/heddle-mesh/heddle/waypoint/http2/wire"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// section is what a block of compressed fields says: a head, or trailers.
type section struct {
	decoder  *hpack.Decoder
	head     http1.Head
	trailers []http1.Field
	trailing bool
	bytes    []byte // what the fields' slices are of, but for
	older    int    // bytes of earlier memory, which was too small for the rest
	split    []byte // a block of ours that is longer than a frame
	size     int    // as section 6.5.2 counts
	fields   int
	wrong    reason.Reason // the first thing that is
	regular  bool          // a field that is no pseudo-header field has come
	cookies  int
	pseudo   [pseudos][]byte
	seen     uint8
}

// The pseudo-header fields (RFC 9113 section 8.3).
const (
	method = iota
	scheme
	authority
	path
	status
	protocol // RFC 8441
	pseudos
)

func (s *section) has(p int) bool { return s.seen&(1<<p) != 0 }

// decode decodes a block, whatever becomes of it: the tables must stay in step (section 4.3).
func (c *Conn) decode(block []byte, trailing bool) reason.Reason {
	s := &c.section
	s.head.Begin()
	s.trailers, s.trailing, s.bytes, s.older, s.size, s.fields, s.wrong = s.trailers[:0], trailing, s.bytes[:0], 0, 0, 0, 0
	s.regular, s.cookies, s.seen, s.pseudo = trailing, 0, 0, [pseudos][]byte{}
	if _, err := s.decoder.Write(block); err != nil {
		return reason.BadCompression
	}
	if err := s.decoder.Close(); err != nil {
		return reason.BadCompression
	}
	if s.cookies > 1 && !trailing && s.wrong == 0 {
		s.joinCookies()
	}
	return 0
}

// emit takes a field from the decoder. What is beyond a bound is counted, and not kept.
func (c *Conn) emit(f hpack.HeaderField) {
	s, m := &c.section, c.config.Messages
	most, tooLarge := m.HeadBytes, reason.HeadTooLarge
	if s.trailing {
		most, tooLarge = m.TrailerBytes, reason.TrailersTooLarge
	}
	s.size += len(f.Name) + len(f.Value) + 32
	if s.size > most {
		s.fault(tooLarge)
	}
	if s.wrong != 0 {
		return
	}
	s.room(len(f.Name) + len(f.Value))
	at := len(s.bytes)
	s.bytes = append(append(s.bytes, f.Name...), f.Value...)
	mid, end := at+len(f.Name), len(s.bytes)
	name, value := s.bytes[at:mid:mid], s.bytes[mid:end:end]
	if len(name) > 0 && name[0] == ':' {
		s.fault(s.takePseudo(name, value))
		return
	}
	if s.fields++; s.fields > m.Fields {
		s.fault(reason.TooManyFields)
		return
	}
	s.regular = true
	s.fault(s.takeField(name, value))
}

// room makes room for n bytes. What is there stays where it is: slices of it would keep it there beside a copy of it, at each time that
// it grows.
func (s *section) room(n int) {
	if cap(s.bytes)-len(s.bytes) < n {
		s.older += cap(s.bytes)
		s.bytes = make([]byte, 0, max(2*cap(s.bytes), n, 512))
	}
}

func (s *section) fault(r reason.Reason) {
	if s.wrong == 0 {
		s.wrong = r
	}
}

func (s *section) takePseudo(name, value []byte) reason.Reason {
	p := 0
	switch string(name) {
	case ":method":
		p = method
	case ":scheme":
		p = scheme
	case ":authority":
		p = authority
	case ":path":
		p = path
	case ":status":
		p = status
	case ":protocol":
		p = protocol
	default:
		return reason.BadPseudo
	}
	if s.has(p) || s.regular {
		return reason.BadPseudo
	}
	s.seen |= 1 << p
	s.pseudo[p] = value
	return 0
}

// takeField takes an ordinary field (section 8.2).
func (s *section) takeField(name, value []byte) reason.Reason {
	for _, b := range name {
		if b >= 'A' && b <= 'Z' {
			return reason.UpperCaseName
		}
	}
	switch string(name) {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return reason.ConnectionField // section 8.2.2
	case "te":
		if !grammar.FoldEqual(value, "trailers") {
			return reason.ConnectionField
		}
	case "sec-websocket-key": // it is HTTP/1.1's (RFC 8441 section 5)
		return 0
	case "cookie":
		if s.cookies++; s.cookies > 1 { // a browser sends many, which are one
			s.fields--
		}
	}
	f, r := http1.CheckField(name, value)
	switch {
	case r != 0:
		return r
	case !s.trailing:
		s.head.Fields = append(s.head.Fields, f)
	case !names.MayTrail(name):
		return reason.BadTrailer
	default:
		s.trailers = append(s.trailers, f)
	}
	return 0
}

// joinCookies makes one field of crumbs (section 8.2.3): HTTP/1.1 has one, and a route sees one. Empty ones say nothing.
func (s *section) joinCookies() {
	s.room(s.size) // which is more than they are
	at, cookie, left := len(s.bytes), -1, s.head.Fields[:0]
	for _, f := range s.head.Fields {
		if string(f.Name) != "cookie" {
			left = append(left, f)
			continue
		}
		if cookie < 0 {
			cookie, left = len(left), append(left, f)
		}
		if len(s.bytes) > at && len(f.Value) > 0 {
			s.bytes = append(s.bytes, "; "...)
		}
		s.bytes = append(s.bytes, f.Value...)
	}
	s.head.Fields = left
	left[cookie].Value = s.bytes[at:len(s.bytes):len(s.bytes)]
}

// headers reads the beginning of a head.
func (c *Conn) headers(b []byte) (Step, reason.Reason) {
	b, r := c.cutPadding(b)
	if r != 0 {
		return Step{}, r
	}
	id, end := c.frame.stream(), c.frame.has(wire.EndStream)
	if c.frame.has(wire.EndHeaders) {
		return c.fields(id, end, b)
	}
	c.block = block{open: true, end: end, id: id, bytes: append(c.block.bytes[:0], b...), frames: 1}
	return Step{}, 0
}

// continuation reads the rest of it, which is bounded while it comes.
func (c *Conn) continuation(b []byte) (Step, reason.Reason) {
	c.block.frames++
	if c.block.frames > c.config.HeadFrames || len(c.block.bytes)+len(b) > c.config.Messages.HeadBytes+wire.MaxFrame {
		return Step{}, reason.HeadFlood
	}
	c.block.bytes = append(c.block.bytes, b...)
	if !c.frame.has(wire.EndHeaders) {
		return Step{}, 0
	}
	c.block.open = false
	return c.fields(c.block.id, c.block.end, c.block.bytes)
}

// fields finds out what a block is.
func (c *Conn) fields(id uint32, end bool, block []byte) (Step, reason.Reason) {
	s := c.streams[id]
	trailing := s != nil && (c.server || s.answered)
	if r := c.decode(block, trailing); r != 0 {
		return Step{}, r
	}
	switch {
	case s != nil && s.theirEnd:
		return c.fail(s, reason.StreamClosed)
	case trailing:
		return c.trailers(s, end)
	case s != nil:
		return c.response(s, end)
	case id%2 == 0 || !c.server && c.idle(id):
		return Step{}, reason.BadStream // section 5.1.1
	case c.server && c.idle(id):
		return c.request(id, end)
	case c.resetLately(id):
		return Step{}, c.spend(reason.ClosedFlood)
	}
	return Step{}, reason.StreamClosed
}

func (c *Conn) request(id uint32, end bool) (Step, reason.Reason) {
	c.got.last = id
	s := c.add(id)
	// Beyond the last one that our GOAWAY has named, or beyond the limit.
	if c.sent.drain == draining || len(c.streams) > c.config.Streams {
		c.reset(s, RefusedStream)
		return Step{Event: Refused, Stream: id, Err: &Error{id, reason.TooManyStreams, RefusedStream, false}}, c.spend(reason.RefusedFlood)
	}
	h := &c.section.head
	s.head, s.connect = string(c.section.pseudo[method]) == "HEAD", string(c.section.pseudo[method]) == "CONNECT"
	s.theirEnd = end
	if r := c.judgeRequest(end); r != 0 {
		step := c.refuse(s, r)
		step.Event = Refused
		return step, 0
	}
	s.left, s.expects = h.Length, h.Continue
	if end {
		c.got.ending = id
	}
	return Step{Event: HeadRead, Stream: id, Head: h}, 0
}

// judgeRequest judges what http1 does not know of (section 8.3.1).
func (c *Conn) judgeRequest(end bool) reason.Reason {
	s := &c.section
	if s.wrong != 0 {
		return s.wrong
	}
	name, extended := s.pseudo[method], s.has(protocol)
	connect := string(name) == "CONNECT" && !extended
	switch {
	case s.has(status) || !s.has(method), extended && (string(name) != "CONNECT" || !s.has(authority)): // RFC 8441 section 4
		return reason.BadPseudo
	case extended && !grammar.FoldEqual(s.pseudo[protocol], "websocket"):
		return reason.BadUpgrade
	case connect && (s.has(scheme) || s.has(path) || !s.has(authority)): // section 8.5
		return reason.BadPseudo
	case connect:
	case !s.has(scheme) || !s.has(path) || len(s.pseudo[path]) == 0:
		return reason.BadPseudo
	case !grammar.FoldEqual(s.pseudo[scheme], "http") && !grammar.FoldEqual(s.pseudo[scheme], "https"):
		return reason.BadScheme
	}
	host, target := s.pseudo[authority], s.pseudo[path]
	if s.has(authority) && host == nil {
		host = []byte{}
	}
	if extended {
		name = []byte("GET")
	}
	if r := s.head.JudgeRequest(c.config.Messages, name, host, target, end); r != 0 {
		return r
	}
	switch {
	case (extended || connect) && s.head.Length >= 0:
		return reason.BodyNotAllowed
	case end && s.head.Length > 0:
		return reason.LengthDiffers
	case extended:
		if !slices.ContainsFunc(s.head.Fields, func(f http1.Field) bool { return string(f.Name) == "sec-websocket-version" }) {
			s.head.Fields = append(s.head.Fields, http1.NewField("sec-websocket-version", "13"))
		}
		s.head.AskWebSocket()
	}
	return 0
}

func (c *Conn) response(s *stream, end bool) (Step, reason.Reason) {
	h := &c.section.head
	r := c.judgeResponse(s, end)
	if r == 0 && h.Interim() {
		if s.interim++; s.interim > c.config.Messages.Interim {
			r = reason.TooManyInterim
		}
	}
	if r != 0 {
		return c.fail(s, r)
	}
	step := Step{Event: HeadRead, Stream: s.id, Head: h}
	if h.Interim() {
		return step, 0
	}
	s.answered, s.left = true, h.Length
	switch {
	case s.connect && h.Status < 300:
		s.left, s.tunnel = -1, true
	case s.head || h.Status == 204 || h.Status == 304:
		s.left = 0
	}
	if end {
		c.got.ending = s.id
	}
	return step, 0
}

func (c *Conn) judgeResponse(s *stream, end bool) reason.Reason {
	sec := &c.section
	switch {
	case sec.wrong != 0:
		return sec.wrong
	case sec.seen != 1<<status:
		return reason.BadPseudo // section 8.3.2
	}
	digits := sec.pseudo[status]
	if len(digits) != 3 || grammar.Span(digits, grammar.Hex) < 3 || digits[0] > '9' || digits[1] > '9' || digits[2] > '9' {
		return reason.BadStatusLine
	}
	number := int(digits[0]-'0')*100 + int(digits[1]-'0')*10 + int(digits[2]-'0')
	if r := sec.head.JudgeResponse(number, s.head, end); r != 0 {
		return r
	}
	h := &sec.head
	switch {
	case end && h.Interim():
		return reason.LengthDiffers // section 8.1: a final one is to come
	case end && h.Length > 0 && !s.head && h.Status != 304:
		return reason.LengthDiffers
	}
	return 0
}

// trailers reads the fields behind a body (section 8.1).
func (c *Conn) trailers(s *stream, end bool) (Step, reason.Reason) {
	switch {
	case !end:
		return c.fail(s, reason.SecondHead)
	case c.section.wrong != 0:
		return c.fail(s, c.section.wrong)
	case s.left > 0:
		return c.fail(s, reason.LengthDiffers)
	case s.connect:
		return c.fail(s, reason.BadTrailer) // section 8.5
	}
	return c.theyEnd(s, c.section.trailers), 0
}
