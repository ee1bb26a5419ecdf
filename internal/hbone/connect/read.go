package connect

import (
	"bufio"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// maxContinuations bounds the frames that one request's header may come in.
const maxContinuations = 8

// recvWindow is one receive window: what the peer may still send, and what has
// been consumed and not told it yet.
type recvWindow struct {
	size, available, owed int64
}

func newRecvWindow(size int32) recvWindow {
	size = max(size, defaultWindow)
	return recvWindow{size: int64(size), available: int64(size)}
}

func (w *recvWindow) take(n int64) bool {
	if n > w.available {
		return false
	}
	w.available -= n
	return true
}

// give returns the increment to send now that n bytes are free again: updates
// wait until they are worth a frame.
func (w *recvWindow) give(n int64) uint32 {
	w.owed += n
	if w.owed < w.size/4 {
		return 0
	}
	n, w.owed = w.owed, 0
	w.available += n
	return uint32(n)
}

// countingReader counts the reads that give something.
type countingReader struct {
	from  *bufio.Reader
	given atomic.Uint64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if n > 0 {
		r.given.Add(1)
	}
	return n, err
}

// read is the reading goroutine. It never writes to the connection: a peer
// that does not read must not keep us from reading.
func (c *Conn) read() error {
	for first := true; ; first = false {
		f, err := c.wire.framer.ReadFrame()
		c.heard.Add(1)
		if se := (http2.StreamError{}); errors.As(err, &se) {
			if err := c.resetStream(se); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if first {
			if s, ok := f.(*http2.SettingsFrame); !ok || s.IsAck() {
				return http2.ConnectionError(http2.ErrCodeProtocol)
			}
			if err := c.wire.tls.SetReadDeadline(time.Time{}); err != nil {
				return err
			}
		}
		if err := c.take(f); err != nil {
			if se := (http2.StreamError{}); !errors.As(err, &se) {
				return err
			} else if err := c.resetStream(se); err != nil {
				return err
			}
		}
		if c.ctx.Err() != nil {
			return c.ctx.Err()
		}
	}
}

func (c *Conn) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.takeData(f)
	case *http2.HeadersFrame:
		return c.takeHeaders(f)
	case *http2.WindowUpdateFrame:
		return c.takeWindowUpdate(f)
	case *http2.RSTStreamFrame:
		return c.takeReset(f)
	case *http2.SettingsFrame:
		return c.takeSettings(f)
	case *http2.PingFrame:
		return c.takePing(f)
	case *http2.GoAwayFrame:
		return c.guard.Spend(flood.Other) // the peer opens no more streams; nothing to do
	case *http2.PushPromiseFrame, *http2.ContinuationFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	default:
		return c.guard.Spend(flood.Other)
	}
}

// resetStream answers a stream's error with RST_STREAM.
func (c *Conn) resetStream(se http2.StreamError) error {
	c.live.Lock()
	defer c.live.Unlock()
	if st := c.live.streams[se.StreamID]; st != nil {
		st.resetKnown = true
		st.drop(fmt.Errorf("%w: stream error %v", hbone.ErrProtocol, se.Code))
	}
	c.queue(controlFrame{kind: http2.FrameRSTStream, id: se.StreamID, value: uint32(se.Code)})
	return c.guard.Spend(flood.Other)
}

// idle says whether a stream was never opened. Behind our last GOAWAY the peer may
// have opened more before it knew: what comes on them is passed over (RFC 9113
// section 6.8). The caller holds the lock.
func (c *Conn) idle(id uint32) bool { return id > c.live.lastID && c.live.goaway != goawayFinal }

