package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

func lifeTests() []test {
	return []test{
		{"timeouts", testTimeouts}, {"unreachable", testUnreachable}, {"silent peer", testSilentPeer},
		{"drain", testDrain}, {"drain with abort", testDrainAbort}, {"drain matches", testDrainMatches}, {"drain by the server", testServerDrain},
		{"close waits", testCloseWaits}, {"close cuts", testCloseCuts}, {"connect after close", testConnectAfterClose}, {"listener closed", testListenerClosed},
	}
}

// blackhole accepts and reads, and never answers.
func blackhole(t *testing.T) string {
	l := listen(t, "127.0.0.1:0")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(io.Discard, c) // until the engine gives up
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func testTimeouts(t *testing.T, make New) {
	r := newRig(t, make, Options{}, func(r *rig) {
		r.srv.Accept = func(ctx context.Context, _ *hbone.StreamRequest) (*hbone.Accepted, error) {
			<-ctx.Done() // ends with the stream: the client gave up
			return nil, ctx.Err()
		}
	})
	hole := blackhole(t)
	for name, dial := range map[string]func(context.Context) (*net.TCPConn, error){
		"dial":      func(ctx context.Context) (*net.TCPConn, error) { <-ctx.Done(); return nil, ctx.Err() },
		"handshake": dialTo(hole),
		"connect":   r.dial,
	} {
		req := r.request()
		req.Source = name
		req.Dial, req.Timeout = dial, 150*time.Millisecond
		start := time.Now()
		f := r.start(req)
		if o := f.outcome(); !errors.Is(o.Err, hbone.ErrTimeout) {
			t.Errorf("%s: %v, want a timeout", name, o.Err)
		}
		if took := time.Since(start); took < 140*time.Millisecond || took > 2*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
		expectReset(t, f.program, false)
	}
}

func testUnreachable(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	l := listen(t, "127.0.0.1:0")
	must(t, l.Close())
	req := r.request()
	req.Dial = dialTo(l.Addr().String())
	if o := r.start(req).outcome(); !errors.Is(o.Err, hbone.ErrUnreachable) {
		t.Errorf("outcome %v", o.Err)
	}
}

// testSilentPeer: a path that swallows everything without a RST, as when a
// node loses power. Both ends must find out by asking.
func testSilentPeer(t *testing.T, make New) {
	r := newRig(t, make, Options{PingInterval: 100 * time.Millisecond, PingTimeout: 150 * time.Millisecond})
	path := newPath(t, r.endpoint.String())
	req := r.request()
	req.Dial = dialTo(path.addr)
	f := r.open(req)
	f.echo("hello")
	time.Sleep(500 * time.Millisecond)
	f.echo("idle is not dead")
	path.swallow()
	expectReset(t, f.program, false)
	expectReset(t, f.app, false)
	if o := f.outcome(); !errors.Is(o.Err, hbone.ErrProtocol) {
		t.Errorf("outcome %v", o.Err)
	}
	if in := r.lastInbound(1); !errors.Is(in.Err, hbone.ErrProtocol) {
		t.Errorf("server's outcome %v", in.Err)
	}
}

// path is a forwarder that can stop forwarding, or reset what it forwards.
type path struct {
	addr         string
	swallow, cut func()
}

func newPath(t *testing.T, to string) *path {
	l := listen(t, "127.0.0.1:0")
	ctx, stop := context.WithCancel(context.Background())
	copyWhile := func(dst, src net.Conn) {
		buf := newBuffer(32 << 10)
		for {
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			if ctx.Err() == nil {
				if _, err := dst.Write(buf[:n]); err != nil {
					return
				}
			}
		}
	}
	var mu sync.Mutex
	var ends []*net.TCPConn
	cut := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range ends {
			_ = c.SetLinger(0) // fails only on a closed socket
			c.Close()
		}
		ends = nil
	}
	go func() {
		for {
			a, err := l.AcceptTCP()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			ends = append(ends, a, b.(*net.TCPConn))
			mu.Unlock()
			go copyWhile(b, a)
			go copyWhile(a, b)
		}
	}()
	t.Cleanup(func() { stop(); l.Close(); cut() })
	return &path{l.Addr().String(), stop, cut}
}

