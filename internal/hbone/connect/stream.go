package connect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/relay"
)

// headerBlock is what the encoder writes to.
type headerBlock []byte

// Write implements io.Writer.
func (b *headerBlock) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

// chunk is a pooled buffer with the bytes from..to of a stream in it.
type chunk struct {
	buf      *relay.Buffer
	from, to int
}

// stream is one stream that a peer opened. Its goroutine asks Accept and
// then copies from the application to the tunnel; a second one copies the other
// way.
type stream struct {
	conn   *Conn
	id     uint32
	ctx    context.Context // ends with the stream
	cancel context.CancelCauseFunc

	// Guarded by the connection's lock.
	changed    *sync.Cond // any of the following
	received   []chunk    // not read yet
	recvEnd    bool       // END_STREAM came
	sentEnd    bool       // END_STREAM is written, or being written
	recv       recvWindow
	sendWindow int64
	err        error // why the stream is over before its time
	relay      *relay.Relay
	delivering bool  // deliver runs, and ends the stream for a fate
	fate       error // will be err when what came before it is delivered
	patience   *time.Timer
	resetKnown bool // RST_STREAM was sent or received
}

// newStream is called with the connection's lock held.
func newStream(c *Conn, id uint32, end bool) *stream {
	st := &stream{conn: c, id: id, recvEnd: end, sendWindow: c.live.initialWindow}
	st.ctx, st.cancel = context.WithCancelCause(c.ctx)
	st.changed = sync.NewCond(&c.live)
	size := int64(c.set.Limits.StreamWindow)
	st.recv = recvWindow{size: size, available: size}
	if !c.live.acked { // RFC 9113 section 6.9.3
		st.recv.available = max(size, defaultWindow)
	}
	return st
}

// serve runs the stream from its request to its end.
func (st *stream) serve(fields requestFields) {
	defer st.leave()
	req, err := hbone.ParseRequest(fields.list, fields.tooLong)
	if err != nil {
		st.conn.refuse(err)
		st.answerEnd(err)
		return
	}
	c := st.conn
	req.Peer, req.Remote, req.Local, req.Handshake, req.Secured = c.id.Peer, c.wire.remote, c.wire.local, c.id.Handshake, c.id.Secured
	if err := c.stillTrusted(); err != nil {
		c.refuse(err)
		st.answerEnd(&hbone.StatusError{Code: http.StatusUnauthorized, Reason: err.Error()})
		c.Drain()
		return
	}
	accepted, err := c.set.Server.Accept(st.ctx, req)
	if err == nil && (accepted == nil || accepted.Conn == nil) {
		err = hbone.ErrUnreachable
	}
	if err != nil {
		st.answerEnd(err)
		return
	}
	st.carry(accepted)
}

// stillTrusted checks the peer's chain against the bundle of now, once for each
// stream: a root that was taken out admits nobody.
func (c *Conn) stillTrusted() error {
	roots, err := c.set.Server.Bundles.GetX509BundleForTrustDomain(c.id.Peer.TrustDomain())
	if err != nil {
		return fmt.Errorf("%w: %w", hbone.ErrCertificateUntrusted, err)
	}
	c.live.Lock()
	defer c.live.Unlock()
	if c.live.roots != nil && roots.Equal(c.live.roots) {
		return nil
	}
	if _, err := hbone.VerifyPeer(c.id.Chain, roots, time.Now()); err != nil {
		return err
	}
	c.live.roots = roots.Clone()
	return nil
}

// leave gives the stream's place back.
func (st *stream) leave() {
	c := st.conn
	c.live.Lock()
	defer c.live.Unlock()
	for _, ch := range st.received {
		c.consumed(nil, int64(ch.to-ch.from))
		c.set.Buffers.Put(ch.buf)
	}
	st.received = nil
	if st.err == nil {
		st.over(io.ErrClosedPipe) // nobody reads what still comes
	}
	delete(c.live.streams, st.id)
	if st.patience != nil {
		st.patience.Stop()
	}
	st.cancel(nil)
	if c.live.places--; c.live.places == 0 {
		c.live.idleSince = time.Now()
		c.endIfDrained()
	}
}

