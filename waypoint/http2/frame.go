package http2

import (
	"encoding/binary"

	"github.com/heddle-mesh/heddle/waypoint/http2/wire"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

const (
	// maxWindow is the largest window that there can be (RFC 9113 section 6.9.1), firstWindow what one is before SETTINGS.
	maxWindow   = 1<<31 - 1
	firstWindow = 1<<16 - 1
	maxStream   = 1<<31 - 1
	// firstTable is how large a table may be before SETTINGS (RFC 7541 section 4.2).
	firstTable = 4 << 10
)

// frame is the one that is being read.
type frame struct {
	raw  [wire.HeaderBytes]byte
	have int // bytes of raw
	left int // bytes of the payload to come
	pad  int // of DATA; -1 when its length is still to come
}

func (f *frame) kind() byte         { return f.raw[3] }
func (f *frame) has(flag byte) bool { return f.raw[4]&flag != 0 }
func (f *frame) stream() uint32     { return binary.BigEndian.Uint32(f.raw[5:]) &^ wire.ReservedBit }
func (f *frame) length() int        { return int(f.raw[0])<<16 | int(f.raw[1])<<8 | int(f.raw[2]) }

// check checks a frame's header before its payload is waited for (sections 4.1, 4.2, 6).
func (c *Conn) check() reason.Reason {
	f := &c.frame
	f.left = f.length()
	kind, id := f.kind(), f.stream()
	switch {
	case f.left > wire.MaxFrame:
		return reason.FrameTooLarge
	case !c.got.settings && (kind != wire.Settings || f.has(wire.Ack)):
		return reason.SettingsMissing // section 3.4
	case c.block.open && (kind != wire.Continuation || id != c.block.id):
		return reason.HeadInterrupted // section 6.10
	case !c.block.open && kind == wire.Continuation:
		return reason.HeadInterrupted
	case kind == wire.Push:
		return reason.PushRefused // we allow servers none, and a client sends none (section 8.4)
	}
	onStream := kind == wire.Data || kind == wire.Headers || kind == wire.Priority || kind == wire.Reset
	onConnection := kind == wire.Settings || kind == wire.Ping || kind == wire.GoAway
	if onStream && id == 0 || onConnection && id != 0 {
		return reason.BadStream
	}
	wrong := false
	switch kind {
	case wire.Priority:
		wrong = f.left != wire.PriorityBytes
	case wire.Reset, wire.Update:
		wrong = f.left != wire.ResetBytes
	case wire.Ping:
		wrong = f.left != wire.PingBytes
	case wire.GoAway:
		wrong = f.left < wire.GoAwayBytes
	case wire.Settings:
		wrong = f.left%wire.SettingBytes != 0 || f.has(wire.Ack) && f.left > 0
	case wire.Data, wire.Headers:
		wrong = f.has(wire.Padded) && f.left == 0
	}
	if wrong {
		return reason.BadFrameSize
	}
	return 0
}

// payload collects a frame's payload, unless it is DATA. It is read where it lies when it is there as a whole.
func (c *Conn) payload(in []byte) (b []byte, n int, whole bool) {
	n = min(len(in), c.frame.left)
	c.frame.left -= n
	if c.frame.left > 0 || len(c.buf) > 0 {
		c.buf = append(c.buf, in[:n]...)
		return c.buf, n, c.frame.left == 0
	}
	return in[:n], n, true
}

// cutPadding takes what a HEADERS frame has around its block (section 6.2).
func (c *Conn) cutPadding(b []byte) ([]byte, reason.Reason) {
	pad := 0
	if c.frame.has(wire.Padded) {
		pad, b = int(b[0]), b[1:]
	}
	if c.frame.has(wire.HasPriority) {
		if len(b) < wire.PriorityBytes {
			return nil, reason.BadFrameSize
		}
		if binary.BigEndian.Uint32(b)&^wire.ReservedBit == c.frame.stream() {
			return nil, reason.SelfDependency
		}
		b = b[wire.PriorityBytes:]
	}
	if pad > len(b) {
		return nil, reason.BadPadding
	}
	return b[:len(b)-pad], 0
}
