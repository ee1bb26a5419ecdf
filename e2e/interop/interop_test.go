package interop

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/hbone/fast"
	"github.com/heddle-mesh/heddle/internal/hbone/reference"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const (
	wait      = 20 * time.Second
	authority = "10.1.2.3:8080"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// world is our engine and somebody else's, and an application.
type world struct {
	t      *testing.T
	ca     *enginetest.CA
	engine hbone.Engine
	app    *net.TCPListener
}

// eachEngine runs a test with both of our engines.
func eachEngine(t *testing.T, test func(*testing.T, *world)) {
	t.Run("loop", func(t *testing.T) { test(t, newWorld(t, fast.New(fast.Config{}))) })
	t.Run("reference", func(t *testing.T) { test(t, newWorld(t, reference.New(reference.Config{}))) })
}

func newWorld(t *testing.T, engine hbone.Engine) *world {
	w := &world{t: t, ca: enginetest.NewCA(t, "mesh.test"), engine: engine, app: listen(t)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if err := w.engine.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	return w
}

func (w *world) portOf(l *net.TCPListener) int { return l.Addr().(*net.TCPAddr).Port }

// envoy runs Envoy with a configuration until the test ends, and returns the
// address that it listens on.
func (w *world) envoy(config, account, peer string, target int) string {
	t := w.t
	t.Helper()
	free := listen(t)
	address := free.Addr().String()
	must(t, free.Close())
	run(t, exec.Command, config, settings{
		certificate: w.ca.SVID(t, account), root: w.ca.Cert, peer: w.ca.ID(peer), authority: authority,
		listen: netip.MustParseAddrPort(address), target: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(target)),
	})
	return address
}

// connector makes a connection from a program to the application through both
// proxies and returns both ends, and our engine's outcome.
type connector func(t *testing.T) (program, app *net.TCPConn, done <-chan hbone.Outcome)

// TestToEnvoy: our client's end, Envoy terminates the tunnel.
func TestToEnvoy(t *testing.T) { eachEngine(t, toEnvoy) }

func toEnvoy(t *testing.T, w *world) {
	endpoint := netip.MustParseAddrPort(w.envoy("envoy_in.yaml", "server", "client", w.portOf(w.app)))
	cert := w.ca.SVID(t, "client")
	request := func(done chan hbone.Outcome) *hbone.ConnectRequest { return w.request(cert, endpoint, authority, done) }
	// Envoy ends the whole stream (END_STREAM, then RST_STREAM) when its
	// upstream sends a FIN first.
	exercise(t, false, func(t *testing.T) (*net.TCPConn, *net.TCPConn, <-chan hbone.Outcome) {
		program, local := pair(t)
		done := make(chan hbone.Outcome, 1)
		w.engine.Connect(local, request(done))
		return program, accept(t, w.app), done
	})
	t.Run("refused", func(t *testing.T) {
		program, local := pair(t)
		done := make(chan hbone.Outcome, 1)
		req := request(done)
		req.Authority = netip.MustParseAddrPort("10.1.2.4:1")
		w.engine.Connect(local, req)
		o := outcome(t, done)
		if status, ok := errors.AsType[*hbone.StatusError](o.Err); !ok || status.Code != 401 {
			t.Errorf("outcome %v, want 401", o.Err)
		}
		expectReset(t, program)
	})
	t.Run("wrong identity", func(t *testing.T) {
		_, local := pair(t)
		done := make(chan hbone.Outcome, 1)
		req := request(done)
		req.Peer = w.ca.ID("somebody-else")
		w.engine.Connect(local, req)
		if o := outcome(t, done); !errors.Is(o.Err, hbone.ErrPeerMismatch) {
			t.Errorf("outcome %v", o.Err)
		}
	})
	t.Run("our identity refused", func(t *testing.T) {
		_, local := pair(t)
		done := make(chan hbone.Outcome, 1)
		req := request(done)
		req.Certificate = w.ca.SVID(t, "stranger")
		req.Leaf = hbone.Fingerprint(req.Certificate)
		w.engine.Connect(local, req)
		if o := outcome(t, done); !errors.Is(o.Err, hbone.ErrHandshake) {
			t.Errorf("outcome %v", o.Err)
		}
	})
}

// request is one of our client's end, as "client" to "server".
func (w *world) request(cert *tls.Certificate, endpoint netip.AddrPort, authority string, done chan hbone.Outcome) *hbone.ConnectRequest {
	return &hbone.ConnectRequest{
		Key:         hbone.Key{Source: "pod", Leaf: hbone.Fingerprint(cert), Peer: w.ca.ID("server"), Endpoint: endpoint},
		Certificate: cert, Bundles: w.ca.Bundle(), Authority: netip.MustParseAddrPort(authority),
		Forwarded: netip.MustParseAddrPort("[2001:db8::1]:1234"), Baggage: "service.name=heddle", Timeout: wait,
		Dial: func(ctx context.Context) (*net.TCPConn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", endpoint.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		Done: func(o hbone.Outcome) { done <- o },
	}
}

// TestFromEnvoy: Envoy opens the tunnel, our server's end terminates it.
func TestFromEnvoy(t *testing.T) { eachEngine(t, fromEnvoy) }

func fromEnvoy(t *testing.T, w *world) {
	cert := w.ca.SVID(t, "server")
	var mu sync.Mutex
	var last *hbone.StreamRequest
	deny := false
	outcomes := make(chan hbone.Outcome, 100)
	srv := &hbone.Server{
		Local: "pod", Certificate: func() (*tls.Certificate, error) { return cert, nil }, Bundles: w.ca.Bundle(),
		Refused: func(r hbone.Refusal) { t.Errorf("refused: %v", r.Err) },
		Accept: func(ctx context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
			mu.Lock()
			defer mu.Unlock()
			if last = req; deny {
				return nil, &hbone.StatusError{Code: 401, Reason: "denied"}
			}
			c, err := net.Dial("tcp", w.app.Addr().String())
			if err != nil {
				return nil, err
			}
			return &hbone.Accepted{Conn: c.(*net.TCPConn), Done: func(o hbone.Outcome) { outcomes <- o }}, nil
		},
	}
	l := w.serve(srv)
	envoy := w.envoy("envoy_out.yaml", "client", "server", w.portOf(l))
	exercise(t, true, func(t *testing.T) (*net.TCPConn, *net.TCPConn, <-chan hbone.Outcome) {
		program, err := net.Dial("tcp", envoy)
		must(t, err)
		t.Cleanup(func() { program.Close() })
		app := accept(t, w.app)
		mu.Lock()
		defer mu.Unlock()
		if last.Peer != w.ca.ID("client") || last.Authority.String() != authority || last.Forwarded != program.LocalAddr().(*net.TCPAddr).AddrPort() || last.Baggage != "service.name=envoy" {
			t.Errorf("request %+v", last)
		}
		return program.(*net.TCPConn), app, outcomes
	})
	t.Run("refused", func(t *testing.T) {
		mu.Lock()
		deny = true
		mu.Unlock()
		program, err := net.Dial("tcp", envoy)
		must(t, err)
		defer program.Close()
		must(t, program.SetDeadline(time.Now().Add(wait)))
		if n, err := program.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d, %v; want the end", n, err)
		}
	})
}

// serve runs our server's end until the test ends.
func (w *world) serve(srv *hbone.Server) *net.TCPListener {
	l := listen(w.t)
	served := make(chan error, 1)
	go func() { served <- w.engine.Serve(l, srv) }()
	w.t.Cleanup(func() { l.Close(); w.engine.Drain(hbone.Match{}, true); <-served })
	return l
}

// exercise tries everything that a stream can do. appEndsFirst says whether
// Envoy lets the application end its half and go on reading.
func exercise(t *testing.T, appEndsFirst bool, connect connector) {
	t.Run("echo", func(t *testing.T) {
		program, app, done := connect(t)
		for _, message := range []string{"one", "two"} {
			say(t, program, app, message)
			say(t, app, program, "re: "+message)
		}
		must(t, program.Close())
		expectEnd(t, app)
		must(t, app.Close())
		outcome(t, done)
	})
	t.Run("server first", func(t *testing.T) {
		program, app, done := connect(t)
		say(t, app, program, "220 ready")
		finish(t, program, app, done)
	})
	t.Run("FIN by the program first", func(t *testing.T) {
		program, app, done := connect(t)
		say(t, program, app, "question")
		must(t, program.CloseWrite())
		expectEnd(t, app)
		say(t, app, program, "a late answer")
		must(t, app.CloseWrite())
		expectEnd(t, program)
		if o := outcome(t, done); o.Err != nil {
			t.Error(o.Err)
		}
	})
	t.Run("FIN by the application first", func(t *testing.T) {
		program, app, done := connect(t)
		say(t, app, program, "all I have")
		must(t, app.CloseWrite())
		expectEnd(t, program)
		if !appEndsFirst {
			// Envoy ends its stream and resets it with NO_ERROR: all has come (RFC 9113,
			// section 8.1). The reference engine cannot tell that code from others.
			if o := outcome(t, done); o.Err != nil && !errors.Is(o.Err, hbone.ErrReset) {
				t.Errorf("outcome %v", o.Err)
			}
			return
		}
		say(t, program, app, "but I go on")
		must(t, program.CloseWrite())
		expectEnd(t, app)
		if o := outcome(t, done); o.Err != nil {
			t.Error(o.Err)
		}
	})
	for _, who := range []string{"program", "application"} {
		t.Run("RST by the "+who, func(t *testing.T) {
			program, app, done := connect(t)
			say(t, program, app, "hello")
			one, other := program, app
			if who == "application" {
				one, other = app, program
			}
			must(t, one.SetLinger(0))
			must(t, one.Close())
			must(t, other.SetReadDeadline(time.Now().Add(wait)))
			if _, err := other.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%v; want the end", err)
			}
			outcome(t, done)
		})
	}
	t.Run("big transfer", func(t *testing.T) { bigTransfer(t, connect, appEndsFirst) })
	t.Run("many", func(t *testing.T) { many(t, connect) })
}

