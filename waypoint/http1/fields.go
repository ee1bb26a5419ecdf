package http1

import (
	"bytes"

	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
	"github.com/heddle-mesh/heddle/waypoint/http1/names"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// line is where a field's parts are in its head, while that may still move.
type line struct {
	name, nameEnd, value, valueEnd uint32
	kind                           names.Kind
}

// readField reads one line of a head or of trailers, which begins at an offset.
func readField(text []byte, at int) (line, Reason) {
	n := grammar.Span(text, grammar.Token)
	switch {
	case grammar.IsBlank(text[0]):
		return line{}, reason.ObsFold
	case n == len(text):
		return line{}, reason.BadFieldLine // no colon
	case grammar.IsBlank(text[n]) && n > 0:
		return line{}, reason.SpaceBeforeColon
	case text[n] != ':' || n == 0:
		return line{}, wrong(text[n], reason.BadFieldName)
	}
	k, aliased := names.Of(text[:n])
	if aliased || names.IsAlias(text[:n]) {
		return line{}, reason.AliasedField
	}
	value := grammar.Trim(text[n+1:])
	if good := grammar.Span(value, grammar.Value); good < len(value) {
		return line{}, wrong(value[good], reason.ControlByte)
	}
	from := n + 1 + grammar.Blanks(text[n+1:])
	return line{uint32(at), uint32(at + n), uint32(at + from), uint32(at + from + len(value)), k}, 0
}

// materialise makes fields of lines, when their head moves no more.
func materialise(fields []Field, lines []line, base []byte) []Field {
	for _, l := range lines {
		fields = append(fields, Field{base[l.name:l.nameEnd:l.nameEnd], base[l.value:l.valueEnd:l.valueEnd], l.kind})
	}
	return fields
}

// readConnection reads the options (RFC 9110 section 7.6.1).
func (h *Head) readConnection(list []byte, c *options) Reason {
	for len(list) > 0 {
		name, rest, ok := grammar.NextToken(list)
		if !ok {
			return reason.BadConnection
		}
		list = rest
		switch {
		case len(name) == 0:
		case grammar.FoldEqual(name, "close"):
			c.close = true
		case grammar.FoldEqual(name, "keep-alive"):
			c.keep = true
		case grammar.FoldEqual(name, "upgrade"):
			c.upgrade = true
		case names.IsProtected(name):
			return reason.ProtectedOption
		case h.nominated == maxOptions:
			return reason.BadConnection
		default:
			at := len(h.names)
			h.names = append(h.names, name...)
			h.options[h.nominated] = h.names[at:]
			h.nominated++
		}
	}
	return 0
}

// options are what a Connection field says to us.
type options struct{ close, keep, upgrade bool }

// readLength reads a Content-Length: digits, without leading zeros, once (RFC
// 9110 section 8.6).
func (h *Head) readLength(v []byte) Reason {
	if h.Length >= 0 {
		return reason.ContentLengthTwice
	}
	if len(v) == 0 || len(v) > 1 && v[0] == '0' {
		return reason.BadContentLength
	}
	n := int64(0)
	for _, c := range v {
		if c < '0' || c > '9' {
			return reason.BadContentLength
		}
		if n > (maxLength-9)/10 {
			return reason.BodyTooLarge
		}
		n = n*10 + int64(c-'0')
	}
	h.Length = n
	return 0
}

// readCoding reads a Transfer-Encoding (RFC 9112 section 6.1): we know chunked, alone.
func (h *Head) readCoding(v []byte) Reason {
	if h.Body == Chunked {
		return reason.BadTransferCoding
	}
	if grammar.FoldEqual(v, "chunked") {
		h.Body = Chunked
		return 0
	}
	last, before := v, []byte(nil)
	if i := bytes.LastIndexByte(v, ','); i >= 0 {
		before, last = v[:i], grammar.Trim(v[i+1:])
	}
	if !grammar.FoldEqual(last, "chunked") {
		return reason.BadTransferCoding
	}
	codings := 0
	for len(before) > 0 {
		coding, rest, ok := grammar.NextToken(before)
		if !ok || grammar.FoldEqual(coding, "chunked") || grammar.FoldEqual(coding, "identity") {
			return reason.BadTransferCoding
		}
		if before = rest; len(coding) > 0 {
			codings++
		}
	}
	if codings == 0 {
		return reason.BadTransferCoding
	}
	return reason.UnknownCoding
}

// checkTrailer refuses a Trailer field that announces what cannot be a trailer.
func checkTrailer(list []byte) Reason {
	for len(list) > 0 {
		name, rest, ok := grammar.NextToken(list)
		if !ok || len(name) > 0 && !names.MayTrail(name) {
			return reason.BadTrailer
		}
		list = rest
	}
	return 0
}