func testDrain(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	f := r.open(r.request())
	r.client.engine.Drain(hbone.Match{}, false)
	f.echo("goes on")
	next := r.open(r.request())
	next.echo("on a new connection")
	if n := r.dialed(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	f.finish()
	next.finish()
	expectClosed(t, r.wires[0])
}

// expectClosed waits until the engine has closed a connection that it dialed.
// It asks the kernel, since an engine may take the socket itself apart.
func expectClosed(t *testing.T, c net.Conn) {
	t.Helper()
	const established = "01" // include/net/tcp_states.h
	at := func(a net.Addr) string { return fmt.Sprintf("0100007F:%04X", a.(*net.TCPAddr).Port) }
	// Both ends: another's connection may have the number of one.
	own := fmt.Sprintf(": %s %s %s ", at(c.LocalAddr()), at(c.RemoteAddr()), established)
	eventually(t, "the connection closes", func() bool {
		table, err := os.ReadFile("/proc/self/net/tcp")
		must(t, err)
		return !strings.Contains(string(table), own)
	})
}

func testDrainAbort(t *testing.T, make New) {
	for _, who := range []string{"client", "server"} {
		r := newRig(t, make, Options{})
		f := r.open(r.request())
		f.echo("hello")
		half := r.open(r.request()) // half of it has ended
		must(t, half.program.CloseWrite())
		expectEnd(t, half.app)
		s := r.client
		if who == "server" {
			s = r.server
		}
		s.engine.Drain(hbone.Match{}, false) // one that was drained before is still found
		s.engine.Drain(hbone.Match{}, true)
		expectReset(t, f.program, false)
		expectReset(t, f.app, false)
		out, in := f.outcome(), r.lastInbound(2)
		if who == "client" && !errors.Is(out.Err, hbone.ErrRevoked) || who == "server" && !errors.Is(in.Err, hbone.ErrRevoked) {
			t.Errorf("drain by the %s: outcomes %v and %v", who, out.Err, in.Err)
		}
		if out.Err == nil || in.Err == nil || half.outcome().Err == nil {
			t.Errorf("drain by the %s: a cut stream has no error", who)
		}
	}
}

func testDrainMatches(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	mine := hbone.Match{Source: "client-pod", Peer: r.ca.ID("server"), LeafFingerprint: hbone.Fingerprint(r.client.cert)}
	f := r.open(r.request())
	other := mine
	other.LeafFingerprint[0] ^= 1
	for _, m := range []hbone.Match{{Source: "x"}, {Peer: r.ca.ID("client")}, other} {
		r.client.engine.Drain(m, true)
	}
	for _, m := range []hbone.Match{{Source: "client-pod"}, {Peer: r.ca.ID("server")}, {LeafFingerprint: mine.LeafFingerprint}} {
		r.server.engine.Drain(m, true)
	}
	f.echo("nothing matched")
	r.server.engine.Drain(hbone.Match{Source: "server-pod", Peer: r.ca.ID("client"), LeafFingerprint: hbone.Fingerprint(r.server.cert)}, true)
	if o := f.outcome(); o.Err == nil {
		t.Error("everything matched, and the stream has no error")
	}
	f = r.open(r.request())
	r.client.engine.Drain(mine, true)
	if o := f.outcome(); !errors.Is(o.Err, hbone.ErrRevoked) {
		t.Errorf("outcome %v", o.Err)
	}
}

// testServerDrain: the peer's GOAWAY loses no stream, however many are opened
// at that very moment.
func testServerDrain(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	f := r.open(r.request())
	stop := time.After(500 * time.Millisecond)
	drain := time.NewTicker(20 * time.Millisecond)
	defer drain.Stop()
	for n := 0; ; n++ {
		select {
		case <-stop:
			f.echo("the first stream goes on")
			f.finish()
			if r.dialed() < 3 {
				t.Errorf("%d connections for %d streams under drains", r.dialed(), n)
			}
			return
		case <-drain.C:
			r.server.engine.Drain(hbone.Match{}, false)
		default:
			next := r.open(r.request())
			next.echo("x")
			next.finish()
		}
	}
}

func testCloseWaits(t *testing.T, make New) {
	for _, who := range []string{"client", "server"} {
		r := newRig(t, make, Options{})
		f := r.open(r.request())
		e := r.client.engine
		if who == "server" {
			e = r.server.engine
		}
		closed := newChan[error](1)
		go func() { closed <- e.Close(context.Background()) }()
		time.Sleep(50 * time.Millisecond)
		f.echo("open streams finish")
		select {
		case <-closed:
			t.Errorf("%s: Close did not wait for a stream", who)
		default:
		}
		f.finish()
		if err := within(t, closed, "Close"); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
}

func testCloseCuts(t *testing.T, make New) {
	for _, who := range []string{"client", "server"} {
		r := newRig(t, make, Options{})
		f := r.open(r.request())
		e := r.client.engine
		if who == "server" {
			e = r.server.engine
		}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if err := e.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: Close returned %v", who, err)
		}
		expectReset(t, f.program, false)
		expectReset(t, f.app, false)
		out, in := f.outcome(), r.lastInbound(1)
		if who == "client" && !errors.Is(out.Err, hbone.ErrDraining) || who == "server" && !errors.Is(in.Err, hbone.ErrDraining) {
			t.Errorf("%s: outcomes %v and %v", who, out.Err, in.Err)
		}
	}
}

func testConnectAfterClose(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	must(t, r.client.engine.Close(context.Background()))
	if o := r.start(r.request()).outcome(); !errors.Is(o.Err, hbone.ErrDraining) {
		t.Errorf("outcome %v", o.Err)
	}
	l := listen(t, "127.0.0.1:0")
	if err := r.client.engine.Serve(l, r.srv); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
}

// testListenerClosed: Serve ends with its listener, after its streams.
func testListenerClosed(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	l := listen(t, "127.0.0.1:0")
	served := newChan[error](1)
	go func() { served <- r.server.engine.Serve(l, r.srv) }()
	req := r.request()
	req.Endpoint, req.Dial = l.Addr().(*net.TCPAddr).AddrPort(), dialTo(l.Addr().String())
	f := r.open(req)
	must(t, l.Close())
	f.echo("still open")
	f.finish()
	if err := within(t, served, "Serve"); err != nil {
		t.Errorf("Serve: %v", err)
	}
}
