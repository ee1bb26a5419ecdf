package http2

import (
	"encoding/binary"
	"slices"

	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/waypoint/http2/wire"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// Conn is one side of a connection. Make it with NewServer or NewClient, and send first what Start appends.
//
// Its owner reads a socket and gives Next what came; what the methods append to dst is to be written to it, in
// that order, also when an error comes with it. While the socket takes nothing the owner stops calling Next: every
// answer that the protocol asks for is then still unread, and nothing grows.
type Conn struct {
	config  *Config
	server  bool
	err     *Error
	out     []byte // dst, inside of a call
	frame   frame
	buf     []byte // a payload that is not whole yet
	block   block
	section section
	streams map[uint32]*stream
	spare   []*stream // for streams to come
	waiting []uint32  // those that Data could not send all of, who waits longest first
	flow    flow
	got     got
	sent    sent
	gone    [128]uint32 // streams that we have reset lately: what is on its way may still come
	goneAt  int
	floods  [Floods]bucket
}

// block is a head whose frames have not all come.
type block struct {
	open, end bool
	id        uint32
	bytes     []byte
	frames    int
}

// flow is what the whole connection may send and receive.
type flow struct {
	send    int64
	receive window
	look    bool // a stream that waits may be able to send
	unread  int64
}

// got is what the peer has said.
type got struct {
	preface  int    // bytes of it
	settings bool   // the first of them
	connect  uint32 // what a server's have said of extended CONNECT last
	window   int64  // its streams' first window
	streams  uint32 // that it takes
	last     uint32 // of a server, its client's last stream; of a client, what the server's GOAWAY has said
	goAway   bool
	lost     bool   // streams are to be reset because of that
	ending   uint32 // the stream whose End is to be said
	pong     bool
}

// sent is what we have said.
type sent struct {
	acked  bool   // our SETTINGS
	table  bool   // that we compress with no table
	next   uint32 // a client's next stream
	drain  drain
	bound  uint32 // the last stream that a draining server takes
	pinged int    // PINGs without an answer
}

type drain uint8

const (
	open     drain = iota
	warned         // GOAWAY with the largest stream that there can be
	draining       // GOAWAY with the last one that was taken
)

// window is what a peer may still send, and what was used up and not given back yet.
type window struct{ size, available, owed int64 }

// give says how much to give back now that n bytes more are free: updates wait until they are worth a frame.
func (w *window) give(n int64) int64 {
	if w.owed += n; w.owed <= 0 || w.owed < w.size/4 {
		return 0
	}
	n, w.owed = w.owed, 0
	w.available += n
	return n
}

// NewServer begins a client's connection, at the first byte of its preface.
func NewServer(c *Config) *Conn { return newConn(c, true) }

// NewClient begins a backend's connection.
func NewClient(c *Config) *Conn {
	conn := newConn(c, false)
	conn.got.preface, conn.sent.next = len(Preface), 1
	conn.got.last = maxStream
	return conn
}

func newConn(config *Config, server bool) *Conn {
	size := int64(config.ConnWindow)
	c := &Conn{config: config, server: server, streams: map[uint32]*stream{}}
	c.flow.send, c.flow.receive = firstWindow, window{size, firstWindow, size - firstWindow}
	c.got.window, c.got.streams = firstWindow, 100 // the least that RFC 9113 section 6.5.2 recommends
	c.section.decoder = hpack.NewDecoder(uint32(max(config.Table, firstTable)), c.emit)
	return c
}

// Start appends what a connection begins with. The owner gives the peer some time to acknowledge it: Acknowledged.
func (c *Conn) Start(dst []byte) []byte {
	heads := wire.Setting{ID: wire.SettingHeadBytes, Value: uint32(c.config.Messages.HeadBytes)}
	first := wire.Setting{ID: wire.SettingWindow, Value: uint32(c.config.Window)}
	table := wire.Setting{ID: wire.SettingTable, Value: uint32(c.config.Table)}
	if c.server {
		connect := wire.Setting{ID: wire.SettingConnect, Value: 1} // RFC 8441 section 3
		dst = wire.AppendSettings(dst, table, wire.Setting{ID: wire.SettingStreams, Value: uint32(c.config.Streams)}, first, heads, connect)
	} else {
		dst = wire.AppendSettings(append(dst, Preface...), table, wire.Setting{ID: wire.SettingPush, Value: 0}, first, heads)
	}
	if n := c.flow.receive.give(0); n > 0 {
		dst = wire.AppendUpdate(dst, 0, n)
	}
	return dst
}

// Next reads on, to the next event. It uses n bytes of in, and appends to dst what the protocol has to say to the
// peer. It is to be called until it says More, with the bytes that were not used, also when there are none: after
// the calls that send, too, since they may have made a stream Writable. An error is a *Error of the connection, whose
// GOAWAY is appended; all streams have then ended, and it stays at that.
func (c *Conn) Next(dst, in []byte) (out []byte, n int, s Step, err error) {
	if c.err != nil {
		return dst, 0, Step{}, c.err
	}
	c.out = dst
	s, n, r := c.next(in)
	out, c.out = c.out, nil
	if r != 0 {
		out = c.Fail(out, r)
		return out, n, Step{}, c.err
	}
	return out, n, s, nil
}

// Fail ends the connection with a GOAWAY: the owner calls it with reason.SettingsTimeout when the peer has not acknowledged
// in time.
func (c *Conn) Fail(dst []byte, r reason.Reason) []byte {
	c.err = &Error{Reason: r, Code: codeOf(r), Response: !c.server}
	clear(c.streams)
	c.flow.unread = 0
	last := uint32(0)
	switch {
	case c.server && c.sent.drain == draining:
		last = c.sent.bound // it must not grow (section 6.8)
	case c.server:
		last = c.got.last
	}
	return wire.AppendGoAway(dst, last, uint32(c.err.Code))
}

func (c *Conn) next(in []byte) (s Step, n int, r reason.Reason) {
	for {
		if s, ok := c.queued(); ok {
			return s, n, 0
		}
		if c.got.preface < len(Preface) {
			k := min(len(in)-n, len(Preface)-c.got.preface)
			if string(in[n:n+k]) != Preface[c.got.preface:c.got.preface+k] {
				return Step{}, n, reason.BadPreface
			}
			c.got.preface += k
			n += k
		}
		f := &c.frame
		if f.have < wire.HeaderBytes {
			k := copy(f.raw[f.have:], in[n:])
			f.have += k
			if n += k; f.have < wire.HeaderBytes {
				return Step{}, n, 0
			}
			if r := c.check(); r != 0 {
				return Step{}, n, r
			}
			if f.kind() == wire.Data {
				if s, r := c.beginData(); s.Event != More || r != 0 {
					return s, n, r
				}
			}
		}
		if f.kind() == wire.Data {
			s, k, more, r := c.data(in[n:])
			if n += k; more || s.Event != More || r != 0 {
				return s, n, r
			}
			continue
		}
		b, k, whole := c.payload(in[n:])
		if n += k; !whole {
			return Step{}, n, 0
		}
		f.have = 0
		s, r := c.whole(b)
		if c.buf = c.buf[:0]; s.Event != More || r != 0 {
			return s, n, r
		}
	}
}

// queued are events that no bytes are needed for.
func (c *Conn) queued() (Step, bool) {
	if s := c.streams[c.got.ending]; s != nil {
		c.got.ending = 0
		return c.theyEnd(s, nil), true
	}
	if c.got.pong {
		c.got.pong = false
		return Step{Event: Pong}, true
	}
	if c.got.lost {
		for id, s := range c.streams {
			if id > c.got.last {
				c.remove(s)
				return Step{Event: Reset, Stream: id, Err: &Error{id, reason.PeerGone, RefusedStream, true}, Retry: true}, true
			}
		}
		c.got.lost = false
	}
	if c.flow.look {
		for i, id := range c.waiting {
			if s := c.streams[id]; s.send > 0 && c.flow.send > 0 {
				c.waiting, s.waiting = slices.Delete(c.waiting, i, i+1), false
				return Step{Event: Writable, Stream: id}, true
			}
		}
		c.flow.look = false
	}
	return Step{}, false
}

// whole reads a frame that has come as a whole.
func (c *Conn) whole(b []byte) (Step, reason.Reason) {
	id := c.frame.stream()
	switch c.frame.kind() {
	case wire.Headers:
		return c.headers(b)
	case wire.Continuation:
		return c.continuation(b)
	case wire.Reset:
		return c.peerReset(id, Code(binary.BigEndian.Uint32(b)))
	case wire.Settings:
		return Step{}, c.settings(b)
	case wire.Ping:
		return Step{}, c.ping(b)
	case wire.GoAway:
		return c.goAway(binary.BigEndian.Uint32(b)&^wire.ReservedBit, Code(binary.BigEndian.Uint32(b[4:])))
	case wire.Update:
		return c.update(id, int64(binary.BigEndian.Uint32(b)&^wire.ReservedBit))
	case wire.Priority: // deprecated, and ignored (section 5.3.2)
		if binary.BigEndian.Uint32(b)&^wire.ReservedBit == id {
			return Step{}, reason.SelfDependency
		}
	}
	return Step{}, c.spend(reason.IdleFlood)
}

func (c *Conn) settings(b []byte) reason.Reason {
	if c.frame.has(wire.Ack) {
		if c.sent.acked {
			return c.spend(reason.SettingsFlood)
		}
		c.sent.acked = true
		return c.acknowledged()
	}
	c.got.settings = true
	// A frame has room for 2,730 of them, none of which may cost a look at every stream.
	last, largest := c.got.window, c.got.window
	for ; len(b) > 0; b = b[wire.SettingBytes:] {
		s := wire.Setting{ID: binary.BigEndian.Uint16(b), Value: binary.BigEndian.Uint32(b[2:])}
		switch s.ID {
		case wire.SettingPush, wire.SettingConnect, wire.SettingNoPriority:
			if s.Value > 1 || s.ID == wire.SettingPush && s.Value == 1 && !c.server {
				return reason.BadSetting
			}
			if s.ID == wire.SettingConnect && !c.server { // of a client it says nothing
				if s.Value < c.got.connect {
					return reason.BadSetting // RFC 8441 section 3
				}
				c.got.connect = s.Value
			}
		case wire.SettingStreams:
			c.got.streams = s.Value
		case wire.SettingWindow:
			if s.Value > maxWindow {
				return reason.WindowTooLarge
			}
			last = int64(s.Value)
			largest = max(largest, last)
		case wire.SettingFrame:
			if s.Value < wire.MaxFrame || s.Value > 1<<24-1 {
				return reason.BadSetting
			}
		}
	}
	change, most := last-c.got.window, largest-c.got.window
	c.got.window = last
	for _, s := range c.streams {
		if change == 0 && most == 0 {
			break
		}
		if s.send+most > maxWindow {
			return reason.WindowTooLarge // section 6.9.2
		}
		s.send += change
		c.flow.look = true
	}
	c.out = wire.AppendFrame(c.out, wire.Settings, wire.Ack, 0, 0)
	return c.spend(reason.SettingsFlood)
}

// acknowledged: from here on the peer's streams have our window; until here they had the first one.
func (c *Conn) acknowledged() reason.Reason {
	for _, s := range c.streams {
		s.receive.available += int64(c.config.Window) - firstWindow
	}
	return 0
}

func (c *Conn) ping(b []byte) reason.Reason {
	if !c.frame.has(wire.Ack) {
		c.out = append(wire.AppendFrame(c.out, wire.Ping, wire.Ack, 0, wire.PingBytes), b...)
		return c.spend(reason.PingFlood)
	}
	if c.sent.pinged == 0 {
		return c.spend(reason.PingFlood)
	}
	c.sent.pinged--
	c.got.pong = true
	if c.sent.drain == warned {
		c.out = c.lastGoAway(c.out)
	}
	return 0
}

func (c *Conn) goAway(last uint32, code Code) (Step, reason.Reason) {
	c.got.goAway = true
	if !c.server {
		c.got.last, c.got.lost = min(c.got.last, last), true
	}
	return Step{Event: GoAway, Err: &Error{0, reason.PeerGone, code, !c.server}}, c.spend(reason.IdleFlood)
}

// Acknowledged says that the peer has acknowledged our SETTINGS (section 6.5.3).
func (c *Conn) Acknowledged() bool { return c.sent.acked }

// Unfinished says that what came last was a part of a frame, or of a head: a peer that does not go on
// in time is a slow one on purpose.
func (c *Conn) Unfinished() bool {
	return c.frame.have > 0 || c.block.open || c.got.preface < len(Preface)
}

// Streams is how many are open.
func (c *Conn) Streams() int { return len(c.streams) }

// Unread is how many bytes of bodies have come that Consumed was not told of.
func (c *Conn) Unread() int64 { return c.flow.unread }

// Held is the number of bytes of memory behind the connection, the peer's table included; what of it is
// not needed between two frames, Release gives back.
func (c *Conn) Held() int {
	const fieldBytes, streamBytes = 56, 160
	s := &c.section
	return cap(c.buf) + cap(c.block.bytes) + cap(s.bytes) + s.older + cap(s.split) + (cap(s.head.Fields)+cap(s.trailers))*fieldBytes +
		(len(c.streams)+len(c.spare))*streamBytes + cap(c.waiting)*4 + max(c.config.Table, firstTable)
}

// Release gives memory back while no stream is open.
func (c *Conn) Release() {
	if len(c.streams) > 0 || c.frame.have > 0 || c.block.open {
		return
	}
	c.buf, c.block.bytes, c.spare, c.waiting = nil, nil, nil, nil
	c.section = section{decoder: c.section.decoder}
	c.streams = map[uint32]*stream{}
}
