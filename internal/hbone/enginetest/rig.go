// Package enginetest is the conformance suite of hbone.Engine: what every
// implementation of the interface must do, tried over loopback with real TCP
// connections at both ends. It is imported by tests only, and knows nothing of
// how an engine works; its raw client and server speak HTTP/2 frame by frame.
package enginetest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

// wait is how long anything in these tests may take.
const wait = 15 * time.Second

// Options are what the suite wants of an engine; zero fields mean its defaults.
type Options struct {
	PingInterval, PingTimeout, WriteTimeout, IdleTimeout, ServerIdleTimeout, HandshakeTimeout time.Duration
}

// New makes the engine under test. The suite closes it.
type New func(Options) hbone.Engine

// side is one engine with its certificate.
type side struct {
	engine hbone.Engine
	ca     *CA
	cert   *tls.Certificate
}

// rig is a client engine, a server engine that serves one port, and an
// application behind it.
type rig struct {
	t              *testing.T
	ca             *CA
	client, server side
	endpoint       netip.AddrPort
	srv            *hbone.Server
	app            *net.TCPListener
	apps           chan *net.TCPConn // what the application accepted
	served         chan error

	mu       sync.Mutex
	requests []*hbone.StreamRequest
	refused  []hbone.Refusal
	inbound  []hbone.Outcome
	wires    []net.Conn // what the client dialed
	via      string     // what it dials in place of the endpoint, unless empty
	small    bool       // the kernel holds little of what programs send and do not read
}

// setup changes a rig before it starts.
type setup func(*rig)

func clientCert(cert *tls.Certificate) setup { return func(r *rig) { r.client.cert = cert } }
func limits(l hbone.Limits) setup            { return func(r *rig) { r.srv.Limits = l } }

// acceptFunc is a Server.Accept that knows its rig.
type acceptFunc func(*rig, context.Context, *hbone.StreamRequest) (*hbone.Accepted, error)

func accepting(f acceptFunc) setup {
	return func(r *rig) {
		r.srv.Accept = func(ctx context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) { return f(r, ctx, req) }
	}
}

func newRig(t *testing.T, make New, o Options, setups ...setup) *rig {
	t.Helper()
	ca := NewCA(t, "mesh.test")
	r := &rig{
		t: t, ca: ca, apps: nil, served: nil,
		client: side{engine: make(o), ca: ca, cert: ca.SVID(t, "client")},
		server: side{engine: make(o), ca: ca, cert: ca.SVID(t, "server")},
	}
	r.apps, r.served = newChan[*net.TCPConn](2048), newChan[error](1)
	r.app = listen(t, "127.0.0.1:0")
	r.srv = &hbone.Server{
		Local:       "server-pod",
		Certificate: func() (*tls.Certificate, error) { r.mu.Lock(); defer r.mu.Unlock(); return r.server.cert, nil },
		Bundles:     ca.Bundle(),
		Accept:      r.accept,
		Refused:     func(f hbone.Refusal) { r.mu.Lock(); defer r.mu.Unlock(); r.refused = append(r.refused, f) },
	}
	for _, s := range setups {
		s(r)
	}
	l := listen(t, "127.0.0.1:0")
	r.endpoint = l.Addr().(*net.TCPAddr).AddrPort()
	go func() { r.served <- r.server.engine.Serve(l, r.srv) }()
	go func() {
		for {
			c, err := r.app.AcceptTCP()
			if err != nil {
				close(r.apps)
				return
			}
			r.apps <- c
		}
	}()
	t.Cleanup(r.close)
	return r
}

func newChan[T any](n int) chan T { return make(chan T, n) }

// close ends everything and fails the test when an engine does not end.
func (r *rig) close() {
	r.app.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	for _, e := range []hbone.Engine{r.client.engine, r.server.engine} {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			if err := e.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				r.t.Errorf("close engine: %v", err)
			}
		}()
		select {
		case <-closed:
		case <-time.After(wait):
			r.t.Error("engine does not close")
			return
		}
	}
	if err := within(r.t, r.served, "Serve to return"); err != nil {
		r.t.Errorf("Serve: %v", err)
	}
	for c := range r.apps {
		c.Close()
	}
}

// accept is the server's Accept: every authority means the one application.
func (r *rig) accept(ctx context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
	r.mu.Lock()
	r.requests = append(r.requests, req)
	r.mu.Unlock()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", r.app.Addr().String())
	if err != nil {
		return nil, err
	}
	return &hbone.Accepted{Conn: c.(*net.TCPConn), Done: func(o hbone.Outcome) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.inbound = append(r.inbound, o)
	}}, nil
}

// request is a CONNECT from the rig's client to its server.
func (r *rig) request() *hbone.ConnectRequest {
	r.mu.Lock()
	cert := r.client.cert
	r.mu.Unlock()
	return &hbone.ConnectRequest{
		Key:         hbone.Key{Source: "client-pod", Leaf: hbone.Fingerprint(cert), Peer: r.ca.ID("server"), Endpoint: r.endpoint},
		Certificate: cert, Bundles: r.client.ca.Bundle(),
		Authority: netip.MustParseAddrPort("10.1.2.3:8080"),
		Forwarded: netip.MustParseAddrPort("10.9.8.7:1234"),
		Dial:      r.dial, Timeout: wait,
	}
}

func (r *rig) dial(ctx context.Context) (*net.TCPConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", cmp.Or(r.via, r.endpoint.String()))
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wires = append(r.wires, c)
	return c.(*net.TCPConn), nil
}

