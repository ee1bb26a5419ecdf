package reference

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/relay"
)

// maxAttempts bounds how often a CONNECT is sent again because the connection
// that it met was about to go: a peer may give up a pooled connection at the
// very moment it is picked (RFC 9113 section 6.8).
const maxAttempts = 4

// errRefusedAuthority is our own caller's mistake.
var errRefusedAuthority = fmt.Errorf("%w: invalid authority or header", hbone.ErrBadRequest)

// outbound is one stream that we opened. Its goroutine runs Connect from end to
// end and copies from the tunnel to the local connection; the HTTP/2 client's
// own goroutine copies the other way, by reading the request's body.
type outbound struct {
	eng    *Engine
	req    *hbone.ConnectRequest
	relay  *relay.Relay
	cancel context.CancelCauseFunc
	body   *connBody
	answer *http.Response
}

// Connect is Engine.Connect.
func (e *Engine) Connect(local *net.TCPConn, req *hbone.ConnectRequest) {
	e.spawn(func() { e.connect(local, req) })
}

func (e *Engine) timeoutOf(req *hbone.ConnectRequest) time.Duration {
	if req.Timeout > 0 {
		return req.Timeout
	}
	return e.cfg.ConnectTimeout
}

func (e *Engine) connect(local *net.TCPConn, req *hbone.ConnectRequest) {
	ctx, cancel := context.WithCancelCause(e.hard)
	defer cancel(nil)
	o := &outbound{eng: e, req: req, cancel: cancel}
	o.relay = relay.New(local, req.Progress, func(error) { o.reset() })
	expired := time.AfterFunc(e.timeoutOf(req), func() { cancel(hbone.ErrTimeout) })
	c, timing, err := o.open(ctx)
	if err == nil && !expired.Stop() {
		err = o.abandon(c)
	}
	if err != nil {
		expired.Stop()
		o.unanswered(err, timing)
		return
	}
	if req.Established != nil {
		req.Established(timing, c.by)
	}
	req.Cutter.Bind(func(cause error) { e.spawn(func() { o.relay.Fail(cause) }) })
	stop := context.AfterFunc(ctx, func() { o.relay.Fail(o.causeOf(ctx)) })
	o.body.start(o)
	o.receive()
	o.awaitSent(ctx, c)
	stop()
	req.Cutter.Bind(func(error) {})
	out := o.relay.Finish(timing)
	out.Path = hbone.PathOf(c.wire.tcp)
	o.reset()
	e.pool.release(c, o)
	req.Done(out)
	// The HTTP/2 client closes the body when it is through with the stream.
	<-o.body.closed
}

// reset makes the HTTP/2 client let go of the stream: with a RST_STREAM, unless
// both directions have ended.
func (o *outbound) reset() {
	o.cancel(nil)
	if o.answer != nil {
		relay.Close(o.answer.Body) // wakes a client that waits for flow control
	}
}

// awaitSent waits until everything that the local connection had to send has
// been sent, END_STREAM included. Once the response has ended, the HTTP/2 client
// does not say any more that the connection broke or that the peer gave the
// stream up.
func (o *outbound) awaitSent(ctx context.Context, c *clientConn) {
	select {
	case <-o.body.ended:
	case <-c.wire.closed:
	}
	switch {
	case o.body.isEnded() && !o.body.aborted:
		select {
		case <-o.body.closed:
		case <-ctx.Done():
			o.relay.Fail(o.causeOf(ctx))
		}
	case c.wire.isClosed():
		// Perhaps behind a RST_STREAM: the answer is whole then as below.
		o.relay.FailBehind(fmt.Errorf("%w: connection lost", hbone.ErrProtocol))
	default:
		// The answer is whole, and nothing of it may be dropped, at least for
		// NO_ERROR (RFC 9113 section 8.1): the HTTP/2 client does not tell the code.
		o.relay.AwaitTaken(ctx)
		o.relay.Fail(fmt.Errorf("%w: by the peer after its END_STREAM", hbone.ErrReset))
	}
}

// causeOf says why the stream's context ended, other than by the relay itself.
func (o *outbound) causeOf(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return hbone.ErrReset
}

