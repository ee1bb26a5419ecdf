package enginetest

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

func limitTests() []test {
	tests := []test{
		{"connections", testConnectionLimit}, {"handshakes", testHandshakeLimit}, {"streams", testStreamLimit}, {"header bytes", testHeaderLimit},
		{"stalled handshake", testStalledHandshake}, {"stalled preface", testStalledPreface}, {"flood of connections", testConnectionFlood},
		{"rapid reset", testRapidReset}, {"window", testWindowLimit},
	}
	for name, f := range floods() {
		tests = append(tests, test{"flood of " + name, func(t *testing.T, make New) { testFlood(t, make, f) }})
	}
	return tests
}

func testConnectionLimit(t *testing.T, make New) {
	r := newRig(t, make, Options{}, limits(hbone.Limits{Connections: 3}))
	for range 3 {
		c := r.rawClient()
		c.connect(1, false)
		if code := c.status(1); code != 200 {
			t.Fatalf("status %d", code)
		}
	}
	if c, err := net.Dial("tcp", r.endpoint.String()); err == nil { // or the RST comes this soon
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(wait)))
		if _, err := c.Read(newBuffer(1)); err == nil || isTimeout(err) {
			t.Errorf("a connection too many: %v", err)
		}
	}
	r.lastRefusal(hbone.ErrLimit)
}

func isTimeout(err error) bool {
	t, ok := err.(net.Error)
	return ok && t.Timeout()
}

func testHandshakeLimit(t *testing.T, make New) {
	r := newRig(t, make, Options{HandshakeTimeout: 300 * time.Millisecond}, limits(hbone.Limits{Handshakes: 4}))
	for range 6 {
		if c, err := net.Dial("tcp", r.endpoint.String()); err == nil { // the refused may see their RST here
			defer c.Close()
		}
	}
	r.lastRefusal(hbone.ErrLimit)
	r.lastRefusal(hbone.ErrTimeout) // the four run out of time, and make room
	f := r.open(r.request())
	f.finish()
}

func testStreamLimit(t *testing.T, make New) {
	r := newRig(t, make, Options{}, limits(hbone.Limits{Streams: 2}))
	c := r.rawClient()
	for _, id := range []uint32{1, 3, 5} {
		c.connect(id, false)
	}
	if code := c.reset(5); code != http2.ErrCodeRefusedStream {
		t.Errorf("a stream too many: %v", code)
	}
	r.lastRefusal(hbone.ErrLimit)
}

func testHeaderLimit(t *testing.T, make New) {
	r := newRig(t, make, Options{}, limits(hbone.Limits{HeaderBytes: 1000}))
	c := r.rawClient()
	c.connect(1, false, ":method", "CONNECT", ":authority", "10.1.2.3:80", "baggage", strings.Repeat("a=b,", 300))
	if code := c.status(1); code != 431 {
		t.Errorf("status %d, want 431", code)
	}
	r.lastRefusal(hbone.ErrLimit)
	c.connect(3, false) // the connection and its compression state are intact
	if code := c.status(3); code != 200 {
		t.Errorf("status %d, want 200", code)
	}
}

func testStalledHandshake(t *testing.T, make New) {
	r := newRig(t, make, Options{HandshakeTimeout: 100 * time.Millisecond})
	c, err := net.Dial("tcp", r.endpoint.String())
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte{22, 3, 1}) // the beginning of a ClientHello
	must(t, err)
	r.lastRefusal(hbone.ErrTimeout)
}

func testStalledPreface(t *testing.T, make New) {
	r := newRig(t, make, Options{HandshakeTimeout: 200 * time.Millisecond})
	c, err := r.rawTLS(func(*tlsConfig) {})
	must(t, err)
	_, err = c.Write([]byte(http2.ClientPreface[:5]))
	must(t, err)
	r.lastRefusal(hbone.ErrTimeout)
}

// testConnectionFlood: a source with more connections that never shake hands
// than there are places for handshakes keeps out nobody else, neither those who
// come after it nor those who come while it goes on.
func testConnectionFlood(t *testing.T, make New) {
	const silent = 1000
	r := newRig(t, make, Options{HandshakeTimeout: 2 * wait}, limits(hbone.Limits{Handshakes: 64}))
	flooder := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for n := range silent {
		if c, err := flooder.DialContext(t.Context(), "tcp", r.endpoint.String()); err == nil { // the refused may see their RST here
			defer c.Close()
		}
		if n == silent/2 {
			f := r.open(r.request())
			f.echo("served while they come")
			f.finish()
			r.client.engine.Drain(hbone.Match{}, false) // and the next is a handshake of its own
		}
	}
	r.lastRefusal(hbone.ErrLimit)
	before := time.Now()
	f := r.open(r.request())
	f.echo("served all the same")
	f.finish()
	if took := time.Since(before); took > wait/5 {
		t.Errorf("served after %v", took)
	}
	if n := r.dialed(); n != 2 {
		t.Errorf("%d handshakes of the honest peer, want 2", n)
	}
}

