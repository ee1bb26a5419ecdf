package http1

import (
	"bytes"

	"github.com/heddle-mesh/heddle/waypoint/http1/names"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

type state uint8

const (
	atHead state = iota
	inLength
	inUntilClose
	inChunkSize
	inChunk
	inChunkEnd
	inTrailers
	ended
	inTunnel
)

// Asked is what a response answers: its end cannot be found without it (RFC 9112
// section 6.3).
type Asked struct {
	// Head and Connect are the method, if it is one of them.
	Head, Connect bool
	// Accept is the Sec-WebSocket-Accept that a 101 must have; it is empty when no
	// upgrade was asked for.
	Accept string
}

// Parser reads one direction of a connection. Make it with NewRequests or
// NewResponses. It holds memory for a head or a line that has begun and not ended,
// bounded by its Config, and what Release gives back.
type Parser struct {
	// Head is the last message's, whole since its HeadRead.
	Head Head
	// Trailers came after the last message's body; they are valid at its End, until the
	// next call.
	Trailers []Field

	config    *Config
	responses bool
	asked     *Asked // nil when nothing is
	state     state
	started   bool // the start line is read
	start     start
	lines     []line
	buf       []byte // a head or a line that is not whole yet
	at        int    // where in its head the next line begins; in the end of a chunk, how much of it came
	left      int64  // bytes of the body, or of a chunk
	body      int64  // bytes of chunks so far
	extension int    // bytes of chunk extensions so far
	count     int    // empty lines before a request; 1xx before a response
	err       *Error
}

// NewRequests reads what a client sends.
func NewRequests(c *Config) Parser { return Parser{config: c} }

// NewResponses reads what a backend sends; Ask says what for.
func NewResponses(c *Config) Parser { return Parser{config: c, responses: true} }

// Ask says what the next response answers. Bytes that come without it are refused.
func (p *Parser) Ask(a *Asked) { p.asked, p.count = a, 0 }

// Next reads on, to the next event. It uses n bytes of in, and none after a message's
// End; data is a part of in. It is to be called until it says More, with the bytes that
// were not used, also when there are none. After an error it stays at that.
func (p *Parser) Next(in []byte) (e Event, data []byte, n int, err error) {
	if p.err != nil {
		return More, nil, 0, p.err
	}
	e, data, n, r := p.next(in)
	if r != 0 {
		p.err = &Error{Reason: r, Response: p.responses}
		return More, nil, n, p.err
	}
	return e, data, n, nil
}

func (p *Parser) next(in []byte) (e Event, data []byte, n int, r Reason) {
	for {
		switch rest := in[n:]; p.state {
		case atHead:
			k, whole, r := p.readHead(rest)
			if n += k; r != 0 || !whole {
				return More, nil, n, r
			}
			return HeadRead, nil, n, 0
		case inLength, inChunk:
			if p.left > 0 {
				return p.readBody(rest, n)
			}
			if p.state == inLength {
				p.state = ended
			} else {
				p.state, p.at = inChunkEnd, 0
			}
		case inUntilClose, inTunnel:
			if len(rest) == 0 {
				return More, nil, n, 0
			}
			return Data, rest, len(in), 0
		case inChunkEnd:
			if len(rest) == 0 {
				return More, nil, n, 0
			}
			if n++; rest[0] != "\r\n"[p.at] {
				return More, nil, n, badChunkEnd(rest[0], p.at)
			}
			if p.at++; p.at == 2 {
				p.state = inChunkSize
			}
		case inChunkSize:
			k, whole, r := p.readChunkSize(rest)
			if n += k; r != 0 || !whole {
				return More, nil, n, r
			}
		case inTrailers:
			k, whole, r := p.readTrailers(rest)
			if n += k; r != 0 || !whole {
				return More, nil, n, r
			}
		case ended:
			p.begin()
			p.asked, p.count = nil, 0
			return End, nil, n, 0
		}
	}
}

// readBody hands on what there is of a body or a chunk, n bytes into what Next was given.
func (p *Parser) readBody(rest []byte, n int) (Event, []byte, int, Reason) {
	if len(rest) == 0 {
		return More, nil, n, 0
	}
	rest = rest[:min(int64(len(rest)), p.left)]
	p.left -= int64(len(rest))
	return Data, rest, n + len(rest), 0
}

// begin is ready for the next head.
func (p *Parser) begin() {
	p.state, p.started, p.at, p.lines, p.buf = atHead, false, 0, p.lines[:0], p.buf[:0]
	p.body, p.extension = 0, 0
}

// restart forgets a message that did not end well: the next bytes are another connection's.
func (p *Parser) restart() {
	p.begin()
	p.err = nil
}

// EOF says that the connection has ended: that is the End of a message, More
// when none had begun, or an error.
func (p *Parser) EOF() (Event, error) {
	switch {
	case p.err != nil:
		return More, p.err
	case p.state == inUntilClose || p.state == inTunnel:
		p.begin()
		p.asked = nil
		return End, nil
	case p.state != atHead || p.started || len(p.buf) > 0 || p.asked != nil:
		p.err = &Error{Reason: reason.Truncated, Response: p.responses}
		return More, p.err
	}
	return More, nil
}

// Tunnel makes the parser hand on whatever comes: the request that it has read to
// its end was answered with 101, or was a CONNECT that was answered with 2xx.
func (p *Parser) Tunnel() { p.state = inTunnel }

// Held is the number of bytes of memory behind the parser.
func (p *Parser) Held() int {
	const lineBytes, fieldBytes = 20, 56
	return cap(p.buf) + cap(p.Head.names) + cap(p.lines)*lineBytes + (cap(p.Head.Fields)+cap(p.Trailers))*fieldBytes
}

// Release gives that memory back between two messages; within one it keeps it.
func (p *Parser) Release() {
	if p.state == atHead && !p.started && len(p.buf) == 0 {
		p.buf, p.lines, p.Trailers, p.Head = nil, nil, nil, Head{}
	}
}

// readSection reads lines up to an empty one; base is where they are then. Lines
// are read where they lie, and kept only when in ends among them.
func (p *Parser) readSection(in []byte, most int, tooLarge Reason) (base []byte, n int, whole bool, r Reason) {
	from := 0 // what is before it is in buf already
	for {
		i := bytes.IndexByte(in[n:], '\n')
		end := n + i + 1
		if i < 0 {
			end = len(in)
		}
		size := len(p.buf) + end - from
		if !p.started && !p.responses && size > p.config.LineBytes+maxMethodBytes+len("  HTTP/1.1\r\n") {
			return nil, end, false, reason.TargetTooLong
		}
		if size > most {
			return nil, end, false, tooLarge
		}
		base = in[from:end]
		if len(p.buf) > 0 || i < 0 {
			p.buf = append(p.buf, base...)
			base, from = p.buf, end
		}
		if n = end; i < 0 {
			return nil, n, false, 0
		}
		if whole, r = p.readLine(base); whole || r != 0 {
			return base, n, whole, r
		}
		if p.at == 0 { // an empty line, and the head has not begun
			from, p.buf = n, p.buf[:0]
		}
	}
}

// readLine reads the line at the end of base. An empty one is the section's end.
func (p *Parser) readLine(base []byte) (end bool, r Reason) {
	text := base[p.at : len(base)-1]
	if len(text) == 0 || text[len(text)-1] != '\r' {
		return false, reason.BareLF
	}
	text = text[:len(text)-1]
	at := p.at
	switch {
	case len(text) == 0 && p.started:
		return true, 0
	case len(text) == 0:
		// A server should ignore at least one (RFC 9112 section 2.2): one it is.
		if p.count++; p.responses || p.count > 1 {
			return false, reason.EmptyLines
		}
		return false, 0
	case p.started && len(p.lines) == p.config.Fields:
		return false, reason.TooManyFields
	case p.started:
		l, r := readField(text, at)
		if r != 0 {
			return false, r
		}
		p.lines = append(p.lines, l)
	case p.responses:
		p.start, r = readStatusLine(text, at)
	default:
		p.start, r = readRequestLine(text, at, p.config.LineBytes)
	}
	p.at, p.started = len(base), true
	return false, r
}

// readHead reads a head and finds out what it means.
func (p *Parser) readHead(in []byte) (n int, whole bool, r Reason) {
	if p.responses && p.asked == nil {
		if len(in) == 0 {
			return 0, false, 0
		}
		return 0, false, reason.Unsolicited
	}
	base, n, whole, r := p.readSection(in, p.config.HeadBytes, reason.HeadTooLarge)
	if r != 0 || !whole {
		return n, false, r
	}
	h := &p.Head
	h.reset()
	p.Trailers = p.Trailers[:0]
	h.Fields = materialise(h.Fields, p.lines, base)
	h.Minor, h.Status = p.start.minor, p.start.status
	second := base[p.start.second:p.start.secondEnd]
	p.begin()
	if p.responses {
		h.Phrase = second
		return n, true, p.judgeResponse()
	}
	h.Method, h.Target = base[:p.start.firstEnd], second
	return n, true, p.judgeRequest()
}

// readTrailers reads the trailer section of a chunked body (RFC 9112 section 7.1.2).
func (p *Parser) readTrailers(in []byte) (n int, whole bool, r Reason) {
	base, n, whole, r := p.readSection(in, p.config.TrailerBytes, reason.TrailersTooLarge)
	if r != 0 || !whole {
		return n, false, r
	}
	p.Trailers = materialise(p.Trailers[:0], p.lines, base)
	for _, f := range p.Trailers {
		if !names.MayTrail(f.Name) {
			return n, false, reason.BadTrailer
		}
	}
	p.state = ended
	return n, true, 0
}
