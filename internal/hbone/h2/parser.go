// Package h2 reads and writes the frames of HTTP/2 that HBONE needs (RFC 9113):
// CONNECT streams, both roles, with hard bounds. A Parser takes bytes as they
// come, cut anywhere, and hands payload on without copying it; it holds a buffer
// only inside of a header or a control frame. The package does no I/O and keeps
// no streams: those are an engine's.
//
// A Parser belongs to one goroutine at a time.
package h2

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/hbone/flood"
)

const (
	// HeaderBytes is the length of a frame's header (RFC 9113 section 4.1).
	HeaderBytes = 9
	// MaxFrame is the longest payload that we take, the least that section 4.2
	// allows and what we announce.
	MaxFrame = 1 << 14
	// maxContinuations bounds the frames that one header may come in.
	maxContinuations = 8
	// decoderTable is what a peer may use before it has seen our SETTINGS, which
	// ask for none (RFC 7541 section 4.2).
	decoderTable = 4096
	// maxKeptFields is what a list may be long to serve the next header: a CONNECT
	// has five to eight.
	maxKeptFields = 16
)

// Error ends a connection with a GOAWAY of the code.
type Error struct {
	Code   http2.ErrCode
	Reason string
}

// Error names the code and the reason.
func (e *Error) Error() string { return fmt.Sprintf("%v: %s", e.Code, e.Reason) }

func protocol(reason string) error { return &Error{http2.ErrCodeProtocol, reason} }
func size(reason string) error     { return &Error{http2.ErrCodeFrameSize, reason} }

// Visitor is told of the frames. Its errors end the connection. Byte slices are
// valid during the call only, but for those of Data: see Feed.
type Visitor interface {
	// DataBegins comes with a DATA frame's header; length is what flow control
	// counts. Its payload follows in any number of Data, then DataEnds.
	DataBegins(id uint32, length int) error
	Data(p []byte)
	DataEnds(padding int, end bool) error
	Headers(h Header) error
	Reset(id uint32, code http2.ErrCode) error
	Settings(list []http2.Setting, ack bool) error
	Ping(data [8]byte, ack bool) error
	GoAway(last uint32, code http2.ErrCode) error
	WindowUpdate(id, increment uint32) error
	// Other is a frame without meaning to us: PRIORITY, unknown types.
	Other() error
}

// Header is a request's, a response's or trailers' field section.
type Header struct {
	ID      uint32
	Fields  []hpack.HeaderField // to be read until Headers returns
	TooLong bool                // fields were left out
	End     bool                // END_STREAM
	Bytes   int                 // compressed
}

// Parser is one direction of a connection. The zero value reads what a server
// sends; Server makes it read what a client sends, with its preface.
type Parser struct {
	// Server says that we are the server.
	Server bool
	// MaxHeaderBytes bounds a header list (RFC 9113 section 6.5.2).
	MaxHeaderBytes int

	preface int // bytes of the client's preface seen
	started bool
	head    [HeaderBytes]byte
	have    int    // bytes of head
	left    int    // bytes of the payload to come
	payload []byte // of a frame that comes in pieces, but for DATA
	done    uint32 // frames and headers that have ended
	padding int    // of a DATA frame; -1 when its length is still to come
	decoder *hpack.Decoder
	fields  []hpack.HeaderField // of the header under work
	total   int                 // their size, with those that were left out
	block   struct {            // a header without END_HEADERS
		open   bool
		id     uint32
		end    bool
		bytes  []byte
		frames int
	}
}

func (p *Parser) kind() http2.FrameType  { return http2.FrameType(p.head[3]) }
func (p *Parser) has(f http2.Flags) bool { return http2.Flags(p.head[4]).Has(f) }
func (p *Parser) stream() uint32         { return binary.BigEndian.Uint32(p.head[5:]) &^ (1 << 31) }
func (p *Parser) length() int {
	return int(p.head[0])<<16 | int(p.head[1])<<8 | int(p.head[2])
}

// Feed takes the next bytes of the connection. What it gives to Visitor.Data is
// part of b.
func (p *Parser) Feed(b []byte, v Visitor) error {
	if p.Server && p.preface < len(http2.ClientPreface) {
		n := min(len(b), len(http2.ClientPreface)-p.preface)
		if http2.ClientPreface[p.preface:p.preface+n] != string(b[:n]) {
			return protocol("not the preface of HTTP/2")
		}
		p.preface += n
		b = b[n:]
	}
	for len(b) > 0 {
		if p.have < HeaderBytes {
			n := copy(p.head[p.have:], b)
			p.have += n
			if b = b[n:]; p.have < HeaderBytes {
				return nil
			}
			if err := p.begin(v); err != nil {
				return err
			}
			if p.left > 0 {
				continue
			}
			if err := p.whole(nil, v); err != nil {
				return err
			}
			continue
		}
		n := min(len(b), p.left)
		part := b[:n]
		b = b[n:]
		p.left -= n
		if err := p.take(part, v); err != nil {
			return err
		}
	}
	return nil
}

