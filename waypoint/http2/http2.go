// Package http2 reads, judges and writes HTTP/2 (RFC 9113), as a server for clients and as a client for
// backends, with hard bounds. Like http1 it is independent of I/O: bytes go in, cut anywhere, events and bytes
// come out. It has no bodies: what comes is handed on where it lies, and what a peer's windows do
// not let out stays with whoever has it. docs/http.md says how each ambiguous input is read.
//
// Messages are http1's: a Head that a Conn has read can be edited, routed and written in either version, and is
// judged by the rules of both. What a peer does too much of ends its connection, with a Reason.
//
// Nothing here is safe for concurrent use: a Conn belongs to one goroutine at a time.
package http2

import (
	"errors"
	"fmt"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// Preface is what every client's connection begins with (RFC 9113 section 3.4). No request of
// HTTP/1.1 does: its first bytes tell the versions apart.
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Config bounds a connection. It is shared by many, and not changed while they use it.
type Config struct {
	// Messages bounds what both versions have: a target, a head, its fields, trailers, a body, 1xx
	// responses. A head's bytes are counted as RFC 9113 section 6.5.2 does, with 32 for each field.
	Messages *http1.Config
	// Streams is how many streams may be open at a time. A server refuses more, and a client
	// opens as many, or fewer when its server says so.
	Streams int
	// Window is how many bytes of a stream may have come that Consumed has not been told of, and
	// so is what the owner may have to hold: Streams times Window. Those of the whole connection, ConnWindow, are
	// given back as they come, so that no stream waits for another's reader. Both are from 1 to 2^31-1.
	Window, ConnWindow int
	// HeadFrames is in how many frames a head may come.
	HeadFrames int
	// Table is the size of the table that a peer may compress heads with (RFC 7541 section 4.2), in bytes. A peer
	// may have 4 KiB before it knows of it, so that is the least that is held.
	Table int
	// Rates bound what costs a peer little and us work, from reason.RapidReset on.
	Rates [Floods]Rate
}

// Floods is how many kinds of frames have a rate.
const Floods = int(reason.ClosedFlood-firstFlood) + 1

const firstFlood = reason.RapidReset

// Rate is how often something may happen on one connection: Burst times at once, and PerSecond times in the long run.
// What a connection is for, a request that ends well, bytes that we sent, makes room for more.
type Rate struct{ Burst, PerSecond float64 }

// Defaults are bounds that real clients and servers stay within.
func Defaults() *Config {
	c := &Config{Messages: http1.Defaults(), Streams: 100, Window: 64 << 10, ConnWindow: 1 << 20, HeadFrames: 16, Table: 4 << 10}
	for r, rate := range map[reason.Reason]Rate{
		reason.RapidReset:    {400, 100},  // streams that a client resets
		reason.MadeYouReset:  {100, 20},   // streams that a peer's fault made us reset
		reason.RefusedFlood:  {400, 100},  // streams beyond Streams
		reason.SettingsFlood: {50, 2},     // each is to be acknowledged
		reason.PingFlood:     {200, 20},   // likewise; a frame of DATA that we sent earns one
		reason.EmptyFlood:    {100, 20},   // DATA without bytes, and without an end
		reason.UpdateFlood:   {2000, 200}, // WINDOW_UPDATE; what we sent earns some
		reason.IdleFlood:     {1000, 100}, // PRIORITY, unknown frames
		reason.ClosedFlood:   {1000, 100}, // frames of streams that have ended
	} {
		c.Rates[r-firstFlood] = rate
	}
	return c
}

// Event is what Next has come to.
type Event uint8

const (
	// More means that all bytes are used, and more are needed.
	More Event = iota
	// HeadRead is a request, or a response, which may be an interim one.
	HeadRead
	// Data is a part of a body. The owner says to Consumed when it needs it no more.
	Data
	// End is the end of a message. A response's is the end of its stream: nothing more comes of it.
	End
	// Reset is the end of a stream before its messages' ends, by the peer, or by us because of what the
	// peer sent: Err says why. Nothing more comes of it, and nothing more can be sent on it.
	Reset
	// Refused is a request that came to no HeadRead; it is answered, or reset, already.
	Refused
	// Writable is a stream that Data could not send all of, and now can.
	Writable
	// GoAway says that the peer wants no new streams. Those that it did not process are Reset.
	GoAway
	// Pong is the answer to a Ping.
	Pong
)

// Step is an event, with what belongs to it. Its slices and its Head are valid until the next call of Next.
type Step struct {
	Event  Event
	Stream uint32
	// Head is of HeadRead, Data of Data, Trailers of End.
	Head     *http1.Head
	Data     []byte
	Trailers []http1.Field
	// Err is of Reset and Refused.
	Err *Error
	// Retry says of a Reset that the backend has not looked at the request (RFC 9113 section 8.7).
	Retry bool
}

// Error ends a stream, or a connection when its Stream is 0.
type Error struct {
	Stream uint32
	Reason reason.Reason
	// Code is what the peer has said, or is told.
	Code Code
	// Response says that a backend is at fault, and not a client.
	Response bool
}

// Error names who and why.
func (e *Error) Error() string {
	who := "client"
	if e.Response {
		who = "backend"
	}
	if e.Stream == 0 {
		return fmt.Sprintf("http2: connection of a %s: %v (%v)", who, e.Reason, e.Code)
	}
	return fmt.Sprintf("http2: stream %d of a %s: %v (%v)", e.Stream, who, e.Reason, e.Code)
}

// Status is what the request is answered: 502 when it was the backend, 0 when there is nothing to answer.
func (e *Error) Status() int {
	if e.Response {
		return 502
	}
	return e.Reason.Status()
}

// What a stream or a connection cannot have.
var (
	// ErrGone is of a stream that has ended, or has its response already.
	ErrGone = errors.New("http2: no such stream")
	// ErrFull is of a request for which another connection is needed: no stream is free on this
	// one, or its peer wants no more.
	ErrFull = errors.New("http2: the connection takes no more requests")
	// ErrNoWebSocket is of an upgrade that cannot be asked for: the server's SETTINGS have not come, or do not
	// offer it (RFC 8441 section 3).
	ErrNoWebSocket = errors.New("http2: the server takes no WebSocket over HTTP/2")
)

// Code is an error code of RFC 9113 section 7.
type Code uint32

// The codes.
const (
	NoError Code = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	CodeStreamClosed
	FrameSizeError
	RefusedStream
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

var codes = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

// String is the code's name in the RFC.
func (c Code) String() string {
	if int64(c) < int64(len(codes)) {
		return codes[c]
	}
	return fmt.Sprintf("code %d", uint32(c))
}

// codeOf is what a peer is told of a reason. Of the reasons that a request is answered for, those with 400 are what
// RFC 9113 section 8.1.1 calls malformed.
func codeOf(r reason.Reason) Code {
	switch {
	case r >= reason.HeadFlood:
		return EnhanceYourCalm
	case r.Status() == 400 || r == reason.BadStatusLine || r == reason.UpgradeNotAsked:
		return ProtocolError
	case r.Status() == 502:
		return Cancel
	case r.Status() != 0:
		return NoError
	}
	switch r {
	case reason.StreamClosed:
		return CodeStreamClosed
	case reason.TooManyStreams:
		return RefusedStream
	case reason.WindowExceeded, reason.WindowTooLarge:
		return FlowControlError
	case reason.SettingsTimeout:
		return SettingsTimeout
	case reason.FrameTooLarge, reason.BadFrameSize:
		return FrameSizeError
	case reason.BadCompression:
		return CompressionError
	}
	return ProtocolError
}