// bigTransfer sends both ways at once. The application ends last where its FIN
// would be the end of everything.
func bigTransfer(t *testing.T, connect connector, appEndsFirst bool) {
	const size = 64 << 20
	program, app, done := connect(t)
	appHasAll := make(chan struct{})
	var sent, got [2][32]byte
	var all sync.WaitGroup
	for i, ends := range [2][2]*net.TCPConn{{program, app}, {app, program}} {
		all.Go(func() {
			sum, random := sha256.New(), rand.NewChaCha8([32]byte{byte(i)})
			if _, err := io.CopyN(io.MultiWriter(sum, ends[0]), random, size); err != nil {
				t.Error(err)
			}
			if ends[0] == app && !appEndsFirst {
				<-appHasAll
			}
			if err := ends[0].CloseWrite(); err != nil {
				t.Error(err)
			}
			sent[i] = [32]byte(sum.Sum(nil))
		})
		all.Go(func() {
			sum := sha256.New()
			if _, err := io.Copy(sum, ends[1]); err != nil {
				t.Error(err)
			}
			got[i] = [32]byte(sum.Sum(nil))
			if ends[1] == app {
				close(appHasAll)
			}
		})
	}
	all.Wait()
	if sent != got {
		t.Error("bytes changed on the way")
	}
	if o := outcome(t, done); o.Err != nil || o.Sent != size || o.Received != size {
		t.Errorf("outcome %+v", o)
	}
}

