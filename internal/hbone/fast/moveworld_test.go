package fast_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/hbone/fast"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

// moveWait bounds everything in the tests that move.
const moveWait = 20 * time.Second

// site is one end of the tunnels, in two processes as it were: engines that
// connections move between.
type site struct {
	t       testing.TB
	make    func() hbone.Engine
	engine  hbone.Engine
	mu      sync.RWMutex // of engine: held for reading while it is asked to connect
	server  *hbone.Server
	tunnels *net.TCPListener
	serving chan error
	accept  *movingListener
	memory  *hbone.Memory // of what is thawed

	owners struct {
		sync.Mutex
		stuck int // of this one Freeze fails
		next  int
		done  map[int]func(hbone.Outcome)
		left  int
		fails bool // Adopt fails
	}
	pauses    []time.Duration // of each batch
	moved     int             // connections, of all moves
	idleBytes int             // of the largest connection without streams
}

func newSite(t testing.TB, engine func() hbone.Engine, server *hbone.Server) *site {
	s := &site{t: t, make: engine, engine: engine(), server: server}
	s.owners.done = map[int]func(hbone.Outcome){}
	if server != nil {
		s.tunnels = pathListener(t)
		s.serve()
	}
	t.Cleanup(s.close)
	return s
}

// serve runs Serve on the engine of now.
func (s *site) serve() {
	l := &movingListener{TCPListener: s.tunnels, accepting: make(chan struct{}), stopped: make(chan struct{})}
	served := make(chan error, 1)
	s.accept, s.serving = l, served
	e := s.engine
	go func() { served <- e.Serve(l, s.server) }()
	<-l.accepting // Thaw wants a Serve that runs
}

func (s *site) close() {
	ctx, cancel := context.WithTimeout(context.Background(), moveWait)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.engine.Close(ctx); err != nil {
		s.t.Errorf("close engine: %v", err)
	}
	if s.server != nil {
		s.waitServed(s.serving)
		s.tunnels.Close()
	}
}

func (s *site) waitServed(served chan error) {
	select {
	case err := <-served:
		if err != nil {
			s.t.Errorf("Serve: %v", err)
		}
	case <-time.After(moveWait):
		s.t.Error("Serve does not return")
	}
}

// movingListener is one process's part in a listener of several.
type movingListener struct {
	*net.TCPListener
	moving    atomic.Bool
	closed    atomic.Bool
	accepting chan struct{} // closed by the first Accept
	once      sync.Once
	stopped   chan struct{} // closed when Accept has said that it moves
	stopOnce  sync.Once
}

func (l *movingListener) Accept() (net.Conn, error) {
	l.once.Do(func() { close(l.accepting) })
	c, err := l.TCPListener.Accept()
	if err != nil && l.moving.Load() {
		l.stopOnce.Do(func() { close(l.stopped) })
		return nil, hbone.ErrMoving
	}
	if err != nil && l.closed.Load() {
		return nil, net.ErrClosed
	}
	return c, err
}

// stop ends accepting, and waits for that.
func (l *movingListener) stop() error {
	l.moving.Store(true)
	if err := l.SetDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	select {
	case <-l.stopped:
		return nil
	case <-time.After(moveWait):
		return errors.New("Accept does not return")
	}
}

// Close leaves the socket to the others.
func (l *movingListener) Close() error {
	if l.moving.Load() {
		return nil
	}
	l.closed.Store(true)
	return l.SetDeadline(time.Unix(1, 0))
}

// owner is a stream's owner; its state is a number that the site knows.
type owner struct {
	site *site
	id   int
}

func (o *owner) Freeze() ([]byte, error) {
	o.site.owners.Lock()
	defer o.site.owners.Unlock()
	if o.id == o.site.owners.stuck {
		return nil, errors.New("it cannot be said")
	}
	return json.Marshal(o.id)
}

func (o *owner) Left() {
	o.site.owners.Lock()
	defer o.site.owners.Unlock()
	o.site.owners.left++
}

func (s *site) owner(done func(hbone.Outcome)) *owner {
	s.owners.Lock()
	defer s.owners.Unlock()
	s.owners.next++
	s.owners.done[s.owners.next] = done
	return &owner{s, s.owners.next}
}

func (s *site) adopt(state []byte) (*hbone.Adopted, error) {
	o := &owner{site: s}
	if err := json.Unmarshal(state, &o.id); err != nil {
		return nil, err
	}
	s.owners.Lock()
	defer s.owners.Unlock()
	if s.owners.fails {
		return nil, errors.New("not today")
	}
	return &hbone.Adopted{Owner: o, Progress: &hbone.Counters{}, Cutter: &hbone.Cutter{}, Done: s.owners.done[o.id]}, nil
}

