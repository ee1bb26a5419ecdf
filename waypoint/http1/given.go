package http1

import (
	"bytes"
	"slices"
	"unsafe"

	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
	"github.com/heddle-mesh/heddle/waypoint/http1/names"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// A Head that came in HTTP/2 is made by Begin, CheckField and JudgeRequest or JudgeResponse, by the rules
// of those that come in HTTP/1.1, so that a route, an edit and a backend see no difference.

// Begin makes an empty head of HTTP/2.
func (h *Head) Begin() {
	h.reset()
	h.Minor, h.two = 1, true
}

// CheckField makes a field of what came in HTTP/2. Blanks around a value are no part of it, as in HTTP/1.1: RFC 9113
// section 8.2.1 calls them malformed, and net/http sends them.
func CheckField(name, value []byte) (Field, Reason) {
	if len(name) == 0 || grammar.Span(name, grammar.Token) < len(name) {
		return Field{}, reason.BadFieldName
	}
	k, aliased := names.Of(name)
	if aliased || names.IsAlias(name) {
		return Field{}, reason.AliasedField
	}
	if n := grammar.Span(value, grammar.Value); n < len(value) {
		return Field{}, wrong(value[n], reason.ControlByte)
	}
	return Field{name, grammar.Trim(value), k}, 0
}

// JudgeRequest says what a request means that came in HTTP/2 (RFC 9113 section 8.3.1). An authority or a
// path that did not come is nil; ended says that no body follows.
func (h *Head) JudgeRequest(c *Config, method, authority, path []byte, ended bool) Reason {
	h.Method, h.Target = method, path
	s := said{}
	if r := h.readOwned(&s, false); r != 0 {
		return r
	}
	switch {
	case len(method) > maxMethodBytes:
		return reason.MethodTooLong
	case len(method) == 0 || grammar.Span(method, grammar.Token) < len(method):
		return reason.BadRequestLine
	case len(path) > c.LineBytes:
		return reason.TargetTooLong
	case path == nil:
		h.Target = authority // of a CONNECT
	case len(path) == 0 || path[0] != '/' && string(path) != "*" || grammar.Span(path, grammar.Target) < len(path):
		return reason.BadTarget
	}
	if ok, _ := grammar.CheckHost(authority); authority != nil && !ok {
		return reason.BadHost
	}
	if authority != nil {
		if r := h.agreeOnHost(authority); r != 0 {
			return r
		}
	}
	if h.Host == nil {
		return reason.HostMissing
	}
	if r := h.readTarget(c.Secure); r != 0 {
		return r
	}
	if string(method) == "TRACE" {
		return reason.TraceRefused
	}
	if h.Body, h.Continue = h.bodyOf(ended), s.expect && !ended; path == nil {
		h.Body, h.Continue = NoBody, false // of a CONNECT: what follows is a tunnel's
	}
	if limit := c.BodyBytes; limit > 0 && h.Length > limit {
		return reason.BodyTooLarge
	}
	return 0
}

// AskWebSocket makes the upgrade of HTTP/1.1 of an extended CONNECT that JudgeRequest has judged as a GET (RFC 8441
// section 5), and has no length; with a key of our own: HTTP/2 has none.
func (h *Head) AskWebSocket() {
	h.Body, h.Continue, h.Upgrade, h.websocket = NoBody, false, true, grammar.WebSocketKey()
	h.Fields = append(h.Fields, Field{[]byte("sec-websocket-key"), h.websocket, names.WebSocketKey})
}

// bodyOf is how the end of a body is found that came in HTTP/2, when it is written in HTTP/1.1: there, only chunks
// can be followed by the trailers that a head announces.
func (h *Head) bodyOf(ended bool) Body {
	switch {
	case ended && h.Length < 0:
		return NoBody
	case h.Length >= 0 && (ended || !slices.ContainsFunc(h.Fields, func(f Field) bool { return f.kind == names.Trailer })):
		return Length
	}
	return Chunked
}

// JudgeResponse says what a response means that came in HTTP/2 (section 8.3.2); head says that HEAD was asked.
func (h *Head) JudgeResponse(status int, head, ended bool) Reason {
	h.Status = status
	s := said{}
	if r := h.readOwned(&s, true); r != 0 {
		return r
	}
	switch {
	case status < 100 || status > 599:
		return reason.BadStatusLine
	case status == 101:
		return reason.UpgradeNotAsked // section 8.6
	}
	if status < 200 || status == 204 { // they have no body, and a Content-Length says nothing: END_STREAM does
		h.Length = -1
	}
	if h.Body = h.bodyOf(ended); head || status < 200 || status == 204 || status == 304 || ended && h.Length < 0 {
		h.Body = NoBody
	}
	return 0
}

// Carried says whether a field goes on as it is to a next hop of HTTP/2; removed are the names that an
// edit takes away.
func (h *Head) Carried(f *Field, removed []string) bool {
	switch f.kind {
	case names.WebSocketKey, names.WebSocketAccept:
		return false
	case names.Trailer:
		return len(removed) == 0 && h.nominated == 0 // what it announces may be gone
	}
	return !h.stays(f, removed)
}

// CheckEdit is what Forward and Answer say of an edit, for a head that is written in another version.
func (h *Head) CheckEdit(e *Edit) error { return e.check(len(h.Method) > 0 && len(h.Path) == 0) }

// CheckReply is what Reply says of its status, reason and fields.
func CheckReply(status int, reason string, fields []Field) error {
	if status < 200 || status > 599 || grammar.Span([]byte(reason), grammar.Token) < len(reason) {
		return ErrEdit
	}
	return checkFields(fields)
}

// Held is how many bytes of memory a copy takes that CopyTo has made.
func (h *Head) Held() int {
	return cap(h.copied) + cap(h.names) + cap(h.Fields)*int(unsafe.Sizeof(Field{}))
}

// CopyTo makes of to a head that stays when this one's bytes are gone. It uses to's memory again.
func (h *Head) CopyTo(to *Head) {
	all, b, fields := 0, to.copied[:0], append(to.Fields[:0], h.Fields...)
	*to = *h
	to.Fields, to.names = fields, bytes.Clone(h.names)
	to.parts(func(p *[]byte) { all += len(*p) })
	b = slices.Grow(b, all) // at once: while it grew, slices would keep each size of it
	to.parts(func(p *[]byte) {
		if *p != nil {
			at := len(b)
			b = append(b, *p...)
			*p = b[at:len(b):len(b)]
		}
	})
	to.copied = b
}

// parts calls do with each slice of what was read.
func (h *Head) parts(do func(p *[]byte)) {
	for _, p := range [...]*[]byte{&h.Method, &h.Target, &h.Host, &h.Path, &h.Phrase, &h.websocket} {
		do(p)
	}
	for i := range h.Fields {
		do(&h.Fields[i].Name)
		do(&h.Fields[i].Value)
	}
	for i := range h.options[:h.nominated] {
		do(&h.options[i])
	}
}
