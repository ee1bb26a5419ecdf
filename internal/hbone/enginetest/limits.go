package enginetest

import (
	"crypto/tls"
	"io"
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
		{"connections", testConnectionLimit}, {"connections of one identity", testIdentityLimit}, {"handshakes", testHandshakeLimit}, {"streams", testStreamLimit}, {"header bytes", testHeaderLimit},
		{"stalled handshake", testStalledHandshake}, {"stalled preface", testStalledPreface}, {"flood of connections", testConnectionFlood},
		{"rapid reset", testRapidReset}, {"window", testWindowLimit},
		{"made you reset", testMadeYouReset}, {"refusals", testRefusalFlood}, {"settings in one frame", testManySettings},
		{"window before SETTINGS are known", testEarlyWindow}, {"windows that change often", testChangingWindows},
		{"peer that stops inside of something", testUnfinished}, {"peer that says a byte at a time", testTrickle},
	}
	for name, f := range floods() {
		tests = append(tests, test{"flood of " + name, func(t *testing.T, make New) { testFlood(t, make, f) }})
	}
	return append(tests, serverFloodTests()...)
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

// testIdentityLimit: one identity's connections are bounded; who is refused is named, the
// others come in, and it itself again when it has fewer.
func testIdentityLimit(t *testing.T, make New) {
	r := newRig(t, make, Options{}, limits(hbone.Limits{PeerConnections: 2}))
	first := r.rawClient()
	second := r.rawClient()
	second.connect(1, false)
	if code := second.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	if _, err := r.rawTLS(func(*tlsConfig) {}); err == nil || isTimeout(err) {
		t.Errorf("a connection too many: %v", err)
	}
	r.lastRefusal(hbone.ErrLimit)
	r.mu.Lock()
	if by := r.refused[0].Peer; by != r.ca.ID("client") {
		t.Errorf("refused %v", by)
	}
	r.mu.Unlock()
	other := r.ca.SVID(t, "other")
	if _, err := r.rawTLS(func(c *tlsConfig) { c.Certificates = []tls.Certificate{*other} }); err != nil {
		t.Errorf("another identity: %v", err)
	}
	must(t, first.conn.Close())
	eventually(t, "a place for another connection", func() bool {
		c, err := r.rawTLS(func(*tlsConfig) {})
		if err == nil {
			c.Close()
		}
		return err == nil
	})
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

// testMadeYouReset: frames that make a server reset its stream are bounded as
// RST_STREAM is (CVE-2025-8671): a stream costs it an Accept each time.
func testMadeYouReset(t *testing.T, make New) {
	for name, frame := range map[string]func(c *raw, id uint32) error{
		"WINDOW_UPDATE of 0": func(c *raw, id uint32) error { return c.fr.WriteWindowUpdate(id, 0) },
		"too large a window": func(c *raw, id uint32) error { return c.fr.WriteWindowUpdate(id, 1<<31-1) },
	} {
		t.Run(name, func(t *testing.T) {
			testOpeningFlood(t, make, 12_000, accepting(func(_ *rig, ctx ctxContext, _ *hbone.StreamRequest) (*hbone.Accepted, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}), func(c *raw, id uint32) error {
				if err := frame(c, id); err != nil || id%200 < 199 {
					return err
				}
				_, err := c.next(func(f http2.Frame) bool { r, ok := f.(*http2.RSTStreamFrame); return ok && r.StreamID == id })
				return err
			})
		})
	}
}

// testRefusalFlood: so are requests that are refused.
func testRefusalFlood(t *testing.T, make New) {
	testOpeningFlood(t, make, 100_000, accepting(func(*rig, ctxContext, *hbone.StreamRequest) (*hbone.Accepted, error) {
		return nil, &hbone.StatusError{Code: 403}
	}), func(c *raw, id uint32) error {
		if id%200 < 199 {
			return nil
		}
		_, err := c.next(func(f http2.Frame) bool { h, ok := f.(*http2.HeadersFrame); return ok && h.StreamID == id })
		return err
	})
}

// testOpeningFlood opens streams, never more than a hundred at once, until the
// server has had enough; at most so many.
func testOpeningFlood(t *testing.T, make New, most uint32, accept setup, then func(c *raw, id uint32) error) {
	r := newRig(t, make, Options{}, limits(hbone.Limits{Streams: 1000}), accept)
	c := r.rawClient()
	var err error
	id := uint32(1)
	for ; err == nil && id < 2*most; id += 2 {
		if err = c.tryConnect(id, false, ":method", "CONNECT", ":authority", "10.1.2.3:80"); err == nil {
			err = then(c, id)
		}
	}
	if err == nil || isTimeout(err) {
		t.Fatalf("%d streams, %v", id/2, err)
	}
	r.lastRefusal(hbone.ErrLimit)
}

// testManySettings: a frame of SETTINGS has room for thousands of parameters, and
// costs one look at each stream. The last of the initial windows counts.
func testManySettings(t *testing.T, make New) {
	const streams, frames, rounds = 150, 12, 3
	r := newRig(t, make, Options{})
	c := r.rawClient()
	for i := range uint32(streams) {
		c.connect(2*i+1, false)
		if code := c.status(2*i + 1); code != 200 {
			t.Fatal(code)
		}
	}
	cost := func(kind http2.SettingID) time.Duration {
		list := []http2.Setting{}
		for i := range uint32(2730) {
			list = append(list, http2.Setting{ID: kind, Val: 65535 + i%2})
		}
		start := time.Now()
		for range frames / 2 {
			must(t, c.fr.WriteSettings(list...))
		}
		must(t, c.fr.WritePing(false, [8]byte{1}))
		_, err := c.next(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() })
		must(t, err)
		return time.Since(start)
	}
	windows, others := wait, wait
	for range rounds {
		others = min(others, cost(http2.SettingHeaderTableSize))
		windows = min(windows, cost(http2.SettingInitialWindowSize))
	}
	if windows > 6*others {
		t.Errorf("initial windows take %v, other parameters %v", windows, others)
	}
	must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}))
	must(t, c.fr.WriteWindowUpdate(1, 1)) // beyond 2^31-1, were it not for the 1
	must(t, c.fr.WritePing(false, [8]byte{2}))
	_, err := c.next(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.Data[0] == 2 })
	must(t, err)
	must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}))
	if code := c.goaway(); code != http2.ErrCodeFlowControl { // in force for a moment, and with the 1 of before too large
		t.Errorf("goaway %v", code)
	}
}

