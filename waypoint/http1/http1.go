// Package http1 reads, judges and forwards HTTP/1.1 (RFC 9110, RFC 9112), both
// directions, with hard bounds. It is independent of I/O: bytes go in, cut
// anywhere, events and bytes come out. A Parser reads one direction of a
// connection; an Exchange forwards a client's requests to backends and their
// responses back. docs/http.md says how each ambiguous input is read.
//
// What two readers could read differently is refused with a Reason, never mended:
// a forwarded message is written anew from what was read, so that the next reader
// has one way to read it. The package routes nothing and normalises no path.
//
// Nothing here is safe for concurrent use: a Parser or an Exchange belongs to one
// goroutine at a time.
package http1

import (
	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
	"github.com/heddle-mesh/heddle/waypoint/http1/names"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// Config bounds and places a connection. It is shared by the parsers of many
// connections, and not changed while they use it.
type Config struct {
	// LineBytes bounds a request's target, HeadBytes a whole head with its start line,
	// TrailerBytes a trailer section; Fields is how many of them a head or a trailer
	// section has at most.
	LineBytes, HeadBytes, TrailerBytes, Fields int
	// ExtensionBytes bounds the chunk extensions of one message, which are read and dropped.
	ExtensionBytes int
	// BodyBytes bounds a body, without its coding; 0 is no bound.
	BodyBytes int64
	// Interim is how many 1xx responses may come before one final one.
	Interim int
	// Secure says that clients come over TLS: an absolute-form target must then
	// say https, and http otherwise (RFC 9110 section 7.4).
	Secure bool
	// DefaultHost is the host of an HTTP/1.0 request that names none; when it is
	// empty, such a request is refused.
	DefaultHost string
	// Via is the pseudonym that requests get in their Via field (RFC 9110 section
	// 7.6.3); when it is empty, they get none.
	Via string
}

// Defaults are bounds that real clients and servers stay within.
func Defaults() *Config {
	return &Config{LineBytes: 8 << 10, HeadBytes: 64 << 10, TrailerBytes: 8 << 10, Fields: 100, ExtensionBytes: 4 << 10, Interim: 16}
}

const (
	maxMethodBytes = 32
	maxOptions     = 8  // that a Connection field names, besides those that we know
	maxSizeDigits  = 16 // of a chunk; leading zeros are digits
	maxLength      = 1<<62 - 1
)

// Event is what Next has come to.
type Event uint8

const (
	// More means that all bytes are used, and more are needed.
	More Event = iota
	// HeadRead means that Head is whole.
	HeadRead
	// Data is a part of the body, or of a tunnel.
	Data
	// End is the end of a message. The next byte belongs to the next one.
	End
)

// Body is how the end of a message's body is found (RFC 9112 section 6.3).
type Body uint8

const (
	// NoBody has none.
	NoBody Body = iota
	// Length has Head.Length bytes.
	Length
	// Chunked says its end itself.
	Chunked
	// UntilClose ends with the connection. Only responses can.
	UntilClose
)

// Field is a line of a head or of trailers. Both slices are valid until the next
// call of the parser.
type Field struct {
	Name, Value []byte
	kind        names.Kind
}

// Head is what stands before a body, and what it means. Its slices are valid until
// the next call of the parser.
type Head struct {
	// Method, Target, Host and Path are a request's. Target is as it came, Path what
	// a server wants of it: it begins with "/", or is "*", or empty for CONNECT. Host
	// has a port if the request has one.
	Method, Target, Host, Path []byte
	// Status and Phrase are a response's.
	Status int
	Phrase []byte
	// Minor is the version's: 0 or 1. Of a head that came in HTTP/2 it is 1.
	Minor int
	// Fields are all lines in their order, framing included.
	Fields []Field
	// Body is how the end is found, Length the Content-Length: -1 when there is
	// none. A response without a body may have one (RFC 9110 section 8.6).
	Body   Body
	Length int64
	// Close says that the sender's connection ends with this message.
	Close bool
	// Upgrade says that a request asks for WebSocket, or that a response grants it.
	Upgrade bool
	// Continue says that the client waits for a 100 before it sends the body.
	Continue bool
	// Trailers says that the client wants trailers (RFC 9110 section 10.1.4).
	Trailers bool

	websocket []byte // Sec-WebSocket-Key or -Accept
	options   [maxOptions][]byte
	nominated int    // options
	names     []byte // theirs: trailers are compared with them, too, when the head is gone
	two       bool   // it came in HTTP/2
	copied    []byte // what a copy's slices are of
}

// Interim says whether a response is followed by another one for the same
// request. 101 is not.
func (h *Head) Interim() bool { return h.Status >= 100 && h.Status < 200 && h.Status != 101 }

// Hop says whether a field is about this connection only, and so not forwarded as it is:
// ours to write anew, or named in Connection (RFC 9110 section 7.6.1).
func (h *Head) Hop(f *Field) bool {
	if f.kind >= names.FirstOwned {
		return true
	}
	for _, name := range h.options[:h.nominated] {
		if grammar.FoldEqual(f.Name, name) {
			return true
		}
	}
	return false
}

// reset forgets a message.
func (h *Head) reset() {
	fields := h.Fields
	clear(fields)
	*h = Head{Fields: fields[:0], Length: -1, names: h.names[:0], copied: h.copied[:0]}
}

// Error ends a connection: nothing that comes after it can be read.
type Error struct {
	Reason Reason
	// Response says that a backend sent it, and not a client.
	Response bool
}

// Error names who and why.
func (e *Error) Error() string {
	if e.Response {
		return "http1: response refused: " + e.Reason.String()
	}
	return "http1: request refused: " + e.Reason.String()
}

// Status is what the client is answered: 502 when it was the backend.
func (e *Error) Status() int {
	if e.Response {
		return 502
	}
	return e.Reason.Status()
}

// Reason is why a message is refused.
type Reason = reason.Reason