// move moves every connection to a new engine, which becomes the site's. Thaw
// may change what is moved; nil does not.
func (s *site) move(ctx context.Context, change func(*hbone.Frozen)) error {
	old, next := s.engine.(hbone.Mover), s.make()
	s.stopAccepting()
	served := s.serving
	s.mu.Lock()
	s.engine = next
	if s.server != nil {
		s.serve()
	}
	s.mu.Unlock()
	err := old.Freeze(ctx, func(batch []*hbone.Frozen) error {
		start := time.Now()
		defer func() { s.pauses = append(s.pauses, time.Since(start)) }()
		var all sync.WaitGroup
		errs := make([]error, len(batch))
		for i, f := range batch {
			if change != nil {
				change(f)
			}
			if len(f.Files) == 1 {
				s.idleBytes = max(s.idleBytes, len(f.State)+len(f.Data))
			}
			all.Go(func() { errs[i] = s.thaw(next.(hbone.Mover), f) })
		}
		all.Wait()
		s.moved += len(batch)
		return errors.Join(errs...)
	})
	if err != nil {
		return err
	}
	if s.server != nil {
		s.waitServed(served)
	}
	ctx, cancel := context.WithTimeout(context.Background(), moveWait)
	defer cancel()
	return old.Close(ctx)
}

func (s *site) stopAccepting() {
	if s.server == nil {
		return
	}
	if err := s.accept.stop(); err != nil {
		s.t.Error(err)
	}
	// The new one's Accept must not see the old one's deadline.
	if err := s.tunnels.SetDeadline(time.Time{}); err != nil {
		s.t.Error(err)
	}
}

// thaw gives an engine copies of the files, as SCM_RIGHTS does.
func (s *site) thaw(e hbone.Mover, f *hbone.Frozen) error {
	copied := *f
	copied.Files = nil
	for _, fd := range f.Files {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		copied.Files = append(copied.Files, dup)
	}
	err := e.Thaw(&copied, hbone.ThawContext{Adopt: s.adopt, Memory: s.memory})
	if err != nil {
		for _, fd := range copied.Files {
			unix.Close(fd)
		}
	}
	return err
}

// mustMove is move that has to succeed.
func (s *site) mustMove(change func(*hbone.Frozen)) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), moveWait)
	defer cancel()
	if err := s.move(ctx, change); err != nil {
		s.t.Fatalf("move: %v", err)
	}
}

// world is a client site, a server site, and an application.
type world struct {
	t              testing.TB
	client, server *site
	ca             *enginetest.CA
	cert           *tls.Certificate
	apps           chan *net.TCPConn
	inbound        chan hbone.Outcome
	delay          atomic.Int64 // of Accept
	greeting       atomic.Pointer[func(app *net.TCPConn)]
	fixed          bool // the server's streams cannot move
}

func newFastEngine() hbone.Engine { return fast.New(fast.Config{Loops: 2}) }

// newWorld changes the server before it serves.
func newWorld(t testing.TB, clientEngine, serverEngine func() hbone.Engine, change ...func(*hbone.Server)) *world {
	ca := enginetest.NewCA(t, "mesh.test")
	w := &world{t: t, ca: ca, cert: ca.SVID(t, "client"), apps: make(chan *net.TCPConn, 4096), inbound: make(chan hbone.Outcome, 4096)}
	cert := ca.SVID(t, "server")
	server := &hbone.Server{
		Local: "server", Bundles: ca.Bundle(), Certificate: func() (*tls.Certificate, error) { return cert, nil },
		Limits: hbone.Limits{Streams: 1000},
		Accept: w.accept,
	}
	for _, c := range change {
		c(server)
	}
	w.server = newSite(t, serverEngine, server)
	w.client = newSite(t, clientEngine, nil)
	return w
}

