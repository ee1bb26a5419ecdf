// Package fast is the engine for speed: connections live on event loops, one
// for each core, with their own record layer and HTTP/2 framing, and no
// goroutine. Everything that a turn of a loop reads leaves in one write; idle
// streams hold no buffers. Goroutines exist while a stream or a connection is
// being opened: for handshakes, dials and Server.Accept.
//
// Package tunnel is a connection with its streams; this package is what decides
// about them: the pool and its dials, listeners, and who waits for what.
//
// An Engine is safe for concurrent use. Everything below it belongs to the one
// loop that carries it: a key's connections, their streams and the streams'
// sockets never change loops, so there are no locks.
package fast

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/tunnel"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// Config configures Engine; zero fields take the default that each names.
type Config struct {
	// Loops is the number of event loops (GOMAXPROCS).
	Loops int
	// IdleTimeout closes an outbound connection that has carried no stream for
	// so long (60 s), ServerIdleTimeout an inbound one (5 min).
	IdleTimeout, ServerIdleTimeout time.Duration
	// HandshakeTimeout bounds an inbound TLS handshake and, once more, the
	// HTTP/2 preface after it (10 s).
	HandshakeTimeout time.Duration
	// ConnectTimeout stands in for a ConnectRequest.Timeout of 0 (10 s).
	ConnectTimeout time.Duration
	// PingInterval is how long a connection may be silent before it is asked
	// for a sign of life, PingTimeout how long the answer may take (15 s, 10 s).
	PingInterval, PingTimeout time.Duration
	// WriteTimeout is how long a peer may leave the TCP connection stuck, and how
	// long a frame, a header or a record that it has begun without an end (30 s).
	// It is looked at each PingInterval.
	WriteTimeout time.Duration
	// StreamWindow and ConnectionWindow are what the flow-control windows of
	// outbound connections may become, in bytes (16 MiB, 64 MiB).
	StreamWindow, ConnectionWindow int32
	// GCM makes the AES-GCM of the connections' keys (the fastest that is here).
	GCM tlsrecord.GCM
	// Logger says what no Outcome or Refusal can; nil discards it.
	Logger *slog.Logger
}

func orDefault[T comparable](v *T, d T) {
	*v = cmp.Or(*v, d)
}

func (c Config) withDefaults() Config {
	orDefault(&c.Loops, runtime.GOMAXPROCS(0))
	orDefault(&c.IdleTimeout, time.Minute)
	orDefault(&c.ServerIdleTimeout, 5*time.Minute)
	orDefault(&c.HandshakeTimeout, 10*time.Second)
	orDefault(&c.ConnectTimeout, 10*time.Second)
	orDefault(&c.PingInterval, 15*time.Second)
	orDefault(&c.PingTimeout, 10*time.Second)
	orDefault(&c.WriteTimeout, 30*time.Second)
	orDefault(&c.StreamWindow, hbone.DefaultLimits().StreamWindow)
	orDefault(&c.ConnectionWindow, hbone.DefaultLimits().ConnectionWindow)
	c.GCM = c.GCM.OrFastest()
	orDefault(&c.Logger, slog.New(slog.DiscardHandler))
	return c
}

// tunnel is what the connections of either role are told.
func (c *Config) tunnel() tunnel.Config {
	return tunnel.Config{
		PingInterval: c.PingInterval, PingTimeout: c.PingTimeout, WriteTimeout: c.WriteTimeout,
		StreamWindow: c.StreamWindow, ConnectionWindow: c.ConnectionWindow,
	}
}

// Engine is an hbone.Engine on event loops.
type Engine struct {
	cfg  Config
	log  *slog.Logger
	seed maphash.Seed

	// hard ends with the cause of a cut when everything must end now.
	hard context.Context
	cut  context.CancelCauseFunc

	live struct {
		sync.Mutex
		n       int           // goroutines, connections, requests: what Close waits for
		closing bool          // no new streams
		zero    chan struct{} // closed when n reaches 0 while it is not nil
		servers map[*serving]struct{}
		workers []*worker // nil before the first Connect or Serve
		inbound int       // connections that were given to workers in turn
	}
	loops    sync.WaitGroup
	freezing sync.Mutex // of Freeze
}

var _ hbone.Engine = (*Engine)(nil)