// abandon gives up a stream that was answered just too late.
func (o *outbound) abandon(c *clientConn) error {
	o.body.stop()
	relay.Close(o.answer.Body)
	o.eng.pool.release(c, o)
	return hbone.ErrTimeout
}

// unanswered reports a failure before the peer's 2xx. Nothing was read from the
// local connection, so it can go back as it is.
func (o *outbound) unanswered(err error, timing hbone.Timing) {
	if o.req.Unanswered != nil {
		o.req.Unanswered(hbone.Outcome{Err: err, Timing: timing})
		return
	}
	o.relay.Fail(err)
	o.req.Done(o.relay.Finish(timing))
}

// open gets a connection and a 2xx on it.
func (o *outbound) open(ctx context.Context) (*clientConn, hbone.Timing, error) {
	header, err := o.header()
	if err != nil {
		return nil, hbone.Timing{}, err
	}
	for attempt := 1; ; attempt++ {
		c, timing, err := o.eng.pool.acquire(ctx, o.req, o)
		if err != nil {
			return nil, timing, err
		}
		start := time.Now()
		err = o.roundTrip(ctx, c, header)
		timing.Connect = time.Since(start)
		if err == nil {
			return c, timing, nil
		}
		o.eng.pool.release(c, o)
		again, err := o.classify(ctx, err)
		if !again || attempt == maxAttempts {
			return nil, timing, err
		}
	}
}

func (o *outbound) header() (http.Header, error) {
	if _, err := hbone.ParseAuthority(o.req.Authority.String()); err != nil || !hbone.HeaderSafe(o.req.Baggage) || !hbone.HeaderSafe(o.req.TraceParent) {
		return nil, errRefusedAuthority
	}
	h := http.Header{"User-Agent": {""}} // an empty one is not sent
	if o.req.Forwarded.IsValid() {
		h.Set("Forwarded", hbone.FormatForwarded(o.req.Forwarded))
	}
	if o.req.Baggage != "" {
		h.Set("Baggage", o.req.Baggage)
	}
	if o.req.TraceParent != "" {
		h.Set("Traceparent", o.req.TraceParent)
	}
	return h, nil
}

// roundTrip sends the CONNECT. The body gives nothing before the answer is
// there, so that a failed attempt has cost the local connection no byte.
func (o *outbound) roundTrip(ctx context.Context, c *clientConn, header http.Header) error {
	authority := o.req.Authority.String()
	o.body = newConnBody()
	req := &http.Request{
		Method: http.MethodConnect, URL: &url.URL{Scheme: "http", Host: authority}, Host: authority,
		Header: header, Body: o.body, ContentLength: -1,
	}
	c.wire.guard.asked.Add(1)
	answer, err := c.http.RoundTrip(req.WithContext(ctx))
	if err != nil {
		o.body.stop()
		return err
	}
	if answer.StatusCode/100 != 2 { // RFC 9110 section 9.3.6
		o.body.stop()
		relay.Close(answer.Body)
		return &hbone.StatusError{Code: answer.StatusCode, Reason: http.StatusText(answer.StatusCode)}
	}
	o.answer = answer
	return nil
}

// classify maps an error from before the answer, and says whether another
// connection may do better: when the peer did not process the stream, or the
// connection went before it answered. A CONNECT without a byte of payload can
// be repeated.
func (o *outbound) classify(ctx context.Context, err error) (again bool, mapped error) {
	if ctx.Err() != nil {
		return false, o.causeOf(ctx)
	}
	if status, ok := errors.AsType[*hbone.StatusError](err); ok {
		return false, status
	}
	if se := (http2.StreamError{}); errors.As(err, &se) {
		return se.Code == http2.ErrCodeRefusedStream, fmt.Errorf("%w: CONNECT: %w", streamFailure(se), err)
	}
	return true, fmt.Errorf("%w: CONNECT: %w", hbone.ErrProtocol, err)
}