// many opens more connections than one tunnel connection may carry.
func many(t *testing.T, connect connector) {
	type flow struct {
		program, app *net.TCPConn
		done         <-chan hbone.Outcome
	}
	var flows []flow
	for range 150 {
		program, app, done := connect(t)
		flows = append(flows, flow{program, app, done})
	}
	for i, f := range flows {
		say(t, f.program, f.app, fmt.Sprint("message ", i))
		say(t, f.app, f.program, fmt.Sprint("answer ", i))
	}
	for _, f := range flows {
		finish(t, f.program, f.app, f.done)
	}
}

func finish(t *testing.T, program, app *net.TCPConn, done <-chan hbone.Outcome) {
	t.Helper()
	must(t, program.CloseWrite())
	expectEnd(t, app)
	must(t, app.CloseWrite())
	expectEnd(t, program)
	if o := outcome(t, done); o.Err != nil {
		t.Error(o.Err)
	}
}

func outcome(t *testing.T, done <-chan hbone.Outcome) hbone.Outcome {
	t.Helper()
	select {
	case o := <-done:
		return o
	case <-time.After(wait):
		t.Fatal("no outcome")
		return hbone.Outcome{}
	}
}

func say(t *testing.T, from, to *net.TCPConn, message string) {
	t.Helper()
	_, err := from.Write([]byte(message))
	must(t, err)
	hear(t, to, message)
}

func hear(t *testing.T, to *net.TCPConn, message string) {
	t.Helper()
	must(t, to.SetReadDeadline(time.Now().Add(wait)))
	got := make([]byte, len(message))
	if n, err := io.ReadFull(to, got); err != nil || string(got) != message {
		t.Fatalf("got %d bytes (%.40q), %v; want %d (%.40q)", n, got[:n], err, len(message), message)
	}
}

func expectEnd(t *testing.T, c *net.TCPConn) {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(wait)))
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read %d, %v; want a FIN", n, err)
	}
}

func expectReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(wait)))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d, %v; want a RST", n, err)
	}
}

func accept(t *testing.T, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	must(t, l.SetDeadline(time.Now().Add(wait)))
	c, err := l.AcceptTCP()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func pair(t *testing.T) (ours, theirs *net.TCPConn) {
	t.Helper()
	l := listen(t)
	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	theirs, err = l.AcceptTCP()
	must(t, err)
	must(t, l.Close())
	return c.(*net.TCPConn), theirs
}

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