func (c *Conn) takeData(f *http2.DataFrame) error {
	size, data := int64(f.Length), f.Data()
	if len(data) == 0 && !f.StreamEnded() {
		if err := c.guard.Spend(flood.EmptyData); err != nil {
			return err
		}
	}
	c.live.Lock()
	defer c.live.Unlock()
	if !c.live.recv.take(size) {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	st := c.live.streams[f.StreamID]
	if st == nil || st.err != nil {
		if c.idle(f.StreamID) {
			return http2.ConnectionError(http2.ErrCodeProtocol) // never opened
		}
		c.consumed(nil, size)
		return c.takeLate(size)
	}
	if st.recvEnd {
		c.consumed(nil, size)
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeStreamClosed}
	}
	if !st.recv.take(size) {
		c.consumed(nil, size)
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	if padding := size - int64(len(data)); padding > 0 {
		c.consumed(st, padding)
	}
	st.receive(data, f.StreamEnded())
	return nil
}

// takeLate takes DATA that the peer has sent before it knew that the stream is over. It
// may have had a window of it on its way, in frames as small as its program writes. The
// caller holds the lock.
func (c *Conn) takeLate(size int64) error {
	if size > 0 && size <= c.live.late {
		c.live.late -= size
		return nil
	}
	return c.guard.Spend(flood.Other)
}

// consumed gives flow control back: the connection's, and the stream's unless
// it is over. The caller holds the lock.
func (c *Conn) consumed(st *stream, n int64) {
	if inc := c.live.recv.give(n); inc > 0 {
		c.queue(controlFrame{kind: http2.FrameWindowUpdate, value: inc})
	}
	if st == nil || st.recvEnd || st.err != nil {
		return
	}
	if inc := st.recv.give(n); inc > 0 {
		c.queue(controlFrame{kind: http2.FrameWindowUpdate, id: st.id, value: inc})
	}
}

func (c *Conn) takeWindowUpdate(f *http2.WindowUpdateFrame) error {
	if sent := c.spoken.Swap(0); sent > 0 {
		c.guard.Earn(flood.WindowUpdate, float64(sent))
	}
	if err := c.guard.Spend(flood.WindowUpdate); err != nil {
		return err
	}
	c.live.Lock()
	defer c.live.Unlock()
	if f.StreamID == 0 {
		c.live.sendWindow += int64(f.Increment)
		if c.live.sendWindow > maxWindow {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		for _, st := range c.live.streams {
			st.changed.Broadcast()
		}
		return nil
	}
	st := c.live.streams[f.StreamID]
	if st == nil {
		if c.idle(f.StreamID) {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		return nil
	}
	st.sendWindow += int64(f.Increment)
	if st.sendWindow > maxWindow {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	st.changed.Broadcast()
	return nil
}

func (c *Conn) takeReset(f *http2.RSTStreamFrame) error {
	if err := c.guard.Spend(flood.Reset); err != nil {
		return err
	}
	c.live.Lock()
	defer c.live.Unlock()
	if c.idle(f.StreamID) {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if st := c.live.streams[f.StreamID]; st != nil {
		st.peerReset(fmt.Errorf("%w: by the peer: %v", hbone.ErrReset, f.ErrCode))
	}
	return nil
}

func (c *Conn) takePing(f *http2.PingFrame) error {
	c.live.Lock()
	defer c.live.Unlock()
	if f.IsAck() {
		if f.Data == drainPing() {
			c.finishDrain()
		}
		return c.guard.Spend(flood.Ping)
	}
	c.queue(controlFrame{kind: http2.FramePing, ack: true, data: f.Data})
	return c.guard.Spend(flood.Ping)
}

func (c *Conn) takeSettings(f *http2.SettingsFrame) error {
	if err := c.guard.Spend(flood.Settings); err != nil {
		return err
	}
	c.live.Lock()
	defer c.live.Unlock()
	if f.IsAck() {
		c.live.acked = true
		return nil
	}
	var list []http2.Setting
	err := f.ForeachSetting(func(s http2.Setting) error {
		list = append(list, s) // we use no table, push nothing, and frames of the least size
		return s.Valid()
	})
	if last, largest, ok := h2.InitialWindow(list); ok && err == nil {
		for _, st := range c.live.streams {
			if st.sendWindow+largest-c.live.initialWindow > maxWindow {
				return http2.ConnectionError(http2.ErrCodeFlowControl)
			}
			st.sendWindow += last - c.live.initialWindow
			st.changed.Broadcast()
		}
		c.live.initialWindow = last
	}
	c.queue(controlFrame{kind: http2.FrameSettings, ack: true})
	return err
}

// takeHeaders opens a stream, or ends one that brings trailers.
func (c *Conn) takeHeaders(f *http2.HeadersFrame) error {
	id, end := f.StreamID, f.StreamEnded()
	if f.HasPriority() && f.Priority.StreamDep == id {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	fields, err := c.readFields(f)
	if err != nil {
		return err
	}
	c.live.Lock()
	defer c.live.Unlock()
	if id <= c.live.lastID {
		return c.takeTrailers(id, end)
	}
	if id%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if c.live.goaway == goawayFinal {
		return c.guard.Spend(flood.Refused) // above the GOAWAY's id: the peer repeats it elsewhere
	}
	c.live.lastID = id
	for ; c.live.refused > 0; c.live.refused-- {
		if err := c.guard.Spend(flood.Reset); err != nil {
			return err
		}
	}
	if c.live.places >= c.set.Limits.Streams {
		c.queue(controlFrame{kind: http2.FrameRSTStream, id: id, value: uint32(http2.ErrCodeRefusedStream)})
		c.refuse(fmt.Errorf("%w: %d streams", hbone.ErrLimit, c.set.Limits.Streams))
		return c.guard.Spend(flood.Refused)
	}
	st := newStream(c, id, end)
	c.live.streams[id] = st
	c.live.places++
	c.tasks.Add(1)
	c.set.Spawn(func() {
		defer c.tasks.Done()
		st.serve(fields)
	})
	return nil
}

// takeTrailers accepts HEADERS on a stream that is open: they may only end it.
func (c *Conn) takeTrailers(id uint32, end bool) error {
	st := c.live.streams[id]
	switch {
	case st == nil || st.err != nil:
		return c.guard.Spend(flood.Other) // over; the peer may not know yet
	case st.recvEnd:
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeStreamClosed}
	case !end:
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	st.receive(nil, true)
	return nil
}

// requestFields is a request's header as it came.
type requestFields struct {
	list    []hpack.HeaderField
	tooLong bool // more than Limits.HeaderBytes; list is cut
}

// readFields reads a header block to its end and decodes it, whatever becomes
// of the request: the decoder's table must stay in step.
func (c *Conn) readFields(f *http2.HeadersFrame) (requestFields, error) {
	limit := c.set.Limits.HeaderBytes
	block := append([]byte(nil), f.HeaderBlockFragment()...)
	for n, ended := 0, f.HeadersEnded(); !ended; n++ {
		next, err := c.wire.framer.ReadFrame()
		if err != nil {
			return requestFields{}, err
		}
		more, ok := next.(*http2.ContinuationFrame)
		if !ok {
			return requestFields{}, http2.ConnectionError(http2.ErrCodeProtocol)
		}
		block = append(block, more.HeaderBlockFragment()...)
		if n >= maxContinuations || len(block) > 2*limit {
			return requestFields{}, &flood.Error{Kind: flood.Other}
		}
		ended = more.HeadersEnded()
	}
	if err := c.guard.SpendHeader(len(block)); err != nil {
		return requestFields{}, err
	}
	var fields requestFields
	size := 0
	c.wire.decoder.SetEmitFunc(func(f hpack.HeaderField) {
		if size += int(f.Size()); size > limit {
			fields.tooLong = true
			return
		}
		fields.list = append(fields.list, f)
	})
	if _, err := c.wire.decoder.Write(block); err != nil {
		return requestFields{}, http2.ConnectionError(http2.ErrCodeCompression)
	}
	if err := c.wire.decoder.Close(); err != nil {
		return requestFields{}, http2.ConnectionError(http2.ErrCodeCompression)
	}
	return fields, nil
}