// carry relays between the application and the tunnel.
func (st *stream) carry(a *hbone.Accepted) {
	c := st.conn
	r := relay.New(a.Conn, a.Progress, st.reset)
	a.Cutter.Bind(func(cause error) { c.set.Spawn(func() { r.Fail(cause) }) })
	defer a.Cutter.Bind(func(error) {})
	stop := context.AfterFunc(st.ctx, func() {
		if !st.finished() { // else only its delivery is left
			r.Fail(st.failure())
		}
	})
	defer stop()
	stopCut := context.AfterFunc(c.whole, func() { r.Fail(context.Cause(c.whole)) })
	defer stopCut()
	c.live.Lock()
	st.relay, st.delivering = r, st.err == nil // before the peer can know
	c.live.Unlock()
	if st.ctx.Err() != nil {
		r.Fail(st.failure())
	} else if err := st.answer(http.StatusOK, false); err != nil {
		r.Fail(err)
	} else {
		var down sync.WaitGroup
		down.Add(1)
		c.set.Spawn(func() {
			defer down.Done()
			st.deliver(r)
		})
		st.forward(r)
		down.Wait()
	}
	stop()
	stopCut()
	out := r.Finish(hbone.Timing{Handshake: c.id.Handshake, Pooled: true})
	out.Path = hbone.PathOf(c.wire.tcp)
	if a.Done != nil {
		a.Done(out)
	}
}

// finished is asked at the connection's end, and says that both ends have said their last,
// or the peer has reset the stream: what the application has not read is delivered all the
// same. So it is when only the peer was through, and has closed the connection.
func (st *stream) finished() bool {
	st.conn.live.Lock()
	defer st.conn.live.Unlock()
	if cause := context.Cause(st.ctx); st.err == nil && st.fate == nil && st.recvEnd && !st.sentEnd && errors.Is(cause, hbone.ErrProtocol) {
		st.peerReset(cause)
	}
	return st.err == nil && (st.fate != nil || st.recvEnd && st.sentEnd)
}

// failure says why the stream's context ended.
func (st *stream) failure() error {
	st.conn.live.Lock()
	defer st.conn.live.Unlock()
	if st.err != nil {
		return st.err
	}
	return context.Cause(st.ctx)
}

// forward copies from the application to the tunnel, up to its FIN, then
// watches for a RST.
func (st *stream) forward(r *relay.Relay) {
	from, err := relay.NewReader(r.Local, st.conn.set.Buffers)
	if err != nil {
		r.Fail(relay.LocalReset(err))
		return
	}
	for {
		p, err := from.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			r.Fail(relay.LocalReset(err))
			return
		}
		n, err := st.write(p)
		r.Counters.Sent.Add(uint64(n))
		from.Release()
		if err != nil && st.fated() {
			return
		}
		if err != nil {
			r.Fail(err)
			return
		}
	}
	if err = r.CheckEnd(); err == nil {
		if err = st.end(); err != nil && st.fated() {
			return
		}
	}
	if err != nil {
		r.Fail(err)
		return
	}
	st.conn.set.Spawn(r.WatchReset)
}

// deliver copies from the tunnel to the application, up to END_STREAM, and stays to see
// whether a RST_STREAM comes behind that.
func (st *stream) deliver(r *relay.Relay) {
	for {
		ch, err := st.next()
		switch {
		case errors.Is(err, io.EOF):
			if err := r.DeliverEnd(); err != nil {
				st.undeliverable(r, err)
			} else if st.resetBehindEnd() {
				r.FailBehind(st.fate) // set once
			}
			return
		case errors.Is(err, errFated):
			r.FailBehind(st.fate) // set once
			return
		case err != nil:
			r.Fail(err)
			return
		}
		err = r.Deliver(ch.buf[ch.from:ch.to])
		st.conn.set.Buffers.Put(ch.buf)
		st.conn.live.Lock()
		st.conn.consumed(st, int64(ch.to-ch.from))
		st.conn.live.Unlock()
		if err != nil {
			st.undeliverable(r, err)
			return
		}
	}
}

// undeliverable ends delivering to an application that takes no more.
func (st *stream) undeliverable(r *relay.Relay, err error) {
	st.conn.live.Lock()
	st.delivering = false
	fate := st.fate
	st.conn.live.Unlock()
	if fate != nil { // nobody is left at either end
		r.Fail(fate)
		return
	}
	r.DeliveryFailed(err)
}