// New makes an engine. It starts nothing: loops begin with Connect and Serve,
// and end with Close.
func New(cfg Config) *Engine {
	cfg = cfg.withDefaults()
	e := &Engine{cfg: cfg, log: cfg.Logger, seed: maphash.MakeSeed()}
	e.hard, e.cut = context.WithCancelCause(context.Background())
	e.live.servers = map[*serving]struct{}{}
	return e
}

// enter counts something that Close waits for, and starts the loops if they do
// not run. It fails on a closing engine.
func (e *Engine) enter() ([]*worker, error) {
	e.live.Lock()
	defer e.live.Unlock()
	if e.live.closing {
		return nil, hbone.ErrDraining
	}
	for len(e.live.workers) < e.cfg.Loops {
		w, err := newWorker(e)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", hbone.ErrLimit, err)
		}
		e.live.workers = append(e.live.workers, w)
		e.loops.Go(w.run)
	}
	e.live.n++
	return e.live.workers, nil
}

// hold counts one thing more, for something that is counted itself.
func (e *Engine) hold() {
	e.live.Lock()
	e.live.n++
	e.live.Unlock()
}

// release is the end of what enter or hold counted.
func (e *Engine) release() {
	e.live.Lock()
	defer e.live.Unlock()
	e.live.n--
	if e.live.n == 0 && e.live.zero != nil {
		close(e.live.zero)
		e.live.zero = nil
	}
}

// spawn runs fn on a goroutine that Close waits for.
func (e *Engine) spawn(fn func()) {
	e.hold()
	go func() {
		defer e.release()
		fn()
	}()
}

func (e *Engine) closing() bool {
	e.live.Lock()
	defer e.live.Unlock()
	return e.live.closing
}

func (e *Engine) everything() (servers []*serving, workers []*worker) {
	e.live.Lock()
	defer e.live.Unlock()
	for s := range e.live.servers {
		servers = append(servers, s)
	}
	return servers, e.live.workers
}

// home is the loop that a key's connections live on: streams with one key share
// them without a lock.
func (e *Engine) home(k hbone.Key, workers []*worker) *worker {
	return workers[maphash.Comparable(e.seed, k)%uint64(len(workers))]
}

// nextWorker is the loop of the next inbound connection.
func (e *Engine) nextWorker() *worker {
	e.live.Lock()
	defer e.live.Unlock()
	e.live.inbound++
	return e.live.workers[e.live.inbound%len(e.live.workers)]
}

// Connect is Engine.Connect.
func (e *Engine) Connect(local *net.TCPConn, req *hbone.ConnectRequest) {
	o := &outbound{eng: e, req: req, local: eventloop.Conn{TCPConn: local}, timing: hbone.Timing{Pooled: true}}
	workers, err := e.enter()
	if err == nil {
		w := e.home(req.Key, workers)
		w.Post(func() { w.connect(o) }) // loops run for as long as something is counted
		return
	}
	e.hold() // unanswered releases
	go o.unanswered(err)
}

// Drain is Engine.Drain.
func (e *Engine) Drain(match hbone.Match, abort bool) {
	var cause error
	if abort {
		cause = hbone.ErrRevoked
	}
	_, workers := e.everything()
	for _, w := range workers {
		w.Post(func() { w.drain(match, cause) })
	}
}

// Close is Engine.Close. It returns nil when every stream ended by itself, and
// the context's error when some were cut.
func (e *Engine) Close(ctx context.Context) (err error) {
	e.live.Lock()
	e.live.closing = true
	e.live.Unlock()
	servers, workers := e.everything()
	for _, s := range servers {
		if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			e.log.Warn("close listener", "local", s.listener.Addr(), "error", err)
		}
		s.stop()
	}
	e.Drain(hbone.Match{}, false)
	done := e.idle()
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		e.cut(hbone.ErrDraining)
		for _, w := range workers {
			w.Post(w.cutAll)
		}
		<-done
	}
	for _, w := range workers {
		w.Stop()
	}
	e.loops.Wait()
	return err
}

// idle returns a channel that is closed once nothing is counted.
func (e *Engine) idle() <-chan struct{} {
	e.live.Lock()
	defer e.live.Unlock()
	zero := cmp.Or(e.live.zero, make(chan struct{}))
	if e.live.zero = zero; e.live.n == 0 {
		close(zero)
		e.live.zero = nil
	}
	return zero
}