func (r *rig) dialed() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.wires) }

// flow is one connection of a program through the tunnel.
type flow struct {
	t       *testing.T
	program *net.TCPConn // what the program holds
	app     *net.TCPConn // what the application accepted
	opened  chan hbone.Timing
	secured chan secured.By
	done    chan hbone.Outcome
	back    chan hbone.Outcome // Unanswered
	local   *net.TCPConn       // given to the engine
	req     *hbone.ConnectRequest
}

// start connects without waiting for anything.
func (r *rig) start(req *hbone.ConnectRequest) *flow {
	r.t.Helper()
	program, local := pair(r.t)
	if r.small {
		must(r.t, errors.Join(smallBuffers(program), smallBuffers(local)))
	}
	return r.startOn(req, program, local)
}

// startOn is start for a connection that is there already.
func (r *rig) startOn(req *hbone.ConnectRequest, program, local *net.TCPConn) *flow {
	f := &flow{t: r.t, req: req, program: program, local: local, opened: make(chan hbone.Timing, 2), secured: make(chan secured.By, 2), done: make(chan hbone.Outcome, 2), back: make(chan hbone.Outcome, 2)}
	req.Established = func(tm hbone.Timing, by secured.By) { f.secured <- by; f.opened <- tm }
	req.Done = func(o hbone.Outcome) { f.done <- o }
	r.client.engine.Connect(local, req)
	return f
}

// open connects and waits for both ends.
func (r *rig) open(req *hbone.ConnectRequest) *flow {
	r.t.Helper()
	f := r.start(req)
	select {
	case <-f.opened:
	case o := <-f.done:
		r.t.Fatalf("connect: %v", o.Err)
	case <-time.After(wait):
		r.t.Fatal("connect: no outcome")
	}
	f.app = within(r.t, r.apps, "the application's connection")
	r.t.Cleanup(func() { f.app.Close() })
	return f
}

// outcome waits for Done, and makes sure that it is called once.
func (f *flow) outcome() hbone.Outcome {
	f.t.Helper()
	o := within(f.t, f.done, "Done")
	select {
	case again := <-f.done:
		f.t.Errorf("Done called twice: %v", again.Err)
	case <-time.After(5 * time.Millisecond):
	}
	return o
}

// lastInbound waits until n streams have ended at the server.
func (r *rig) lastInbound(n int) hbone.Outcome {
	r.t.Helper()
	eventually(r.t, "the server's Done", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.inbound) >= n })
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inbound[n-1]
}

// lastRefusal waits for a refusal that matches want.
func (r *rig) lastRefusal(want error) {
	r.t.Helper()
	eventually(r.t, "a refusal: "+want.Error(), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, f := range r.refused {
			if errors.Is(f.Err, want) {
				return true
			}
		}
		return false
	})
}

// echo makes the application send back what it gets on this flow, and checks a
// message.
func (f *flow) echo(message string) {
	f.t.Helper()
	send(f.t, f.program, message)
	expect(f.t, f.app, message)
	send(f.t, f.app, "re: "+message)
	expect(f.t, f.program, "re: "+message)
}

// finish ends a flow in good order from the program's side.
func (f *flow) finish() {
	f.t.Helper()
	must(f.t, f.program.CloseWrite())
	expectEnd(f.t, f.app)
	must(f.t, f.app.CloseWrite())
	expectEnd(f.t, f.program)
	if o := f.outcome(); o.Err != nil {
		f.t.Errorf("outcome: %v", o.Err)
	}
}

func listen(t testing.TB, addr string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l.(*net.TCPListener)
}

// pair is the two ends of one TCP connection; the first is closed by the test.
func pair(t testing.TB) (ours, theirs *net.TCPConn) {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	b, err := l.AcceptTCP()
	must(t, err)
	t.Cleanup(func() { a.Close() })
	return a.(*net.TCPConn), b
}

// tcpPair is the two ends of one TCP connection.
func tcpPair() (a, b *net.TCPConn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	d, err := l.Accept()
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c.(*net.TCPConn), d.(*net.TCPConn), nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v, ok := <-c:
		if !ok {
			t.Fatalf("%s: never", what)
		}
		return v
	case <-time.After(wait):
		t.Fatalf("%s: not within %v", what, wait)
		panic("unreachable")
	}
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(wait); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, wait)
		}
	}
}

func send(t testing.TB, c net.Conn, s string) {
	t.Helper()
	_, err := c.Write([]byte(s))
	must(t, err)
}

func expect(t testing.TB, c net.Conn, s string) {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(wait)))
	got := make([]byte, len(s))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != s {
		t.Fatalf("read %q, %v; want %q", got[:n], err, s)
	}
}

// expectEnd reads a FIN, and nothing before it.
func expectEnd(t testing.TB, c net.Conn) {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(wait)))
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read %d bytes, %v; want a FIN", n, err)
	}
}

// expectReset waits for a RST. After a FIN only writing shows it.
func expectReset(t testing.TB, c *net.TCPConn, afterFIN bool) {
	t.Helper()
	if afterFIN {
		eventually(t, "a RST after the FIN", func() bool {
			_, err := c.Write([]byte("x"))
			return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		})
		return
	}
	must(t, c.SetReadDeadline(time.Now().Add(wait)))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes, %v; want a RST", n, err)
	}
}

func reset(t testing.TB, c *net.TCPConn) {
	t.Helper()
	must(t, c.SetLinger(0))
	must(t, c.Close())
}