// testEarlyWindow: a client that does not know our SETTINGS yet may send 65,535
// bytes on a stream (RFC 9113 section 6.9.3), whatever they say; then it may not.
func testEarlyWindow(t *testing.T, make New) {
	r := newRig(t, make, Options{}, limits(hbone.Limits{StreamWindow: 20_000}), accepting(func(r *rig, ctx ctxContext, req *hbone.StreamRequest) (*hbone.Accepted, error) {
		if req.Authority.Port() == 80 {
			return r.accept(ctx, req)
		}
		<-ctx.Done() // nothing is read
		return nil, ctx.Err()
	}))
	c := r.rawEarly()
	const frame = 13107
	c.connect(1, false)
	for range 5 {
		must(t, c.fr.WriteData(1, false, newBuffer(frame)))
	}
	app := within(t, r.apps, "the application's connection")
	defer app.Close()
	must(t, app.SetReadDeadline(time.Now().Add(wait)))
	if n, err := io.ReadFull(app, newBuffer(5*frame)); err != nil {
		t.Fatalf("%d bytes arrived, %v", n, err)
	}
	if code := c.status(1); code != 200 { // and acknowledges
		t.Fatalf("status %d", code)
	}
	c.connect(3, false, ":method", "CONNECT", ":authority", "10.1.2.3:81")
	for range 2 {
		must(t, c.fr.WriteData(3, false, newBuffer(frame)))
	}
	if code := c.reset(3); code != http2.ErrCodeFlowControl {
		t.Errorf("beyond the window: %v", code)
	}
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
		"header bombs": headerBomb,
		"table sizes":  func(c *raw) error { return c.headers(1, strings.Repeat("\x20", 15_000)) },
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
