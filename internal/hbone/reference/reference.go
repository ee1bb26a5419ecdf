// Package reference is the first implementation of hbone.Engine, and the one
// that others are compared with: crypto/tls for TLS, net/http's HTTP/2 client
// (the code of x/net/http2) for the outbound end, package connect for the
// inbound one. It is plain and slow: a goroutine for each direction.
//
// An Engine is safe for concurrent use.
package reference

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/relay"
)

// Config configures Engine; zero fields take the default that each
// names.
type Config struct {
	// IdleTimeout closes an outbound connection that has carried no stream for
	// so long (60 s). It is shorter than ServerIdleTimeout, so that the side
	// that opens streams is the one that closes.
	IdleTimeout time.Duration
	// ServerIdleTimeout is the same for inbound connections (5 min).
	ServerIdleTimeout time.Duration
	// HandshakeTimeout bounds an inbound TLS handshake and, once more, the
	// HTTP/2 preface after it (10 s).
	HandshakeTimeout time.Duration
	// ConnectTimeout stands in for a ConnectRequest.Timeout of 0 (10 s).
	ConnectTimeout time.Duration
	// PingInterval is how long a connection may be silent before it is asked
	// for a sign of life, PingTimeout how long the answer may take (15 s, 10 s). A
	// frame, or a header in several, is a sign when it has ended.
	PingInterval, PingTimeout time.Duration
	// WriteTimeout is how long a peer may leave the TCP connection stuck (30 s).
	WriteTimeout time.Duration
	// StreamWindow and ConnectionWindow are the flow-control windows of
	// outbound connections, in bytes (1 MiB, 64 MiB). They stay as they are, and
	// with the peer's limit of streams they are what bounds memory: this engine
	// does not look at an hbone.Memory. The connection's is that of many streams,
	// so that a few programs that do not read do not hold up the others.
	StreamWindow, ConnectionWindow int32
	// Logger says what no Outcome or Refusal can; nil discards it.
	Logger *slog.Logger
}

// streamWindow is a stream's window, unless a lower one is asked for.
const streamWindow = 1 << 20

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c Config) withDefaults() Config {
	limits := hbone.DefaultLimits()
	orDefault(&c.IdleTimeout, time.Minute)
	orDefault(&c.ServerIdleTimeout, 5*time.Minute)
	orDefault(&c.HandshakeTimeout, 10*time.Second)
	orDefault(&c.ConnectTimeout, 10*time.Second)
	orDefault(&c.PingInterval, 15*time.Second)
	orDefault(&c.PingTimeout, 10*time.Second)
	orDefault(&c.WriteTimeout, 30*time.Second)
	orDefault(&c.StreamWindow, streamWindow)
	orDefault(&c.ConnectionWindow, limits.ConnectionWindow)
	orDefault(&c.Logger, slog.New(slog.DiscardHandler))
	return c
}

// Engine is the Engine that others are compared with: crypto/tls for TLS,
// net/http's HTTP/2 (the code of x/net/http2) for the client's end, and a
// package connect at the other. It is the oracle of other engines' tests, the one for
// FIPS 140-3, and what remains when a faster one is switched off.
//
// A stream costs two goroutines at each end, a connection one at the client's and
// two at the server's; an idle stream holds 32 KiB of buffers at the client's.
// It is safe for concurrent use.
type Engine struct {
	cfg       Config
	log       *slog.Logger
	transport *http.Transport
	pool      *pool
	buffers   relay.Buffers

	// hard ends with the cause of a cut when streams must end now.
	hard context.Context
	cut  context.CancelCauseFunc

	live struct {
		sync.Mutex
		n       int           // goroutines
		closing bool          // no new streams
		zero    chan struct{} // closed when n reaches 0 while it is not nil
		servers map[*serving]struct{}
	}
}

var _ hbone.Engine = (*Engine)(nil)

// New makes an engine. It starts nothing: goroutines begin with
// Connect and Serve.
func New(cfg Config) *Engine {
	cfg = cfg.withDefaults()
	e := &Engine{cfg: cfg, log: cfg.Logger}
	e.hard, e.cut = context.WithCancelCause(context.Background())
	e.live.servers = map[*serving]struct{}{}
	e.transport = newTransport(cfg)
	e.pool = &pool{eng: e, entries: map[hbone.Key]*entry{}, live: map[*clientConn]*hbone.Memory{}}
	return e
}

// spawn runs fn on a goroutine that Close waits for.
func (e *Engine) spawn(fn func()) {
	e.live.Lock()
	e.live.n++
	e.live.Unlock()
	go func() {
		defer e.exit()
		fn()
	}()
}

func (e *Engine) exit() {
	e.live.Lock()
	defer e.live.Unlock()
	e.live.n--
	if e.live.n == 0 && e.live.zero != nil {
		close(e.live.zero)
		e.live.zero = nil
	}
}

func (e *Engine) closing() bool {
	e.live.Lock()
	defer e.live.Unlock()
	return e.live.closing
}

// idle returns a channel that is closed once no goroutine of the engine runs.
func (e *Engine) idle() <-chan struct{} {
	e.live.Lock()
	defer e.live.Unlock()
	if e.live.zero == nil {
		e.live.zero = make(chan struct{})
		if e.live.n == 0 {
			done := e.live.zero
			e.live.zero = nil
			close(done)
			return done
		}
	}
	return e.live.zero
}

// Drain is Engine.Drain.
func (e *Engine) Drain(match hbone.Match, abort bool) {
	var cause error
	if abort {
		cause = hbone.ErrRevoked
	}
	e.pool.drain(match, cause)
	for _, s := range e.serving() {
		s.drain(match, cause)
	}
}

// Close is Engine.Close. It returns nil when every stream ended by itself, and
// the context's error when some were cut.
func (e *Engine) Close(ctx context.Context) error {
	e.live.Lock()
	e.live.closing = true
	e.live.Unlock()
	servers := e.serving()
	for _, s := range servers {
		if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			e.log.Warn("close listener", "local", s.listener.Addr(), "error", err)
		}
		s.stop()
		s.drain(hbone.Match{}, nil)
	}
	e.pool.drain(hbone.Match{}, nil)
	done := e.idle()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	e.cut(hbone.ErrDraining)
	e.pool.drain(hbone.Match{}, hbone.ErrDraining)
	for _, s := range servers {
		s.drain(hbone.Match{}, hbone.ErrDraining)
	}
	<-done
	return ctx.Err()
}

func (e *Engine) serving() []*serving {
	e.live.Lock()
	defer e.live.Unlock()
	all := make([]*serving, 0, len(e.live.servers))
	for s := range e.live.servers {
		all = append(all, s)
	}
	return all
}

// register adds s to what Drain and Close reach, unless the engine is closing.
func (e *Engine) register(s *serving) bool {
	e.live.Lock()
	defer e.live.Unlock()
	if e.live.closing {
		return false
	}
	e.live.servers[s] = struct{}{}
	e.live.n++ // Serve itself is one of the goroutines that Close waits for
	return true
}

func (e *Engine) unregister(s *serving) {
	e.live.Lock()
	delete(e.live.servers, s)
	e.live.Unlock()
	e.exit()
}
