package http1

import (
	"errors"
	"strconv"

	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
	"github.com/heddle-mesh/heddle/waypoint/http1/names"
)

// ErrEdit is an edit that would make another message of the one that it changes: bytes that
// a name, a value, a host or a path cannot have, or a field that the engine writes itself.
var ErrEdit = errors.New("http1: an edit that a head cannot have")

// Edit is what is to be changed in a head that is forwarded. The zero value changes nothing.
type Edit struct {
	// Host and Path take the place of a request's; nil leaves them.
	Host, Path []byte
	// Remove are names of fields that are left out, also of the trailers: it is not to be
	// changed until the message has ended.
	Remove []string
	// Add are fields that are added at the end.
	Add []Field
}

// NewField makes a field to be added.
func NewField(name, value string) Field { return Field{Name: []byte(name), Value: []byte(value)} }

// check is what keeps whoever chooses a value from choosing a line break with it. The host
// that a CONNECT goes to has a port.
func (e *Edit) check(connect bool) error {
	if e == nil {
		return nil
	}
	if e.Host != nil {
		if ok, port := grammar.CheckHost(e.Host); !ok || connect && !port {
			return ErrEdit
		}
	}
	if e.Path != nil && (len(e.Path) == 0 || e.Path[0] != '/' || grammar.Span(e.Path, grammar.Target) < len(e.Path) || !grammar.CheckPath(e.Path)) {
		return ErrEdit
	}
	return checkFields(e.Add)
}

func checkFields(fields []Field) error {
	for _, f := range fields {
		k, aliased := names.Of(f.Name)
		if k != names.Other || aliased || len(f.Name) == 0 || grammar.Span(f.Name, grammar.Token) < len(f.Name) || grammar.Span(f.Value, grammar.Value) < len(f.Value) ||
			len(grammar.Trim(f.Value)) < len(f.Value) {
			return ErrEdit
		}
	}
	return nil
}

func (e *Edit) removed() []string {
	if e == nil {
		return nil
	}
	return e.Remove
}

// stays says that a field is not forwarded: it is about the connection, or an edit removes it.
func (h *Head) stays(f *Field, removed []string) bool {
	for _, name := range removed {
		if grammar.FoldEqual(f.Name, name) {
			return true
		}
	}
	return h.Hop(f)
}

// appendFields writes the fields that go on to the next hop, and what an edit adds.
func appendFields(b []byte, h *Head, e *Edit, chunked bool) []byte {
	removed := e.removed()
	for i := range h.Fields {
		switch f := &h.Fields[i]; {
		case (f.kind == names.WebSocketKey || f.kind == names.WebSocketAccept) && !h.Upgrade || h.stays(f, removed):
		case f.kind != names.Trailer:
			b = grammar.AppendField(b, f.Name, f.Value)
		case chunked:
			b = appendTrailer(b, h, f.Value, removed)
		}
	}
	if e != nil {
		for _, f := range e.Add {
			b = grammar.AppendField(b, f.Name, f.Value)
		}
	}
	return b
}

// appendTrailer announces the trailers that are forwarded.
func appendTrailer(b []byte, h *Head, list []byte, removed []string) []byte {
	before := "Trailer: "
	for len(list) > 0 {
		name, rest, _ := grammar.NextToken(list) // checkTrailer has read it
		if list = rest; len(name) > 0 && !h.stays(&Field{Name: name}, removed) {
			b = append(append(b, before...), name...)
			before = ", "
		}
	}
	if before == ", " {
		b = append(b, "\r\n"...)
	}
	return b
}

// appendFraming writes how the end of the body is found.
func appendFraming(b []byte, body Body, length int64) []byte {
	if body == Chunked {
		return append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if length >= 0 {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, length, 10)
		b = append(b, "\r\n"...)
	}
	return b
}

// appendRequest writes a request's head anew, in origin-form but for CONNECT and "*".
func appendRequest(b []byte, h *Head, e *Edit, via string) []byte {
	target, name := h.Path, h.Host
	if e != nil && e.Path != nil && len(h.Path) > 0 && h.Path[0] == '/' {
		target = e.Path
	}
	if e != nil && e.Host != nil {
		name = e.Host
	}
	if len(h.Path) == 0 { // CONNECT
		target = name
	}
	b = append(b, h.Method...)
	b = append(b, ' ')
	b = append(b, target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, name...)
	b = append(b, "\r\n"...)
	b = appendFields(b, h, e, h.Body == Chunked)
	if h.Body != NoBody {
		b = appendFraming(b, h.Body, h.Length)
	}
	if h.Continue {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	if via != "" {
		b = append(h.AppendVia(append(b, "Via: "...), via), "\r\n"...)
	}
	switch {
	case h.Upgrade:
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	case h.Trailers:
		b = append(b, "Connection: TE\r\nTE: trailers\r\n"...)
	}
	return append(b, "\r\n"...)
}

// AppendVia appends a value of Via (RFC 9110 section 7.6.3): the version that the client speaks, and our pseudonym.
func (h *Head) AppendVia(b []byte, pseudonym string) []byte {
	version := [...]string{"1.0 ", "1.1 "}[h.Minor]
	if h.two {
		version = "2.0 "
	}
	return append(append(b, version...), pseudonym...)
}

// appendStatus writes a status line.
func appendStatus[S []byte | string](b []byte, status int, phrase S) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, phrase...)
	return append(b, "\r\n"...)
}

// appendData writes a part of a body.
func appendData(b []byte, body Body, data []byte) []byte {
	if body != Chunked {
		return append(b, data...)
	}
	return grammar.AppendChunk(b, data)
}

// appendEnd writes the end of a body, with trailers if its coding has a place for them.
func appendEnd(b []byte, body Body, p *Parser, removed []string) []byte {
	if body != Chunked {
		return b
	}
	b = append(b, "0\r\n"...)
	for i := range p.Trailers {
		if f := &p.Trailers[i]; !p.Head.stays(f, removed) {
			b = grammar.AppendField(b, f.Name, f.Value)
		}
	}
	return append(b, "\r\n"...)
}
