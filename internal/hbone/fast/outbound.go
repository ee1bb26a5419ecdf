package fast

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/tunnel"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/relay"
)

const (
	// maxResponseBytes bounds the header of a peer's answer.
	maxResponseBytes = 16 << 10
	// maxAttempts bounds how often a CONNECT is sent again because the connection
	// that it met was about to go (RFC 9113 section 6.8).
	maxAttempts = 4
	// spillAt is the number of streams of one key from which on new ones go to
	// the loop with the least, with a connection of its own there.
	spillAt = 64
	// A peer that takes few streams at once gets another connection when it is
	// asked for one. One that takes enoughStreams gets it before, when no more
	// than an aheadPart of them is left: a burst then waits for no handshake.
	enoughStreams, aheadPart = 16, 8
)

// outbound is a request that we were given, until its end.
type outbound struct {
	eng       *Engine
	req       *hbone.ConnectRequest
	local     eventloop.Local // nil once the stream has its socket
	authority string          // of req, as it is sent
	timing    hbone.Timing
	timer     eventloop.Timer
	attempts  int
	sentAt    time.Time
	w         *worker // that the timer is set on
	stream    *tunnel.Stream
	spilled   bool
	answered  bool // by 200
	exposed   bool // ended unanswered, with a request that the application may have got
	done      bool
}

func (e *Engine) timeoutOf(req *hbone.ConnectRequest) time.Duration {
	if req.Timeout > 0 {
		return req.Timeout
	}
	return e.cfg.ConnectTimeout
}

// connect takes a request on.
func (w *worker) connect(o *outbound) {
	req := o.req
	o.authority = req.Authority.String()
	if _, err := hbone.ParseAuthority(o.authority); err != nil || !hbone.HeaderSafe(req.Baggage) || !hbone.HeaderSafe(req.TraceParent) ||
		len(req.Baggage)+len(req.TraceParent) > h2.MaxFrame-1024 {
		o.fail(fmt.Errorf("%w: invalid authority or header", hbone.ErrBadRequest))
		return
	}
	if to := w.spill(o); to != w {
		to.Post(func() { to.connect(o) }) // runs: the request is counted
		return
	}
	o.w = w
	w.load.Add(1)
	w.SetAfter(&o.timer, w.eng.timeoutOf(req), func() {
		if s := o.stream; s != nil {
			s.Fail(hbone.ErrTimeout, http2.ErrCodeCancel)
		} else {
			o.fail(hbone.ErrTimeout)
		}
	})
	w.place(o)
}

// open sends a CONNECT.
func (o *outbound) open(c *tunnel.Conn) {
	o.attempts++
	o.sentAt = time.Now()
	req := o.req
	block := h2.AppendConnect(make([]byte, 0, 256), o.authority)
	if req.Forwarded.IsValid() {
		block = h2.AppendField(block, "forwarded", hbone.FormatForwarded(req.Forwarded))
	}
	if req.Baggage != "" {
		block = h2.AppendField(block, "baggage", req.Baggage)
	}
	if req.TraceParent != "" {
		block = h2.AppendField(block, "traceparent", req.TraceParent)
	}
	o.stream = c.Open(block, o, o.local)
}

// Answered implements tunnel.Owner: only now the local socket is taken over.
func (o *outbound) Answered(s *tunnel.Stream) {
	o.answered = true
	o.w.Clear(&o.timer)
	o.timing.Connect = time.Since(o.sentAt)
	if o.req.Established != nil {
		o.req.Established(o.timing, s.Conn().Identity().Trust.Secured())
	}
	fd, err := o.local.Take()
	o.local = nil
	if err != nil {
		s.LocalFailed(err)
		return
	}
	s.Attach(fd, o.req.Progress, o.req.Cutter)
}

// Repeat implements tunnel.Owner.
func (o *outbound) Repeat(err error) bool {
	if o.attempts >= maxAttempts || errors.Is(err, hbone.ErrRevoked) || errors.Is(err, hbone.ErrDraining) {
		return false
	}
	o.stream = nil
	// Not at once: whoever iterates over streams is not done with it.
	o.w.Post(func() { o.w.place(o) }) // runs: the request is counted
	return true
}

// Ended implements tunnel.Owner.
func (o *outbound) Ended(s *tunnel.Stream, err error) {
	if !o.answered {
		o.exposed = s.Exposed()
		o.fail(err)
		return
	}
	o.finish()
	if o.req.Done != nil { // an adopted one may have none
		o.req.Done(s.Outcome(err, o.timing))
	}
	o.eng.release()
}

// Movable implements tunnel.Owner.
func (o *outbound) Movable() bool { return o.req.Owner != nil }

// Freeze implements tunnel.Owner.
func (o *outbound) Freeze() ([]byte, hbone.Timing, error) {
	state, err := o.req.Owner.Freeze()
	return state, o.timing, err
}

// Left implements tunnel.Owner.
func (o *outbound) Left() {
	o.finish()
	o.req.Owner.Left()
	o.eng.release()
}

// fail ends a request that was not answered.
func (o *outbound) fail(err error) {
	if o.done {
		return
	}
	o.finish()
	o.unanswered(err)
}

// finish is the request's end on its loop, if it came to one.
func (o *outbound) finish() {
	o.done = true
	if o.w != nil {
		o.w.Clear(&o.timer)
		o.w.load.Add(-1)
	}
}

// unanswered reports a failure before the peer's 200. Nothing was read from the
// local connection, so it can go back as it is, unless what it said must not be
// said again.
func (o *outbound) unanswered(err error) {
	defer o.eng.release()
	out := hbone.Outcome{Err: err, Timing: o.timing}
	if o.req.Unanswered != nil && !o.exposed {
		o.req.Unanswered(out)
		return
	}
	if tcp, ok := o.local.(eventloop.Conn); ok {
		relay.Abort(tcp.TCPConn)
		o.req.Done(out)
		return
	}
	// The other way round: until Done, others may know the descriptor.
	o.req.Done(out)
	if fd, err := o.local.Take(); err == nil {
		eventloop.Abort(fd)
	}
}
