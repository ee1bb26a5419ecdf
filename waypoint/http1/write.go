package http1

import (
	"errors"
	"strconv"

	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
)

// ErrEdit is an edit that would make another message of the one that it changes: bytes that
// a name, a value, a host or a path cannot have, or a field that the engine writes itself.
var ErrEdit = errors.New("http1: an edit that a head cannot have")

// Edit is what is to be changed in a head that is forwarded. The zero value changes nothing.
type Edit struct {
	// Host and Path take the place of a request's; nil leaves them.
	Host, Path []byte
	// Remove are names of fields that are left out.
	Remove []string
	// Add are fields that are added at the end.
	Add []Field
}

// NewField makes a field to be added.
func NewField(name, value string) Field { return Field{Name: []byte(name), Value: []byte(value)} }

// check is what keeps whoever chooses a value from choosing a line break with it.
func (e *Edit) check() error {
	if e == nil {
		return nil
	}
	if e.Host != nil {
		if ok, _ := grammar.CheckHost(e.Host); !ok {
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
		k, aliased := kindOf(f.Name)
		if k != other || aliased || len(f.Name) == 0 || grammar.Span(f.Name, grammar.Token) < len(f.Name) || grammar.Span(f.Value, grammar.Value) < len(f.Value) ||
			len(grammar.Trim(f.Value)) < len(f.Value) {
			return ErrEdit
		}
	}
	return nil
}

func (e *Edit) removes(name []byte) bool {
	if e == nil {
		return false
	}
	for _, removed := range e.Remove {
		if grammar.FoldEqual(name, removed) {
			return true
		}
	}
	return false
}

func appendField(b, name, value []byte) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// appendFields writes the fields that go on to the next hop, and what an edit adds.
func appendFields(b []byte, h *Head, e *Edit, chunked bool) []byte {
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.kind == trailer && !chunked || (f.kind == webSocketKey || f.kind == webSocketAccept) && !h.Upgrade || h.Hop(f) || e.removes(f.Name) {
			continue
		}
		b = appendField(b, f.Name, f.Value)
	}
	if e != nil {
		for _, f := range e.Add {
			b = appendField(b, f.Name, f.Value)
		}
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
		b = append(b, "Via: 1."...)
		b = append(b, '0'+byte(h.Minor), ' ')
		b = append(b, via...)
		b = append(b, "\r\n"...)
	}
	switch {
	case h.Upgrade:
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	case h.Trailers:
		b = append(b, "Connection: TE\r\nTE: trailers\r\n"...)
	}
	return append(b, "\r\n"...)
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
	b = strconv.AppendUint(b, uint64(len(data)), 16)
	b = append(b, "\r\n"...)
	b = append(b, data...)
	return append(b, "\r\n"...)
}

// appendEnd writes the end of a body, with trailers if its coding has a place for them.
func appendEnd(b []byte, body Body, trailers []Field) []byte {
	if body != Chunked {
		return b
	}
	b = append(b, "0\r\n"...)
	for _, f := range trailers {
		b = appendField(b, f.Name, f.Value)
	}
	return append(b, "\r\n"...)
}
