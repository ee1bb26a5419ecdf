package fast

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const lostWait = 20 * time.Second

// lostRig is an engine of one loop, and a peer whose one connection can be reset
// while the loop is busy: the loop meets that in a write.
type lostRig struct {
	t      *testing.T
	eng    *Engine
	w      *worker
	peer   *net.TCPConn // the peer's end
	socket *net.TCPConn // another descriptor of ours
	cert   *tls.Certificate
	ca     *enginetest.CA
	key    hbone.Key
	dials  atomic.Int32
	hung   chan struct{} // ends the dials after the first
}

func newLostRig(t *testing.T) *lostRig {
	r := &lostRig{t: t, eng: New(Config{Loops: 1}), ca: enginetest.NewCA(t, "mesh.test"), hung: make(chan struct{})}
	r.cert = r.ca.SVID(t, "client")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r.key = hbone.Key{Source: "pod", Leaf: hbone.Fingerprint(r.cert), Peer: r.ca.ID("server"), Endpoint: l.Addr().(*net.TCPAddr).AddrPort()}
	accepted := make(chan error, 1)
	go func() { accepted <- r.accept(l, r.ca.SVID(t, "server")) }()
	t.Cleanup(func() {
		close(r.hung)
		ctx, cancel := context.WithTimeout(context.Background(), lostWait)
		defer cancel()
		if err := r.eng.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		r.peer.Close()
		r.socket.Close()
	})
	workers, err := r.eng.enter()
	if err != nil {
		t.Fatal(err)
	}
	defer r.eng.release()
	r.w = workers[0]
	r.w.on(func() { r.w.begin(r.request(), &dialing{}) })
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, lostWait, "a connection in the pool", func() (ready bool) {
		r.w.on(func() { ready = len(r.w.entry(r.key).conns) == 1 })
		return ready
	})
	return r
}

// accept is a peer that takes any number of streams, and reads none.
func (r *lostRig) accept(l net.Listener, cert *tls.Certificate) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	r.peer = conn.(*net.TCPConn)
	secured := tls.Server(conn, &tls.Config{
		NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
		VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { return nil },
	})
	if err := secured.Handshake(); err != nil {
		return err
	}
	if err := http2.NewFramer(secured, secured).WriteSettings(); err != nil {
		return err
	}
	_, err = io.ReadFull(secured, make([]byte, len(http2.ClientPreface)))
	return err
}

func (r *lostRig) request() *hbone.ConnectRequest {
	return &hbone.ConnectRequest{
		Key: r.key, Certificate: r.cert, Bundles: r.ca.Bundle(), Authority: netip.MustParseAddrPort("10.0.0.1:80"), Timeout: lostWait,
		Baggage: strings.Repeat("b", 15<<10), // so that ten of them fill the buffer under work
		Dial: func(ctx context.Context) (*net.TCPConn, error) {
			if r.dials.Add(1) > 1 {
				<-r.hung // a dial that does not look at its time
				return nil, net.ErrClosed
			}
			c, err := new(net.Dialer).DialContext(ctx, "tcp", r.key.Endpoint.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), r.watch(c.(*net.TCPConn))
		},
	}
}

// watch keeps a descriptor of the connection.
func (r *lostRig) watch(c *net.TCPConn) error {
	f, err := c.File()
	if err != nil {
		return err
	}
	defer f.Close()
	again, err := net.FileConn(f)
	if err != nil {
		return err
	}
	r.socket = again.(*net.TCPConn)
	return nil
}

// reset ends the connection at the peer, and waits until our socket knows. It runs
// on the loop, which then does not.
func (r *lostRig) reset() {
	if err := r.peer.SetLinger(0); err != nil {
		r.t.Error(err)
	}
	r.peer.Close()
	raw, err := r.socket.SyscallConn()
	if err != nil {
		r.t.Error(err)
		return
	}
	for deadline := time.Now().Add(lostWait); ; {
		var n int
		fds := []unix.PollFd{{}}
		if err := raw.Control(func(fd uintptr) {
			fds[0].Fd = int32(fd)
			n, _ = unix.Poll(fds, 100)
		}); err != nil || time.Now().After(deadline) {
			r.t.Errorf("the reset does not come: %v", err)
			return
		}
		if n == 1 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0 {
			return
		}
	}
}

// open gives the worker a request of the program at the other end of local.
func (r *lostRig) open(local *net.TCPConn, change func(*outbound)) (o *outbound, done chan hbone.Outcome) {
	done = make(chan hbone.Outcome, 1)
	req := r.request()
	req.Done = func(o hbone.Outcome) { done <- o }
	o = &outbound{eng: r.eng, req: req, local: eventloop.Conn{TCPConn: local}}
	change(o)
	r.eng.hold()
	r.w.connect(o)
	return o, done
}

// locals are sockets of programs that say nothing.
func (r *lostRig) locals(n int) (all []*net.TCPConn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	for range n {
		program, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { program.Close() })
		local, err := l.Accept()
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { local.Close() }) // unless the engine has
		all = append(all, local.(*net.TCPConn))
	}
	return all
}

// loseWhileOpening opens streams in one turn of the loop, on a connection that was
// reset, until the write of one meets that. It calls look with this one, still on
// the loop, and returns its outcome.
func (r *lostRig) loseWhileOpening(change func(*outbound), look func(*outbound)) (outcome chan hbone.Outcome) {
	r.t.Helper()
	locals := r.locals(20)
	lost := false
	r.w.on(func() {
		conn := r.w.entry(r.key).conns[0]
		r.reset()
		for _, local := range locals {
			var last *outbound
			last, outcome = r.open(local, change)
			if ent := r.w.entries[r.key]; ent == nil || !slices.Contains(ent.conns, conn) {
				lost = true
				look(last)
				return
			}
		}
	})
	if !lost {
		r.t.Fatalf("%d streams were opened, and the connection is not lost", len(locals))
	}
	return outcome
}

// TestLostWhileOpening: a request whose connection is lost as it is written to, and
// that is not to be repeated, fails, and nothing stays of its key.
func TestLostWhileOpening(t *testing.T) {
	r := newLostRig(t)
	outcome := r.loseWhileOpening(func(o *outbound) { o.attempts = maxAttempts }, func(*outbound) {
		if ent := r.w.entries[r.key]; ent != nil {
			t.Errorf("of the key stays %+v", ent)
		}
	})
	if o := <-outcome; o.Err == nil { // it has failed on the loop
		t.Error("no error")
	}
}

// TestLostWhileOpeningKeepsTimeout: one that is to be repeated, and waits for a dial
// that does not end, still ends at its time.
func TestLostWhileOpeningKeepsTimeout(t *testing.T) {
	r := newLostRig(t)
	outcome := r.loseWhileOpening(func(o *outbound) { o.req.Timeout = 300 * time.Millisecond }, func(o *outbound) {
		if o.stream != nil || o.done {
			t.Errorf("stream %p, done %v: want neither", o.stream, o.done)
		}
	})
	select {
	case o := <-outcome:
		if !errors.Is(o.Err, hbone.ErrTimeout) {
			t.Errorf("outcome %v, want a timeout", o.Err)
		}
	case <-time.After(lostWait):
		t.Error("the request outlives its time")
	}
}
