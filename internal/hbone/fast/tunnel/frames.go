package tunnel

import (
	"fmt"
	"net/http"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/wire"
	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// The methods of this file are h2.Visitor.

// idle says whether a stream was never opened: a frame on it breaks the
// protocol (RFC 9113 section 5.1). Behind our last GOAWAY the peer may have opened
// more before it knew, which we have not: what comes on them is passed over
// (section 6.8).
func (c *Conn) idle(id uint32) bool {
	return id%2 == 0 || id > c.lastID && (c.client || c.life.goaway != frozen.GoAwayFinal)
}

// DataBegins implements h2.Visitor.
func (c *Conn) DataBegins(id uint32, length int) error {
	c.data, c.dataLen = nil, length
	n := int64(length)
	if !c.flow.recv.Take(n) {
		return wire.Overflow()
	}
	// The connection's window is given back for what the peer has sent, whatever
	// becomes of it: it is the streams' windows, and the pod's budget, that bound
	// what is held. So no stream waits for another one's reader.
	c.flow.recv.Owed += n
	c.grant()
	s := c.streams[id]
	if s == nil {
		if c.idle(id) {
			return wire.IdleStream()
		}
		if c.flow.recv.IsLate(n) {
			return nil // sent before the peer knew that the stream is over
		}
		return c.guard.Spend(flood.Other)
	}
	code := http2.ErrCodeNo
	switch {
	case s.recvEnd:
		code = http2.ErrCodeStreamClosed
	case c.client && !s.answered:
		code = http2.ErrCodeProtocol
	case !s.recv.Take(n):
		code = http2.ErrCodeFlowControl
	default:
		c.data = s
		return nil
	}
	s.Fail(fmt.Errorf("%w: stream error %v", hbone.ErrProtocol, code), code)
	return c.guard.Spend(flood.Other)
}

// Data implements h2.Visitor.
func (c *Conn) Data(p []byte) {
	if c.data != nil {
		c.data.receive(p)
	}
}

// DataEnds implements h2.Visitor.
func (c *Conn) DataEnds(padding int, end bool) error {
	s := c.data
	c.data = nil
	if c.dataLen == padding && !end {
		if err := c.guard.Spend(flood.EmptyData); err != nil {
			return err
		}
	}
	if s == nil {
		return nil
	}
	if padding > 0 {
		s.consumed(int64(padding))
	}
	if end {
		s.receiveEnd()
	}
	return nil
}

// Headers implements h2.Visitor.
func (c *Conn) Headers(h h2.Header) error {
	if err := c.guard.SpendHeader(h.Bytes); err != nil {
		return err
	}
	s := c.streams[h.ID]
	switch {
	case !c.client && h.ID%2 == 1 && h.ID > c.lastID:
		return c.request(h)
	case s == nil && c.idle(h.ID):
		return wire.IdleStream()
	case s == nil: // over; the peer may not know yet
	case c.client && !s.answered:
		return s.answer(h)
	case s.recvEnd:
		s.Fail(fmt.Errorf("%w: HEADERS after END_STREAM", hbone.ErrProtocol), http2.ErrCodeStreamClosed)
	case !h.End: // trailers may only end a stream
		s.Fail(fmt.Errorf("%w: HEADERS inside a stream", hbone.ErrProtocol), http2.ErrCodeProtocol)
	default:
		s.receiveEnd()
		return nil
	}
	return c.guard.Spend(flood.Other)
}

// request opens a stream that the peer asks for.
func (c *Conn) request(h h2.Header) error {
	if c.life.goaway == frozen.GoAwayFinal {
		return c.guard.Spend(flood.Refused) // above the GOAWAY's id: the peer repeats it elsewhere
	}
	// Streams that have ended but for a slow application count too, less.
	if full := c.flow.places >= c.flow.streams || len(c.streams) >= 2*c.flow.streams; full || c.Diverted {
		c.lastID = h.ID
		c.resetStream(h.ID, http2.ErrCodeRefusedStream)
		if full {
			c.role.Refuse(fmt.Errorf("%w: %d streams", hbone.ErrLimit, c.flow.streams))
		}
		return c.guard.Spend(flood.Refused)
	}
	s := c.newStream(h.ID)
	s.recvEnd, s.accepting, s.placed = h.End, true, true
	c.flow.places++
	c.deciding++
	s.owner = c.role.Request(s, h)
	return nil
}

// answer takes the peer's response to our CONNECT.
func (s *Stream) answer(h h2.Header) error {
	switch code := wire.Status(h); {
	case code >= 100 && code < 200 && !h.End:
		return s.conn.guard.Spend(flood.Other) // informational (RFC 9113 section 8.1)
	case code >= 200 && code < 300: // RFC 9110 section 9.3.6
		s.answered = true
		s.owner.Answered(s)
		if h.End && !s.dead {
			s.receiveEnd()
		}
	case code >= 300 && code < 600:
		s.resetKnown, s.exposed = h.End, false // what came with a refused request is dropped
		s.Fail(&hbone.StatusError{Code: code, Reason: http.StatusText(code)}, http2.ErrCodeCancel)
	default:
		s.Fail(fmt.Errorf("%w: malformed answer", hbone.ErrProtocol), http2.ErrCodeProtocol)
	}
	return nil
}

// Reset implements h2.Visitor.
func (c *Conn) Reset(id uint32, code http2.ErrCode) error {
	if c.idle(id) {
		return wire.IdleStream()
	}
	if err := c.guard.Spend(flood.Reset); err != nil {
		return err
	}
	if s := c.streams[id]; s != nil {
		s.resetKnown = true // whatever the delivery comes to (RFC 9113 section 5.4.2)
		s.deliver()         // what came before it
		s.peerReset(code)
	}
	return nil
}

// Settings implements h2.Visitor.
func (c *Conn) Settings(list []http2.Setting, ack bool) error {
	if err := c.guard.Spend(flood.Settings); err != nil || ack {
		c.flow.recv.Acked = c.flow.recv.Acked || ack
		return err
	}
	if last, largest, ok := h2.InitialWindow(list); ok {
		for _, s := range c.streams {
			if s.sendWindow+largest-c.flow.initial > h2.MaxWindow {
				return wire.Overflow()
			}
			s.sendWindow += last - c.flow.initial
			s.retry()
		}
		c.flow.initial = last
	}
	if n, ok := h2.Last(list, http2.SettingMaxConcurrentStreams); ok && c.client {
		c.flow.streams = int(n)
	}
	c.frame(http2.FrameSettings, http2.FlagSettingsAck, 0, nil)
	switch {
	case c.client:
		c.begin()
	case len(c.streams) == 0:
		c.endIfDrained() // the preface is there: from now on it is idle
	}
	return nil
}

// Ping implements h2.Visitor.
func (c *Conn) Ping(data [8]byte, ack bool) error {
	if !ack {
		c.ping(data, true)
	} else if data == wire.DrainPing() {
		c.finishDrain()
	} else if data == wire.PathPing() {
		c.flow.recv.Path.Answered(c.loop.Now())
	}
	return c.guard.Spend(flood.Ping)
}

// GoAway implements h2.Visitor.
func (c *Conn) GoAway(last uint32, code http2.ErrCode) error {
	if c.client {
		c.Drain()
		for id, s := range c.streams {
			if id > last && !s.answered {
				s.resetKnown, s.exposed = true, false // it does not exist for the peer
				s.elsewhere(fmt.Errorf("%w: peer goes away: %v", hbone.ErrProtocol, code))
			}
		}
	}
	return c.guard.Spend(flood.Other)
}

// WindowUpdate implements h2.Visitor.
func (c *Conn) WindowUpdate(id, increment uint32) error {
	if c.flow.sent > 0 {
		c.guard.Earn(flood.WindowUpdate, float64(c.flow.sent))
		c.flow.sent = 0
	}
	if err := c.guard.Spend(flood.WindowUpdate); err != nil {
		return err
	}
	if id == 0 {
		if err := h2.Grow(&c.flow.send, increment); err != nil {
			return err
		}
		if c.out.Queued() == 0 {
			c.unblock()
		}
		return nil
	}
	s := c.streams[id]
	if s == nil {
		if c.idle(id) {
			return wire.IdleStream()
		}
		return nil
	}
	if err := h2.Grow(&s.sendWindow, increment); err != nil {
		s.Fail(fmt.Errorf("%w: %w", hbone.ErrProtocol, err), err.Code)
		return c.guard.Spend(flood.Other) // or resets would be for nothing (CVE-2025-8671)
	}
	s.retry()
	return nil
}

// Other implements h2.Visitor.
func (c *Conn) Other() error { return c.guard.Spend(flood.Other) }