// Held is the number of bytes of memory that what has not ended takes: a frame's
// payload, unless it is DATA, and a header without END_HEADERS. That is no more
// than append makes of MaxFrame, and of 2*MaxHeaderBytes + MaxFrame. The decoder's
// table, of 4 KiB at most, is not in it, nor the list of maxKeptFields.
func (p *Parser) Held() int { return cap(p.payload) + cap(p.block.bytes) }

// Free drops what Held counts, when nothing will be fed any more.
func (p *Parser) Free() { p.payload, p.block.bytes = nil, nil }

// Unfinished says that the last byte was not the end of a frame, or of a header in
// several, and how many have ended before: as long as it is the same number, it is
// the same one that does not end.
func (p *Parser) Unfinished() (yes bool, before uint32) { return p.have > 0 || p.block.open, p.done }

// Started says whether the peer's first SETTINGS have come.
func (p *Parser) Started() bool { return p.started }

// begin checks a frame's header.
func (p *Parser) begin(v Visitor) error {
	p.left = p.length()
	switch {
	case p.left > MaxFrame:
		return size("frame longer than 2^14 bytes")
	case !p.started && (p.kind() != http2.FrameSettings || p.has(http2.FlagSettingsAck)):
		return protocol("does not begin with SETTINGS") // section 3.4
	case p.block.open && (p.kind() != http2.FrameContinuation || p.stream() != p.block.id):
		return protocol("something inside a header") // section 4.3
	case !p.block.open && p.kind() == http2.FrameContinuation:
		return protocol("CONTINUATION of nothing")
	}
	p.started = true
	if p.kind() != http2.FrameData {
		return nil
	}
	if p.stream() == 0 {
		return protocol("DATA on stream 0")
	}
	p.padding = 0
	if p.has(http2.FlagDataPadded) {
		if p.left == 0 {
			return size("padded DATA without a length of padding")
		}
		p.padding = -1
	}
	return v.DataBegins(p.stream(), p.left)
}

// take takes a part of a frame's payload.
func (p *Parser) take(part []byte, v Visitor) error {
	if p.kind() == http2.FrameData {
		if p.padding < 0 {
			if p.padding = int(part[0]); p.padding > len(part)-1+p.left {
				return protocol("padding longer than its frame") // section 6.1
			}
			part = part[1:]
		}
		// What is left of the payload after this part, padding included.
		if n := len(part) - max(0, p.padding-p.left); n > 0 {
			v.Data(part[:n])
		}
		if p.left > 0 {
			return nil
		}
		return p.whole(nil, v)
	}
	if p.left > 0 || len(p.payload) > 0 {
		p.payload = append(p.payload, part...)
		part = p.payload
	}
	if p.left > 0 {
		return nil
	}
	p.payload = nil
	return p.whole(part, v)
}

// whole is called at the end of a frame, with its payload unless it is DATA.
func (p *Parser) whole(b []byte, v Visitor) error {
	p.have = 0
	defer p.ended()
	switch p.kind() {
	case http2.FrameData:
		padding := p.padding
		if p.has(http2.FlagDataPadded) {
			padding++
		}
		return v.DataEnds(padding, p.has(http2.FlagDataEndStream))
	case http2.FrameHeaders:
		return p.headers(b, v)
	case http2.FrameContinuation:
		return p.continuation(b, v)
	case http2.FrameSettings:
		return p.settings(b, v)
	case http2.FramePushPromise:
		return protocol("PUSH_PROMISE") // we allow none, and a client sends none
	default:
		return p.fixed(b, v)
	}
}

// ended counts what has ended.
func (p *Parser) ended() {
	if !p.block.open {
		p.done++
	}
}

// fixed reads the frames that are of one length.
func (p *Parser) fixed(b []byte, v Visitor) error {
	id := p.stream()
	wrong := func(n int) bool { return len(b) != n }
	switch kind := p.kind(); kind {
	case http2.FrameRSTStream, http2.FrameWindowUpdate:
		if wrong(4) {
			return size(kind.String())
		}
		value := binary.BigEndian.Uint32(b)
		if kind == http2.FrameWindowUpdate {
			return v.WindowUpdate(id, value&^(1<<31))
		}
		if id == 0 {
			return protocol("RST_STREAM on stream 0")
		}
		return v.Reset(id, http2.ErrCode(value))
	case http2.FramePing:
		if wrong(8) {
			return size("PING")
		}
		if id != 0 {
			return protocol("PING on a stream")
		}
		return v.Ping([8]byte(b), p.has(http2.FlagPingAck))
	case http2.FrameGoAway:
		if len(b) < 8 {
			return size("GOAWAY")
		}
		if id != 0 {
			return protocol("GOAWAY on a stream")
		}
		return v.GoAway(binary.BigEndian.Uint32(b)&^(1<<31), http2.ErrCode(binary.BigEndian.Uint32(b[4:])))
	case http2.FramePriority:
		if wrong(5) {
			return size("PRIORITY")
		}
		if id == 0 {
			return protocol("PRIORITY on stream 0") // section 6.3
		}
		return v.Other()
	default:
		return v.Other() // section 5.5
	}
}