// receive appends what a DATA frame brought, packed: buffers are full but for
// the last, so that small frames cannot cost more memory than the window says.
// The caller holds the lock.
func (st *stream) receive(data []byte, end bool) {
	for len(data) > 0 {
		if n := len(st.received); n == 0 || st.received[n-1].to == relay.BufferBytes {
			st.received = append(st.received, chunk{buf: st.conn.set.Buffers.Get()})
		}
		last := &st.received[len(st.received)-1]
		n := copy(last.buf[last.to:], data)
		last.to += n
		data = data[n:]
	}
	st.recvEnd = st.recvEnd || end
	st.changed.Broadcast()
}

// next waits for bytes from the peer and hands their buffer over.
func (st *stream) next() (chunk, error) {
	c := st.conn
	c.live.Lock()
	defer c.live.Unlock()
	for {
		switch {
		case st.err != nil:
			return chunk{}, st.err
		case len(st.received) > 0:
			ch := st.received[0]
			st.received[0] = chunk{}
			if st.received = st.received[1:]; len(st.received) == 0 {
				st.received = nil
			}
			return ch, nil
		case st.recvEnd:
			return chunk{}, io.EOF
		case st.fate != nil:
			return chunk{}, errFated
		}
		st.changed.Wait()
	}
}

// drop ends the stream early: its readers and writers return err. The caller
// holds the lock.
func (st *stream) drop(err error) {
	if st.err != nil {
		return
	}
	st.over(err)
	st.changed.Broadcast()
	st.cancel(err)
}

// over takes nothing more of the peer, which may have the window on its way. The caller
// holds the lock.
func (st *stream) over(err error) {
	st.err = err
	if t := &st.conn.live; !st.recvEnd {
		t.late = min(t.late+st.recv.available, t.recv.size)
	}
}

// reset is the relay's: the peer learns by RST_STREAM that the TCP connection
// broke (RFC 9113 section 8.5).
func (st *stream) reset(cause error) {
	c := st.conn
	c.live.Lock()
	defer c.live.Unlock()
	if !st.resetKnown && c.ctx.Err() == nil {
		c.queue(controlFrame{kind: http2.FrameRSTStream, id: st.id, value: uint32(http2.ErrCodeConnect)})
		st.resetKnown = true
	}
	st.drop(cause)
}

// end sends END_STREAM. The peer may act on it before the write returns.
func (st *stream) end() error {
	st.conn.live.Lock()
	if st.fate != nil {
		st.conn.live.Unlock()
		return errFated
	}
	st.sentEnd = true
	st.changed.Broadcast()
	st.conn.live.Unlock()
	w := &st.conn.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	return st.writeData(nil, true)
}

// writeData writes a frame; the caller holds the wire's lock.
func (st *stream) writeData(p []byte, end bool) error {
	c := st.conn
	c.spoken.Add(uint64(flood.Updates(len(p))))
	w := &c.wire
	err := w.framer.WriteData(st.id, end, p)
	if err == nil {
		err = w.out.Flush()
	}
	return st.broken(err)
}

// broken turns a failed write into the connection's end.
func (st *stream) broken(err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%w: connection lost: %w", hbone.ErrProtocol, err)
	st.conn.cancel(err)
	return err
}

// answer sends the status.
func (st *stream) answer(code int, end bool) error {
	st.conn.live.Lock()
	reset := end && !st.recvEnd
	st.resetKnown = st.resetKnown || reset
	if end {
		st.conn.live.refused++
	}
	st.conn.live.Unlock()
	w := &st.conn.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	w.block = w.block[:0]
	err := w.encoder.WriteField(hpack.HeaderField{Name: ":status", Value: strconv.Itoa(code)})
	if err == nil {
		err = w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: st.id, BlockFragment: w.block, EndHeaders: true, EndStream: end})
	}
	if err == nil && reset {
		// The peer need not go on with its half (RFC 9113 section 8.1).
		err = w.framer.WriteRSTStream(st.id, http2.ErrCodeNo)
	}
	if err == nil {
		err = w.out.Flush()
	}
	return st.broken(err)
}

// answerEnd sends the status that an error stands for, unless the stream is
// over already.
func (st *stream) answerEnd(err error) {
	code := http.StatusServiceUnavailable
	if status, ok := errors.AsType[*hbone.StatusError](err); ok {
		code = status.Code
	}
	if st.ctx.Err() != nil {
		return
	}
	if err := st.answer(code, true); err != nil {
		st.conn.set.Logger.Debug("answer a refused stream", "peer", st.conn.id.Peer, "error", err)
	}
}
