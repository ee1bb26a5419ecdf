package tunnel

import (
	"fmt"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/wire"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// maxQueue bounds the buffers that wait for a peer that does not read. Streams
// send nothing while there is one; only answers to the peer's frames can add.
const maxQueue = 8

// output is what is on its way to the peer, and what waits for it to leave.
type output struct {
	wire.Output
	finishing []*Stream
	alert     tlsrecord.Alert
	code      http2.ErrCode // of the last GOAWAY
	dirty     bool
	farewell  wire.Farewell
	closing   bool // the goodbye is written, or about to be
	shut      bool // the FIN is sent
}

// touch makes sure that the connection is flushed at the end of this turn.
func (c *Conn) touch() {
	if !c.out.dirty && !c.closed {
		c.out.dirty = true
		c.loop.dirty = append(c.loop.dirty, c)
	}
}

// room returns where at least n bytes of plaintext go; Wrote says how many did.
func (c *Conn) room(n int) []byte {
	c.touch()
	if !c.out.Fits(n) {
		c.out.Enqueue()
		c.write()
	}
	return c.out.Room()
}

// flush writes everything that the socket takes.
func (c *Conn) flush() {
	if c.closed || c.resting {
		return
	}
	defer c.account()
	c.write()
	if c.closed || c.out.Queued() > 0 {
		return
	}
	c.out.Enqueue()
	if c.out.closing && !c.out.shut {
		c.out.shut = true
		c.out.Alert(c.out.alert)
	}
	c.write()
	if c.closed || c.out.Queued() > 0 {
		return
	}
	c.drained()
}

// write writes the queue.
func (c *Conn) write() {
	o := &c.out
	if errno := o.Write(c.loop.Now()); errno != 0 {
		c.lost(fmt.Errorf("%w: connection lost: %w", hbone.ErrProtocol, errno))
		return
	}
	if o.Queued() > maxQueue && !o.closing {
		err := fmt.Errorf("%w: too much waits for a peer that does not read", hbone.ErrLimit)
		c.role.Refuse(err)
		c.lost(err)
	}
}

// drained is called when the peer's socket has everything.
func (c *Conn) drained() {
	finishing := c.out.finishing
	c.out.finishing = nil
	for _, s := range finishing {
		s.finished()
	}
	if c.out.shut {
		if err := eventloop.CloseWrite(c.fd); err != nil || c.ended {
			c.lost(hbone.ErrDraining)
		}
		return
	}
	c.unblock()
}

// unblock lets the streams try again that waited for the connection.
func (c *Conn) unblock() {
	blocked := c.flow.blocked
	c.flow.blocked = blocked[:0]
	for i, s := range blocked {
		blocked[i] = nil
		s.blocked = false
		c.loop.queueStream(s)
	}
}

// raw writes bytes that are frames already. They must fit one record.
func (c *Conn) raw(p []byte) { c.out.Wrote(copy(c.room(len(p)), p)) }

func (c *Conn) frame(kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
	c.out.Wrote(wire.Frame(c.room(h2.HeaderBytes+len(payload)), kind, flags, id, payload))
}

func (c *Conn) headers(flags http2.Flags, id uint32, block []byte) {
	c.out.Wrote(c.out.Headers(c.room(h2.HeaderBytes+1+len(block)), flags, id, block))
}

func (c *Conn) windowUpdate(id, increment uint32) {
	c.out.Wrote(wire.Number(c.room(h2.HeaderBytes+4), http2.FrameWindowUpdate, id, increment))
}

func (c *Conn) resetStream(id uint32, code http2.ErrCode) {
	c.out.Wrote(wire.Number(c.room(h2.HeaderBytes+4), http2.FrameRSTStream, id, uint32(code)))
}

func (c *Conn) ping(data [8]byte, ack bool) {
	c.out.Wrote(wire.Ping(c.room(h2.HeaderBytes+len(data)), data, ack))
}

func (c *Conn) goAway(last uint32, code http2.ErrCode) {
	c.out.Wrote(wire.GoAway(c.room(h2.HeaderBytes+8), last, code))
}