func (p *Parser) settings(b []byte, v Visitor) error {
	ack := p.has(http2.FlagSettingsAck)
	switch {
	case p.stream() != 0:
		return protocol("SETTINGS on a stream")
	case len(b)%6 != 0 || ack && len(b) > 0:
		return size("SETTINGS")
	}
	var few [8]http2.Setting
	list := few[:0]
	for ; len(b) > 0; b = b[6:] {
		s := http2.Setting{ID: http2.SettingID(binary.BigEndian.Uint16(b)), Val: binary.BigEndian.Uint32(b[2:])}
		if s.Valid() != nil {
			if s.ID == http2.SettingInitialWindowSize {
				return &Error{http2.ErrCodeFlowControl, "initial window beyond 2^31-1"}
			}
			return protocol("setting " + s.String())
		}
		if !p.Server && s.ID == http2.SettingEnablePush && s.Val != 0 {
			return protocol("ENABLE_PUSH of a server") // section 6.5.2
		}
		list = append(list, s)
	}
	return v.Settings(list, ack)
}

func (p *Parser) headers(b []byte, v Visitor) error {
	id := p.stream()
	if id == 0 {
		return protocol("HEADERS on stream 0")
	}
	pad := 0
	if p.has(http2.FlagHeadersPadded) {
		if len(b) == 0 {
			return size("padded HEADERS without a length of padding")
		}
		pad, b = int(b[0]), b[1:]
	}
	if p.has(http2.FlagHeadersPriority) {
		if len(b) < 5 {
			return size("HEADERS without their priority")
		}
		if binary.BigEndian.Uint32(b)&^(1<<31) == id {
			return protocol("a stream that depends on itself")
		}
		b = b[5:]
	}
	if pad > len(b) {
		return protocol("padding longer than its frame")
	}
	b = b[:len(b)-pad]
	end := p.has(http2.FlagHeadersEndStream)
	if p.has(http2.FlagHeadersEndHeaders) {
		return p.decode(Header{ID: id, End: end}, b, v)
	}
	p.block.open, p.block.id, p.block.end, p.block.frames = true, id, end, 0
	p.block.bytes = append([]byte(nil), b...)
	return nil
}

func (p *Parser) continuation(b []byte, v Visitor) error {
	p.block.frames++
	if p.block.frames > maxContinuations || len(p.block.bytes)+len(b) > 2*p.MaxHeaderBytes+MaxFrame {
		return &flood.Error{Kind: flood.Other}
	}
	p.block.bytes = append(p.block.bytes, b...)
	if !p.has(http2.FlagContinuationEndHeaders) {
		return nil
	}
	block := p.block.bytes
	p.block.open, p.block.bytes = false, nil
	return p.decode(Header{ID: p.block.id, End: p.block.end}, block, v)
}

// decode decodes a header whatever becomes of it: the table must stay in step.
func (p *Parser) decode(h Header, block []byte, v Visitor) error {
	h.Bytes = len(block)
	if p.isBareOK(block) {
		h.Fields = append(p.fields[:0], hpack.HeaderField{Name: ":status", Value: "200"})
		return p.give(h, v)
	}
	if p.decoder == nil {
		p.decoder = hpack.NewDecoder(decoderTable, nil)
	}
	p.total, p.fields = 0, p.fields[:0]
	p.decoder.SetEmitFunc(p.emit)
	_, err := p.decoder.Write(block)
	if err == nil {
		err = p.decoder.Close()
	}
	if err != nil {
		return &Error{http2.ErrCodeCompression, err.Error()}
	}
	h.Fields, h.TooLong = p.fields, p.total > p.MaxHeaderBytes
	return p.give(h, v)
}

// isBareOK says whether a header is what most peers answer with, which touches no table,
// or gives up one that nothing was put into.
func (p *Parser) isBareOK(block []byte) bool {
	if len(block) == 2 && block[0] == NoTable && p.decoder == nil {
		block = block[1:]
	}
	return len(block) == 1 && block[0] == statusOK
}

// emit takes a field of the header under work, while there is room.
func (p *Parser) emit(f hpack.HeaderField) {
	if p.total += int(f.Size()); p.total <= p.MaxHeaderBytes {
		p.fields = append(p.fields, f)
	}
}

// give calls the visitor. The list serves the next header too, unless it is long;
// the connection keeps no field for that.
func (p *Parser) give(h Header, v Visitor) error {
	err := v.Headers(h)
	clear(h.Fields)
	if p.fields = h.Fields[:0]; cap(p.fields) > maxKeptFields {
		p.fields = nil
	}
	return err
}