// streamFailure tells a peer that limits us from one that resets.
func streamFailure(se http2.StreamError) error {
	switch se.Code {
	case http2.ErrCodeRefusedStream, http2.ErrCodeEnhanceYourCalm:
		return hbone.ErrLimit
	case http2.ErrCodeProtocol, http2.ErrCodeFlowControl, http2.ErrCodeStreamClosed, http2.ErrCodeFrameSize, http2.ErrCodeCompression:
		return hbone.ErrProtocol
	default:
		return hbone.ErrReset
	}
}

// receive copies from the tunnel to the local connection until END_STREAM.
func (o *outbound) receive() {
	buf := o.eng.buffers.Get()
	defer o.eng.buffers.Put(buf)
	for {
		n, err := o.answer.Body.Read(buf[:])
		if n > 0 {
			if werr := o.relay.Deliver(buf[:n]); werr != nil {
				o.relay.DeliveryFailed(werr)
				return
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			if err := o.relay.DeliverEnd(); err != nil {
				o.relay.DeliveryFailed(err)
			}
			return
		case errors.As(err, &http2.StreamError{}):
			o.relay.FailBehind(tunnelFailure(err))
			return
		default:
			o.relay.Fail(tunnelFailure(err))
			return
		}
	}
}

// tunnelFailure classifies what a stream's reader met after the answer.
func tunnelFailure(err error) error {
	if se := (http2.StreamError{}); errors.As(err, &se) {
		return fmt.Errorf("%w: by the peer: %w", streamFailure(se), err)
	}
	if errors.Is(err, hbone.ErrLimit) { // a flood of the peer's
		return fmt.Errorf("connection lost: %w", err)
	}
	return fmt.Errorf("%w: connection lost: %w", hbone.ErrProtocol, err)
}

// connBody is the request's body: the bytes of the local connection, from the
// moment that start is called.
type connBody struct {
	started chan struct{} // closed by start
	ended   chan struct{} // closed when Read will give no more
	closed  chan struct{} // closed by Close: the HTTP/2 client is through
	endOnce sync.Once
	once    sync.Once
	aborted bool      // set before ended is closed: by Close, not by Read
	stream  *outbound // set before started is closed
}

func newConnBody() *connBody {
	return &connBody{started: make(chan struct{}), ended: make(chan struct{}), closed: make(chan struct{})}
}

func (b *connBody) start(o *outbound) {
	b.stream = o
	close(b.started)
}

// stop ends a body that was never started.
func (b *connBody) stop() { b.end(false) }

func (b *connBody) end(aborted bool) {
	b.endOnce.Do(func() {
		b.aborted = aborted
		close(b.ended)
	})
}

// Read implements io.Reader for the HTTP/2 client. It calls it from one
// goroutine.
func (b *connBody) Read(p []byte) (int, error) {
	select {
	case <-b.started:
	case <-b.ended:
		return 0, net.ErrClosed
	}
	if b.isEnded() {
		return 0, net.ErrClosed
	}
	r := b.stream.relay
	n, err := r.Local.Read(p)
	r.Counters.Sent.Add(uint64(n))
	if errors.Is(err, io.EOF) {
		if reset := r.CheckEnd(); reset != nil {
			err = reset
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		b.stream.eng.spawn(r.WatchReset)
		b.end(false)
	case b.isAborted():
		// Close woke us. The response's reader says why, once we are gone.
	default:
		// When the relay has failed before, this is only the echo of that.
		if !errors.Is(err, hbone.ErrReset) {
			err = relay.LocalReset(err)
		}
		r.Fail(err)
		b.end(false)
	}
	return n, err
}

// Close is called by the HTTP/2 client, once, when it has sent everything or
// when the stream was aborted. It wakes Read, for which the client waits before
// it tells the response's reader what happened.
func (b *connBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	b.end(true)
	select {
	case <-b.started:
	default:
		return nil
	}
	if b.isAborted() {
		_ = b.stream.relay.Local.SetReadDeadline(time.Unix(1, 0)) // fails only when closed, which wakes too
	}
	return nil
}

func (b *connBody) isEnded() bool {
	select {
	case <-b.ended:
		return true
	default:
		return false
	}
}

func (b *connBody) isAborted() bool { return b.isEnded() && b.aborted }