func (w *world) accept(ctx context.Context, _ *hbone.StreamRequest) (*hbone.Accepted, error) {
	select {
	case <-time.After(time.Duration(w.delay.Load())):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	app, local := pathPair(w.t)
	if greet := w.greeting.Load(); greet != nil {
		(*greet)(app)
	}
	w.apps <- app
	done := func(o hbone.Outcome) {
		select {
		case w.inbound <- o:
		default: // tests of many streams do not look, and a loop must not wait
		}
	}
	a := &hbone.Accepted{Conn: local, Done: done, Cutter: &hbone.Cutter{}, Progress: &hbone.Counters{}}
	if !w.fixed {
		a.Owner = w.server.owner(done)
	}
	return a, nil
}

// moveFlow is one stream: what a program and an application hold.
type moveFlow struct {
	program, app *net.TCPConn
	done         chan hbone.Outcome
	timing       hbone.Timing
	req          *hbone.ConnectRequest
}

// open makes a stream on the client's engine of now. It may be called from any
// goroutine; streams that are opened at once may have each other's application.
func (w *world) open() (*moveFlow, error) { return w.openFrom("client") }

// openFrom opens a stream of the given pod, which has connections of its own.
func (w *world) openFrom(source string) (*moveFlow, error) {
	program, local := pathPair(w.t)
	f := &moveFlow{program: program, done: make(chan hbone.Outcome, 1)}
	opened := make(chan hbone.Timing, 1)
	endpoint := w.server.tunnels.Addr().(*net.TCPAddr).AddrPort()
	done := func(o hbone.Outcome) { f.done <- o }
	f.req = &hbone.ConnectRequest{
		Key:         hbone.Key{Source: source, Leaf: hbone.Fingerprint(w.cert), Peer: w.ca.ID("server"), Endpoint: endpoint},
		Certificate: w.cert, Bundles: w.ca.Bundle(), Authority: netip.MustParseAddrPort("10.0.0.1:80"), Timeout: moveWait,
		Dial: func(ctx context.Context) (*net.TCPConn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", endpoint.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		Established: func(t hbone.Timing, _ secured.By) { opened <- t }, Progress: &hbone.Counters{}, Cutter: &hbone.Cutter{},
		Done: done, Owner: w.client.owner(done),
	}
	w.client.mu.RLock()
	w.client.engine.Connect(local, f.req)
	w.client.mu.RUnlock()
	select {
	case f.timing = <-opened:
	case o := <-f.done:
		return nil, fmt.Errorf("connect: %w", o.Err)
	case <-time.After(moveWait):
		return nil, errors.New("connect: no answer")
	}
	f.app = <-w.apps
	return f, nil
}

func (w *world) mustOpen() *moveFlow {
	w.t.Helper()
	f, err := w.open()
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// say sends a message one way and checks what arrives.
func say(from, to *net.TCPConn, message string) error {
	if err := errors.Join(from.SetDeadline(time.Now().Add(moveWait)), to.SetDeadline(time.Now().Add(moveWait))); err != nil {
		return err
	}
	if _, err := io.WriteString(from, message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(to, got); err != nil {
		return err
	}
	if string(got) != message {
		return fmt.Errorf("got %q for %q", got, message)
	}
	return nil
}

func (f *moveFlow) echo(message string) error {
	return errors.Join(say(f.program, f.app, message), say(f.app, f.program, message+" back"))
}

// finish ends a stream in good order and looks at its outcome.
func (f *moveFlow) finish() error {
	if err := errors.Join(f.program.CloseWrite(), f.app.CloseWrite()); err != nil {
		return err
	}
	for _, c := range []*net.TCPConn{f.app, f.program} {
		if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
			return fmt.Errorf("read %d bytes, %w; want a FIN", len(got), err)
		}
	}
	return f.ended()
}

func (f *moveFlow) ended() error {
	select {
	case o := <-f.done:
		return o.Err
	case <-time.After(moveWait):
		return errors.New("no outcome")
	}
}

// pourUntil writes random bytes until it is told to stop, then a FIN, and
// returns their sum.
func pourUntil(c *net.TCPConn, stop *atomic.Bool, seed byte) (sum [32]byte, n int, err error) {
	h, random, buf := sha256.New(), rand.NewChaCha8([32]byte{seed}), make([]byte, 64<<10)
	if err := c.SetDeadline(time.Now().Add(2 * moveWait)); err != nil {
		return sum, 0, err
	}
	for !stop.Load() {
		part := buf[:1+random.Uint64()%uint64(len(buf))]
		_, _ = random.Read(part) // never fails
		h.Write(part)
		k, err := c.Write(part)
		n += k
		if err != nil {
			return sum, n, err
		}
	}
	return [32]byte(h.Sum(nil)), n, c.CloseWrite()
}

func drink(c *net.TCPConn) (sum [32]byte, n int64, err error) {
	h := sha256.New()
	n, err = io.Copy(h, c)
	return [32]byte(h.Sum(nil)), n, err
}

// bulk carries checksummed bytes both ways until stop, and sends what went
// wrong.
func (f *moveFlow) bulk(stop *atomic.Bool, seed byte) <-chan error {
	failed := make(chan error, 2)
	for i, ends := range [][2]*net.TCPConn{{f.program, f.app}, {f.app, f.program}} {
		got := make(chan error, 1)
		var sum [32]byte
		var n int64
		go func() {
			var err error
			sum, n, err = drink(ends[1])
			got <- err
		}()
		go func() {
			want, sent, err := pourUntil(ends[0], stop, seed+byte(i))
			if err != nil {
				ends[1].Close() // ends drink
			}
			err = errors.Join(err, <-got)
			if err == nil && (sum != want || n != int64(sent)) {
				err = fmt.Errorf("direction %d: %d bytes sent, %d arrived, sums equal: %v", i, sent, n, sum == want)
			}
			failed <- err
		}()
	}
	return failed
}
