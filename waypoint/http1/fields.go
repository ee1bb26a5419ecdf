package http1

import (
	"bytes"
	"slices"

	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
)

// kind is which field a line is, as far as we must know.
type kind uint8

const (
	other kind = iota
	webSocketKey
	webSocketAccept
	trailer
	// What follows is never copied: it is about one connection, or we write it anew.
	firstOwned
	host kind = iota - 1
	contentLength
	transferEncoding
	connection
	keepAlive
	proxyConnection
	te
	upgrade
	http2Settings
	expect
	heddleReason
)

// kindOf finds out which field a name is. Aliased says that it would be one that we
// act upon if its odd bytes were "-": CGI, and what came after it, cannot tell those apart.
func kindOf(name []byte) (k kind, aliased bool) {
	var known string
	switch len(name) {
	case 2:
		k, known = te, "te"
	case 4:
		k, known = host, "host"
	case 6:
		k, known = expect, "expect"
	case 7:
		if grammar.Lower(name[0]) == 'u' {
			k, known = upgrade, "upgrade"
		} else {
			k, known = trailer, "trailer"
		}
	case 10:
		if grammar.Lower(name[0]) == 'c' {
			k, known = connection, "connection"
		} else {
			k, known = keepAlive, "keep-alive"
		}
	case 14:
		if grammar.Lower(name[0]) == 'c' {
			k, known = contentLength, "content-length"
		} else {
			k, known = http2Settings, "http2-settings"
		}
	case 15:
		k, known = heddleReason, "x-heddle-reason"
	case 16:
		k, known = proxyConnection, "proxy-connection"
	case 17:
		if grammar.Lower(name[0]) == 't' {
			k, known = transferEncoding, "transfer-encoding"
		} else {
			k, known = webSocketKey, "sec-websocket-key"
		}
	case 20:
		k, known = webSocketAccept, "sec-websocket-accept"
	default:
		return other, false
	}
	for i, c := range name {
		if known[i] == '-' && grammar.IsOdd(c) {
			aliased = true
		} else if grammar.Lower(c) != known[i] {
			return other, false
		}
	}
	return k, aliased
}

// isProtected says whether a field is for all recipients, or says who the client is,
// so that no connection may take it away by naming it in its Connection field.
func isProtected(name []byte) bool {
	if k, _ := kindOf(name); k == host || k == contentLength || k == transferEncoding || k == expect {
		return true
	}
	if grammar.HasFoldPrefix(name, "content-") || grammar.HasFoldPrefix(name, "x-forwarded-") || grammar.HasFoldPrefix(name, "sec-") {
		return true
	}
	for _, known := range [...]string{"authorization", "cookie", "set-cookie", "forwarded", "x-real-ip", "cache-control", "origin", "traceparent", "baggage", "via", "date"} {
		if grammar.FoldEqual(name, known) {
			return true
		}
	}
	return false
}

// isAlias says whether a name that is not known would be protected if its odd bytes were "-":
// whoever strips what says who the client is, strips it under its own name only.
func isAlias(name []byte) bool {
	if !slices.ContainsFunc(name, grammar.IsOdd) {
		return false
	}
	var few [64]byte // most names
	return isProtected(grammar.Dashed(few[:0], name))
}

// line is where a field's parts are in its head, while that may still move.
type line struct {
	name, nameEnd, value, valueEnd uint32
	kind                           kind
}

// readField reads one line of a head or of trailers, which begins at an offset.
func readField(text []byte, at int) (line, Reason) {
	n := grammar.Span(text, grammar.Token)
	switch {
	case grammar.IsBlank(text[0]):
		return line{}, ObsFold
	case n == len(text):
		return line{}, BadFieldLine // no colon
	case grammar.IsBlank(text[n]) && n > 0:
		return line{}, SpaceBeforeColon
	case text[n] != ':' || n == 0:
		return line{}, wrong(text[n], BadFieldName)
	}
	k, aliased := kindOf(text[:n])
	if aliased || isAlias(text[:n]) {
		return line{}, AliasedField
	}
	value := grammar.Trim(text[n+1:])
	if good := grammar.Span(value, grammar.Value); good < len(value) {
		return line{}, wrong(value[good], ControlByte)
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
			return BadConnection
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
		case isProtected(name):
			return ProtectedOption
		case h.nominated == maxOptions:
			return BadConnection
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
		return ContentLengthTwice
	}
	if len(v) == 0 || len(v) > 1 && v[0] == '0' {
		return BadContentLength
	}
	n := int64(0)
	for _, c := range v {
		if c < '0' || c > '9' {
			return BadContentLength
		}
		if n > (maxLength-9)/10 {
			return BodyTooLarge
		}
		n = n*10 + int64(c-'0')
	}
	h.Length = n
	return 0
}

// readCoding reads a Transfer-Encoding (RFC 9112 section 6.1): we know chunked, alone.
func (h *Head) readCoding(v []byte) Reason {
	if h.Body == Chunked {
		return BadTransferCoding
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
		return BadTransferCoding
	}
	codings := 0
	for len(before) > 0 {
		coding, rest, ok := grammar.NextToken(before)
		if !ok || grammar.FoldEqual(coding, "chunked") || grammar.FoldEqual(coding, "identity") {
			return BadTransferCoding
		}
		if before = rest; len(coding) > 0 {
			codings++
		}
	}
	if codings == 0 {
		return BadTransferCoding
	}
	return UnknownCoding
}

// checkTrailer refuses a Trailer field that announces what cannot be a trailer.
func checkTrailer(list []byte) Reason {
	for len(list) > 0 {
		name, rest, ok := grammar.NextToken(list)
		if !ok || len(name) > 0 && !mayTrail(name) {
			return BadTrailer
		}
		list = rest
	}
	return 0
}

// mayTrail says whether a field may come after a body: not what is about framing, routing,
// authentication or the content, modifies a request or controls a response (RFC 9110 section
// 6.5.1), and no alias of it.
func mayTrail(name []byte) bool {
	var few [64]byte
	dashed := grammar.Dashed(few[:0], name)
	if k, _ := kindOf(dashed); k != other || isProtected(dashed) {
		return false
	}
	for _, prefix := range [...]string{"proxy-", "if-", "accept-", "x-original-", "x-rewrite-", "x-http-method", "x-method-"} {
		if grammar.HasFoldPrefix(dashed, prefix) {
			return false
		}
	}
	for _, known := range [...]string{"www-authenticate", "max-forwards", "range", "accept", "pragma", "x-host", "age", "expires", "location", "retry-after", "vary"} {
		if grammar.FoldEqual(dashed, known) {
			return false
		}
	}
	return true
}