// testRapidReset: streams opened and reset at once (CVE-2023-44487) never mean
// more work at once than the limit of streams, and honest streams go on.
func testRapidReset(t *testing.T, make New) {
	var now, most atomic.Int64
	r := newRig(t, make, Options{}, limits(hbone.Limits{Streams: 20}), accepting(func(r *rig, ctx ctxContext, req *hbone.StreamRequest) (*hbone.Accepted, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if req.Forwarded.IsValid() {
			return r.accept(ctx, req)
		}
		time.Sleep(50 * time.Millisecond) // an Accept that does not see that nobody waits
		return nil, ctx.Err()
	}))
	honest := r.open(r.request())
	c := r.rawClient()
	go func() {
		for id := uint32(1); ; id += 2 {
			if c.tryConnect(id, false, ":method", "CONNECT", ":authority", "10.1.2.3:80") != nil || c.fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				return
			}
		}
	}()
	if code := c.goaway(); code != http2.ErrCodeEnhanceYourCalm && code != http2.ErrCodeNo {
		t.Errorf("goaway %v", code)
	}
	honest.echo("still here")
	honest.finish()
	if most.Load() > 21 {
		t.Errorf("%d Accepts at once, the limit is 20 streams", most.Load())
	}
	r.lastRefusal(hbone.ErrLimit)
	eventually(t, "every Accept has returned", func() bool { return now.Load() == 0 })
}

// floods are frames that cost their sender nothing; each is sent until the
// server has had enough.
func floods() map[string]func(c *raw) error {
	return map[string]func(*raw) error{
		"PING":          func(c *raw) error { return c.fr.WritePing(false, [8]byte{1}) },
		"SETTINGS":      func(c *raw) error { return c.fr.WriteSettings() },
		"empty DATA":    func(c *raw) error { return c.fr.WriteData(1, false, nil) },
		"WINDOW_UPDATE": func(c *raw) error { return c.fr.WriteWindowUpdate(1, 1) },
		"PRIORITY": func(c *raw) error {
			return c.fr.WritePriority(7, http2.PriorityParam{StreamDep: 3})
		},
		"unknown frames": func(c *raw) error { return c.fr.WriteRawFrame(0x42, 0, 0, nil) },
		"RST_STREAM":     func(c *raw) error { return c.fr.WriteRSTStream(1, http2.ErrCodeCancel) },
		"trailers on closed streams": func(c *raw) error {
			return c.tryConnect(1, true, "x", "y")
		},
	}
}

func testFlood(t *testing.T, make New, flood func(*raw) error) {
	r := newRig(t, make, Options{})
	honest := r.open(r.request())
	c := r.rawClient()
	c.connect(1, false)
	if code := c.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	go func() {
		for range 2_000_000 {
			if flood(c) != nil {
				return
			}
		}
	}()
	c.dead()
	r.lastRefusal(hbone.ErrLimit)
	honest.echo("still here")
	honest.finish()
}

// testWindowLimit: a peer that sends more than its window is told so, and
// memory stays within it.
func testWindowLimit(t *testing.T, make New) {
	r := newRig(t, make, Options{}, limits(hbone.Limits{StreamWindow: 100_000, ConnectionWindow: 200_000}), func(r *rig) {
		r.srv.Accept = func(ctx ctxContext, _ *hbone.StreamRequest) (*hbone.Accepted, error) {
			<-ctx.Done() // nothing is read
			return nil, ctx.Err()
		}
	})
	c := r.rawClient()
	c.connect(1, false)
	for range 7 {
		must(t, c.fr.WriteData(1, false, newBuffer(16000)))
	}
	if code := c.reset(1); code != http2.ErrCodeFlowControl {
		t.Errorf("beyond the stream's window: %v", code)
	}
	for id := uint32(3); ; id += 2 {
		if c.tryConnect(id, false, ":method", "CONNECT", ":authority", "10.1.2.3:80") != nil {
			break
		}
		var err error
		for range 6 {
			if err == nil {
				err = c.fr.WriteData(id, false, newBuffer(16000))
			}
		}
		if err != nil {
			break
		}
		if id > 9999 { // 480 MB: more than the kernel's buffers take before the end is seen
			t.Fatal("the connection's window has no end")
		}
	}
	c.dead()
}
