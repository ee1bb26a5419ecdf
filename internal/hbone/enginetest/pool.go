package enginetest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

func poolTests() []test {
	return []test{
		{"shares by key", testSharing}, {"single dial", testSingleDial}, {"dial that its caller refuses", testRefusedDial}, {"grows at the peer's limit", testGrows},
		{"never mixes identities", testNeverMixes}, {"key names its certificate", testKeyCertificate}, {"idle close", testIdleClose}, {"idle close by the server", testServerIdleClose},
		{"rotation", testRotation}, {"expiry", testExpiry}, {"bundle change", testBundleChange},
	}
}

func dialTo(addr string) func(context.Context) (*net.TCPConn, error) {
	return func(ctx context.Context) (*net.TCPConn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
}

func testSharing(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	first := r.open(r.request())
	second := r.open(r.request())
	second.echo("shared")
	second.finish()
	if n := r.dialed(); n != 1 {
		t.Errorf("equal keys: %d connections, want 1", n)
	}
	req := r.request()
	req.Source = "another pod"
	third := r.open(req)
	third.finish()
	if n := r.dialed(); n != 2 {
		t.Errorf("another source: %d connections, want 2", n)
	}
	first.finish()
	again := r.open(r.request())
	again.finish()
	if n := r.dialed(); n != 2 {
		t.Errorf("a warm connection was not used: %d connections", n)
	}
}

func testSingleDial(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	var flows []*flow
	release := newChan[struct{}](0)
	for range 50 {
		req := r.request()
		req.Dial = func(ctx context.Context) (*net.TCPConn, error) { <-release; return r.dial(ctx) }
		flows = append(flows, r.start(req))
	}
	time.Sleep(20 * time.Millisecond)
	close(release)
	pooled := 0
	for _, f := range flows {
		if within(t, f.opened, "Established").Pooled {
			pooled++
		}
	}
	if n := r.dialed(); n != 1 || pooled != 49 {
		t.Errorf("%d connections, %d streams on pooled ones; want 1, 49", n, pooled)
	}
}

// testRefusedDial: what a dial is refused for by its caller is told as it is to those
// who wait. Streams of the connection that is there open, whatever became of one that
// was dialled ahead of them.
func testRefusedDial(t *testing.T, make New) {
	r := newRig(t, make, Options{}, limits(hbone.Limits{Streams: 16}))
	refusal := fmt.Errorf("%w: of the caller's", hbone.ErrLimit)
	var refuses atomic.Bool
	request := func() *hbone.ConnectRequest {
		req := r.request()
		req.Dial = func(ctx context.Context) (*net.TCPConn, error) {
			if refuses.Load() {
				return nil, refusal
			}
			return r.dial(ctx)
		}
		return req
	}
	first := r.open(request())
	refuses.Store(true)
	for range 15 {
		r.open(request())
	}
	if o := r.start(request()).outcome(); !errors.Is(o.Err, refusal) || errors.Is(o.Err, hbone.ErrUnreachable) {
		t.Errorf("the 17th: %v", o.Err)
	}
	refuses.Store(false)
	r.open(request()).echo("later")
	first.echo("first")
	if n := r.dialed(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func testGrows(t *testing.T, make New) {
	r := newRig(t, make, Options{}, limits(hbone.Limits{Streams: 3}))
	var flows []*flow
	for range 10 {
		flows = append(flows, r.open(r.request()))
	}
	if n := r.dialed(); n != 4 {
		t.Errorf("%d connections for 10 streams of 3 each, want 4", n)
	}
	flows[0].echo("first")
	flows[9].echo("last")
	flows[0].finish()
	r.lastInbound(1)
	eventually(t, "the place of an ended stream is free", func() bool {
		r.open(r.request())
		return r.dialed() <= 5
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.refused) != 0 {
		t.Errorf("the engine ran into the peer's limit: %v", r.refused[0].Err)
	}
}

// testNeverMixes: whatever pods, certificates and destinations ask at once, each
// stream arrives with the identity that asked, from the connection of its pod.
func testNeverMixes(t *testing.T, make New) {
	const accounts, pods, rounds = 4, 3, 120
	// The baggage of each stream says what the client's side believes.
	r := newRig(t, make, Options{}, accepting(func(r *rig, _ context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.requests = append(r.requests, req)
		return nil, &hbone.StatusError{Code: 401}
	}))
	var certs []*tls.Certificate
	for i := range 2 * accounts { // two certificates for each account
		certs = append(certs, r.ca.SVID(t, fmt.Sprint("account-", i%accounts)))
	}
	var mu sync.Mutex
	dials := map[string]string{} // tunnel connection's local address: key
	var all sync.WaitGroup
	for range rounds {
		n, pod := rand.IntN(len(certs)), fmt.Sprint("pod-", rand.IntN(pods))
		req := r.request()
		req.Certificate, req.Leaf, req.Source = certs[n], hbone.Fingerprint(certs[n]), pod
		req.Baggage = fmt.Sprintf("account-%d,%s,%d", n%accounts, pod, n)
		req.Dial = func(ctx context.Context) (*net.TCPConn, error) {
			c, err := r.dial(ctx)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				dials[c.LocalAddr().String()] = req.Baggage
			}
			return c, err
		}
		f := r.start(req)
		all.Go(func() { <-f.done })
	}
	all.Wait()
	r.mu.Lock() // engines that use raw sockets order nothing for the race detector
	defer r.mu.Unlock()
	mu.Lock()
	defer mu.Unlock()
	if len(r.requests) != rounds {
		t.Fatalf("%d streams arrived, want %d", len(r.requests), rounds)
	}
	for _, got := range r.requests {
		if dialed := dials[got.Remote.String()]; dialed != got.Baggage {
			t.Errorf("a stream of %q came on the connection of %q", got.Baggage, dialed)
		}
		var account int
		if _, err := fmt.Sscanf(got.Baggage, "account-%d,", &account); err != nil || got.Peer != r.ca.ID(fmt.Sprint("account-", account)) {
			t.Errorf("a stream of %q arrived as %v", got.Baggage, got.Peer)
		}
	}
}

func testKeyCertificate(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	req := r.request()
	req.Leaf[0] ^= 1
	if o := r.start(req).outcome(); !errors.Is(o.Err, hbone.ErrPeerMismatch) {
		t.Errorf("outcome %v", o.Err)
	}
}

func testIdleClose(t *testing.T, make New) {
	r := newRig(t, make, Options{IdleTimeout: 100 * time.Millisecond})
	f := r.open(r.request())
	time.Sleep(300 * time.Millisecond)
	f.echo("an open stream keeps the connection")
	f.finish()
	f = r.open(r.request())
	f.finish()
	if n := r.dialed(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	time.Sleep(400 * time.Millisecond)
	f = r.open(r.request())
	f.finish()
	if n := r.dialed(); n != 2 {
		t.Errorf("%d connections after the idle time, want 2", n)
	}
}

func testServerIdleClose(t *testing.T, make New) {
	r := newRig(t, make, Options{ServerIdleTimeout: 100 * time.Millisecond, PingInterval: 50 * time.Millisecond})
	f := r.open(r.request())
	time.Sleep(300 * time.Millisecond)
	f.echo("an open stream keeps the connection")
	f.finish()
	expectClosed(t, r.wires[0])
	r.open(r.request()).finish()
	if n := r.dialed(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func testRotation(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	old := r.request()
	f := r.open(old)
	r.mu.Lock()
	r.client.cert, r.server.cert = r.ca.SVID(t, "client"), r.ca.SVID(t, "server")
	r.mu.Unlock()
	r.client.engine.Drain(hbone.Match{LeafFingerprint: old.Leaf}, false)
	f.echo("the old connection carries its stream on")
	next := r.open(r.request())
	next.echo("the new certificate has one of its own")
	f.finish()
	next.finish()
	if n := r.dialed(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	for i, want := range r.requests {
		if want.Peer != r.ca.ID("client") {
			t.Errorf("stream %d came from %v", i, want.Peer)
		}
	}
}

// testExpiry: at NotAfter of either certificate new streams get a connection of
// their own, and old ones go on.
func testExpiry(t *testing.T, make New) {
	for _, who := range []string{"client", "server"} {
		ca := NewCA(t, "mesh.test")
		r := newRig(t, make, Options{}, func(r *rig) {
			r.ca, r.client.ca, r.srv.Bundles = ca, ca, ca.Bundle()
			r.client.cert, r.server.cert = ca.SVID(t, "client"), ca.SVID(t, "server")
			short := ca.SVID(t, who, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Second).Truncate(time.Second) })
			if who == "client" {
				r.client.cert = short
			} else {
				r.server.cert = short
			}
		})
		f := r.open(r.request())
		f.echo("before")
		r.mu.Lock()
		r.client.cert, r.server.cert = ca.SVID(t, "client"), ca.SVID(t, "server")
		req := *f.req
		r.mu.Unlock()
		time.Sleep(2200 * time.Millisecond)
		if who == "client" {
			if o := r.start(&req).outcome(); o.Err == nil {
				t.Error("an expired certificate opened a stream")
			}
		}
		f.echo("after")
		next := r.open(r.request())
		next.echo("next")
		next.finish()
		f.finish()
		if n := r.dialed(); n < 2 {
			t.Errorf("%s: %d connections, want another after NotAfter", who, n)
		}
	}
}

func testBundleChange(t *testing.T, make New) {
	second := NewCA(t, "mesh.test")
	var mu sync.Mutex
	var roots *x509bundle.Bundle
	source := changingBundle{func() *x509bundle.Bundle { mu.Lock(); defer mu.Unlock(); return roots }}
	r := newRig(t, make, Options{}, func(r *rig) { roots = r.ca.Bundle(); r.srv.Bundles = source })
	open := func() *flow {
		req := r.request()
		req.Bundles = source
		return r.open(req)
	}
	change := func(cas ...*CA) {
		b := x509bundle.New(spiffeid.RequireTrustDomainFromString("mesh.test"))
		for _, ca := range cas {
			b.AddX509Authority(ca.Cert)
		}
		mu.Lock()
		defer mu.Unlock()
		roots = b
	}
	f := open()
	change(r.ca, second)
	open().finish()
	if n := r.dialed(); n != 1 {
		t.Errorf("a root more: %d connections, want 1", n)
	}
	r.mu.Lock()
	r.client.cert, r.server.cert = second.SVID(t, "client"), second.SVID(t, "server")
	old := *f.req
	r.mu.Unlock()
	change(second)
	old.Bundles = source
	if o := r.start(&old).outcome(); o.Err == nil {
		t.Error("a certificate of a removed root opened a stream")
	}
	f.echo("the stream of before goes on")
	open().finish()
	f.finish()
}
