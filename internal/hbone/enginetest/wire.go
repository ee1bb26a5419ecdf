package enginetest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

type (
	ctxContext = context.Context
	tlsConfig  = tls.Config
)

func wireTests() []test {
	return []test{
		{"malformed requests", testMalformed}, {"odd but good requests", testOddRequests}, {"200 after the upstream", testAnswerAfterUpstream},
		{"protocol errors", testProtocolErrors}, {"trailers end a stream", testTrailers}, {"padding", testPadding}, {"continuation", testContinuation},
		{"windows of the peer", testPeerWindow}, {"GOAWAY then PING", testGracefulGoaway}, {"behind the GOAWAY", testBehindGoaway}, {"reset codes", testResetCodes},
		{"peer refuses streams", testPeerRefuses}, {"peer takes no streams", testPeerTakesNone}, {"peer never ends informing", testEndlessInformation}, {"peer goes away", testPeerGoesAway}, {"peer's limit shrinks", testPeerLimit}, {"peer breaks off", testPeerBreaksOff}, {"peer pushes", testPushFromServer},
	}
}

func testMalformed(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	c := r.rawClient()
	id := uint32(1)
	good := []string{":method", "CONNECT", ":authority", "10.1.2.3:80"}
	for name, fields := range map[string][]string{
		"GET":                    {":method", "GET", ":scheme", "https", ":path", "/", ":authority", "10.1.2.3:80"},
		"no method":              {":authority", "10.1.2.3:80"},
		"two methods":            append([]string{":method", "CONNECT"}, good...),
		"two authorities":        append([]string{":authority", "10.1.2.4:80"}, good...),
		"no authority":           {":method", "CONNECT"},
		"a name":                 {":method", "CONNECT", ":authority", "web.test:80"},
		"no port":                {":method", "CONNECT", ":authority", "10.1.2.3"},
		"port 0":                 {":method", "CONNECT", ":authority", "10.1.2.3:0"},
		"port with zeros":        {":method", "CONNECT", ":authority", "10.1.2.3:0080"},
		"a zone":                 {":method", "CONNECT", ":authority", "[fe80::1%eth0]:80"},
		"IPv4 in IPv6":           {":method", "CONNECT", ":authority", "[::ffff:10.1.2.3]:80"},
		"user":                   {":method", "CONNECT", ":authority", "a@10.1.2.3:80"},
		"extended CONNECT":       append([]string{":protocol", "websocket"}, good...),
		"path":                   append([]string{":path", "/"}, good...),
		"another host":           append(append([]string{}, good...), "host", "10.1.2.4:80"),
		"pseudo after regular":   {":method", "CONNECT", "x", "y", ":authority", "10.1.2.3:80"},
		"upper case":             append(append([]string{}, good...), "X-Up", "y"),
		"transfer-encoding":      append(append([]string{}, good...), "transfer-encoding", "chunked"),
		"content-length":         append(append([]string{}, good...), "content-length", "5"),
		"a line in a value":      append(append([]string{}, good...), "baggage", "a\r\nb"),
		"a line in another's":    append(append([]string{}, good...), "x-anything", "a\nb"),
		"baggage not in ASCII":   append(append([]string{}, good...), "baggage", "a=\xc3\xa9"),
		"forwarded malformed":    append(append([]string{}, good...), "forwarded", `for="1.2.3.4:5`),
		"forwarded no address":   append(append([]string{}, good...), "forwarded", `for=somebody`),
		"forwarded twice":        append(append([]string{}, good...), "forwarded", `for="1.2.3.4:5"`, "forwarded", `for="1.2.3.5:5"`),
		"forwarded for twice":    append(append([]string{}, good...), "forwarded", `for="1.2.3.4:5";for="1.2.3.5:5"`),
		"forwarded without end":  append(append([]string{}, good...), "forwarded", strings.Repeat(`for=1.2.3.4,`, 400)),
		"forwarded bare v6":      append(append([]string{}, good...), "forwarded", `for="2001:db8::1"`),
		"forwarded unquoted []:": append(append([]string{}, good...), "forwarded", `for=[2001:db8::1]:5`),
	} {
		c.connect(id, false, fields...)
		if code := c.status(id); code != 400 {
			t.Errorf("%s: status %d, want 400", name, code)
		}
		id += 2
	}
	r.lastRefusal(hbone.ErrBadRequest)
	if len(r.requests) != 0 {
		t.Errorf("Accept was asked for %v", r.requests[0])
	}
}

func testOddRequests(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	c := r.rawClient()
	id := uint32(1)
	for forwarded, want := range map[string]string{
		`for="10.0.0.1:4711"`: "10.0.0.1:4711", `for=10.0.0.1`: "10.0.0.1:0", `For="[2001:db8::1]:99";host=svc`: "[2001:db8::1]:99",
		`by=10.0.0.9;for="10.0.0.1:1" , for="10.0.0.2:2"`: "10.0.0.1:1", `for=unknown`: "invalid AddrPort", `for=_hidden`: "invalid AddrPort",
		`for="10.0.0.1:_x"`: "10.0.0.1:0", `for="10.0\.0.1:4711"`: "10.0.0.1:4711", `proto=https`: "invalid AddrPort",
	} {
		c.connect(id, false, ":method", "CONNECT", ":authority", "[2001:DB8::5]:80", "forwarded", forwarded,
			"baggage", "a=1", "baggage", "b=2", "traceparent", "not one", "x-anything", "caf\xc3\xa9\tau lait", "cookie", "a=b", "cookie", "c=d")
		if code := c.status(id); code != 200 {
			t.Errorf("%s: status %d", forwarded, code)
			continue
		}
		r.mu.Lock()
		got := r.requests[len(r.requests)-1]
		r.mu.Unlock()
		if got.Forwarded.String() != want || got.Baggage != "a=1,b=2" || got.TraceParent != "" || got.Authority.String() != "[2001:db8::5]:80" {
			t.Errorf("%s: got %+v, want %s", forwarded, got, want)
		}
		id += 2
	}
}

func testAnswerAfterUpstream(t *testing.T, make New) {
	allow := newChan[struct{}](0)
	var asked atomic.Bool
	r := newRig(t, make, Options{}, accepting(func(r *rig, ctx context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
		asked.Store(true)
		<-allow
		return r.accept(ctx, req)
	}))
	f := r.start(r.request())
	eventually(t, "Accept", asked.Load)
	select {
	case <-f.opened:
		t.Error("200 before the upstream")
	case <-time.After(50 * time.Millisecond):
	}
	close(allow)
	within(t, f.opened, "200")
}

func testProtocolErrors(t *testing.T, make New) {
	for name, c := range map[string]struct {
		do   func(*raw) error
		want http2.ErrCode
	}{
		"even stream":     {func(c *raw) error { return c.tryConnect(2, false, ":method", "CONNECT") }, http2.ErrCodeProtocol},
		"DATA on idle":    {func(c *raw) error { return c.fr.WriteData(9, false, []byte("x")) }, http2.ErrCodeProtocol},
		"RST on idle":     {func(c *raw) error { return c.fr.WriteRSTStream(9, http2.ErrCodeCancel) }, http2.ErrCodeProtocol},
		"update on idle":  {func(c *raw) error { return c.fr.WriteWindowUpdate(9, 1) }, http2.ErrCodeProtocol},
		"update of zero":  {func(c *raw) error { return c.fr.WriteWindowUpdate(0, 0) }, http2.ErrCodeProtocol},
		"window overflow": {func(c *raw) error { return c.fr.WriteWindowUpdate(0, 1<<31-1) }, http2.ErrCodeFlowControl},
		"initial window": {func(c *raw) error {
			return c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}, http2.ErrCodeFlowControl},
		"settings on stream":  {func(c *raw) error { return c.fr.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }, http2.ErrCodeProtocol},
		"settings of 5 bytes": {func(c *raw) error { return c.fr.WriteRawFrame(http2.FrameSettings, 0, 0, newBuffer(5)) }, http2.ErrCodeFrameSize},
		"ping of 7 bytes":     {func(c *raw) error { return c.fr.WriteRawFrame(http2.FramePing, 0, 0, newBuffer(7)) }, http2.ErrCodeFrameSize},
		"frame too large":     {func(c *raw) error { return c.fr.WriteRawFrame(0x42, 0, 0, newBuffer(1<<21)) }, http2.ErrCodeFrameSize},
		"push from a client": {func(c *raw) error {
			return c.fr.WriteRawFrame(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, []byte{0, 0, 0, 2, 0x82})
		}, http2.ErrCodeProtocol},
		"lone CONTINUATION": {func(c *raw) error { return c.fr.WriteContinuation(1, true, nil) }, http2.ErrCodeProtocol},
		"PING inside a header": {func(c *raw) error {
			return errors.Join(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3}), c.fr.WritePing(false, [8]byte{}))
		}, http2.ErrCodeProtocol},
		"bad compression": {func(c *raw) error {
			return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}, http2.ErrCodeCompression},
		"padding beyond frame": {func(c *raw) error { return c.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 1}) }, http2.ErrCodeProtocol},
		"endless CONTINUATION": {endlessHeader, http2.ErrCodeEnhanceYourCalm},
		"stream depends itself": {func(c *raw) error {
			return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: []byte{0x82}, EndHeaders: true, Priority: http2.PriorityParam{StreamDep: 3, Weight: 1}})
		}, http2.ErrCodeProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, make, Options{})
			raw := r.rawClient()
			raw.connect(1, false)
			if code := raw.status(1); code != 200 {
				t.Fatalf("status %d", code)
			}
			app := within(t, r.apps, "the application's connection")
			defer app.Close()
			if err := c.do(raw); err != nil && name != "endless CONTINUATION" && name != "frame too large" {
				t.Fatal(err)
			}
			if got := raw.goaway(); got != c.want && got != http2.ErrCodeNo { // a RST may overtake the GOAWAY
				t.Errorf("GOAWAY %v, want %v", got, c.want)
			}
			expectReset(t, app, false)
			if in := r.lastInbound(1); !errors.Is(in.Err, hbone.ErrProtocol) && !errors.Is(in.Err, hbone.ErrLimit) {
				t.Errorf("outcome %v", in.Err)
			}
		})
	}
}

// endlessHeader is CVE-2024-27316.
func endlessHeader(c *raw) error {
	if err := c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3}); err != nil {
		return err
	}
	for range 100_000 {
		if err := c.fr.WriteContinuation(3, false, nil); err != nil {
			return err
		}
	}
	return nil
}

func testTrailers(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	c := r.rawClient()
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	defer app.Close()
	must(t, c.fr.WriteData(1, false, []byte("body")))
	c.connect(1, true, "x-trailer", "y")
	expect(t, app, "body")
	expectEnd(t, app)
	must(t, app.CloseWrite())
	if in := r.lastInbound(1); in.Err != nil || in.Received != 4 {
		t.Errorf("outcome %+v", in)
	}
}

func testPadding(t *testing.T, make New) {
	r := newRig(t, make, Options{}, limits(hbone.Limits{StreamWindow: 70_000, ConnectionWindow: 70_000}))
	c := r.rawClient()
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	defer app.Close()
	for range 2000 { // padding counts for flow control, and must come back
		_, err := c.next(func(http2.Frame) bool { return true })
		must(t, err)
		break
	}
	go func() { // window updates
		for {
			if _, err := c.fr.ReadFrame(); err != nil {
				return
			}
		}
	}()
	for range 2000 {
		must(t, c.fr.WriteDataPadded(1, false, []byte("x"), newBuffer(200)))
		expect(t, app, "x")
	}
}

func testContinuation(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	c := r.rawClient()
	c.block.Reset()
	for _, f := range []string{":method", ":authority"} {
		value := map[string]string{":method": "CONNECT", ":authority": "10.1.2.3:80"}[f]
		must(t, c.encoder.WriteField(hpackField(f, value)))
	}
	block := c.block.Bytes()
	must(t, c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:3]}))
	must(t, c.fr.WriteContinuation(1, false, block[3:5]))
	must(t, c.fr.WriteContinuation(1, true, block[5:]))
	if code := c.status(1); code != 200 {
		t.Errorf("status %d", code)
	}
}

// testPeerWindow: not a byte more than the peer's windows say, also when they
// shrink below zero.
func testPeerWindow(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	c := r.rawClient()
	must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}))
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	defer app.Close()
	send(t, app, "0123456789abcdefghij")
	read := func(want string) {
		t.Helper()
		for got := ""; got != want; {
			f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
			must(t, err)
			if got += string(f.(*http2.DataFrame).Data()); !strings.HasPrefix(want, got) {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
	}
	read("0123456789")
	must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})) // -5
	must(t, c.fr.WriteWindowUpdate(1, 7))                                                  // +2
	read("ab")
	must(t, c.fr.WriteWindowUpdate(1, 100))
	read("cdefghij")
}

// testGracefulGoaway: a drain announces itself, and ends only after the peer
// has answered the PING that follows.
func testGracefulGoaway(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	c := r.rawClient()
	c.connect(1, false)
	if code := c.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	r.server.engine.Drain(hbone.Match{}, false)
	f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok })
	must(t, err)
	if g := f.(*http2.GoAwayFrame); g.LastStreamID != 1<<31-1 || g.ErrCode != http2.ErrCodeNo {
		t.Errorf("GOAWAY %v", g)
	}
	f, err = c.next(func(f http2.Frame) bool { _, ok := f.(*http2.PingFrame); return ok })
	must(t, err)
	ping := f.(*http2.PingFrame).Data
	c.connect(3, false) // it was on its way
	if code := c.status(3); code != 200 {
		t.Errorf("status %d for a stream opened before the GOAWAY was seen", code)
	}
	must(t, c.fr.WritePing(true, ping))
	f, err = c.next(func(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok })
	must(t, err)
	if g := f.(*http2.GoAwayFrame); g.LastStreamID != 3 || g.ErrCode != http2.ErrCodeNo {
		t.Errorf("GOAWAY %v", g)
	}
	must(t, c.fr.WriteRSTStream(1, http2.ErrCodeCancel))
	must(t, c.fr.WriteRSTStream(3, http2.ErrCodeCancel))
	if code := c.goaway(); code != http2.ErrCodeNo {
		t.Errorf("GOAWAY %v", code)
	}
}

// testBehindGoaway: what a peer opened before it had seen the last GOAWAY is passed
// over, with all that comes on it, and the streams below go on (RFC 9113 section 6.8).
func testBehindGoaway(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	c := r.rawClient()
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	defer app.Close()
	if code := c.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	r.server.engine.Drain(hbone.Match{}, false)
	f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.PingFrame); return ok })
	must(t, err)
	must(t, c.fr.WritePing(true, f.(*http2.PingFrame).Data))
	// Before the answer to the answer is here.
	c.connect(3, false)
	must(t, c.fr.WriteData(3, false, []byte("early")))
	must(t, c.fr.WriteWindowUpdate(3, 100))
	c.connect(5, false)
	must(t, c.fr.WriteData(5, true, []byte("early")))
	must(t, c.fr.WriteRSTStream(3, http2.ErrCodeCancel))
	must(t, c.fr.WriteData(1, true, []byte("goes on")))
	f, err = c.next(func(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok })
	must(t, err)
	if g := f.(*http2.GoAwayFrame); g.LastStreamID != 1 || g.ErrCode != http2.ErrCodeNo {
		t.Errorf("GOAWAY %v", g)
	}
	expect(t, app, "goes on")
	expectEnd(t, app)
	must(t, app.CloseWrite())
	if code := c.goaway(); code != http2.ErrCodeNo {
		t.Errorf("GOAWAY %v", code)
	}
	if in := r.lastInbound(1); in.Err != nil || in.Received != 7 {
		t.Errorf("outcome %+v", in)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.requests) != 1 {
		t.Errorf("%d streams were asked about, want 1", len(r.requests))
	}
}

func testResetCodes(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	c := r.rawClient()
	c.connect(1, false)
	app := within(t, r.apps, "the application's connection")
	if code := c.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	reset(t, app)
	if code := c.reset(1); code != http2.ErrCodeConnect {
		t.Errorf("a RST of the application became %v, want CONNECT_ERROR (RFC 9113 section 8.5)", code)
	}
	c.connect(3, true)
	app = within(t, r.apps, "the application's connection")
	defer app.Close()
	expectEnd(t, app)
	must(t, c.fr.WriteData(3, false, []byte("more")))
	if code := c.reset(3); code != http2.ErrCodeStreamClosed {
		t.Errorf("DATA after END_STREAM: %v", code)
	}
	expectReset(t, app, true)
}

// testPushFromServer: a server that pushes what nobody has allowed it to loses its
// connection (RFC 9113 section 8.4).
func testPushFromServer(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	addr := r.rawServer(nil, func(_ int, c *raw) error {
		id, err := c.request()
		if err == nil {
			err = errors.Join(c.answer(id, 200, false), c.fr.WriteRawFrame(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, id, []byte{0, 0, 0, 2, 0x82}))
		}
		if err == nil {
			_, err = io.Copy(io.Discard, c.conn)
		}
		return err
	})
	f := r.start(to(r.request(), addr))
	if o := f.outcome(); !errors.Is(o.Err, hbone.ErrProtocol) {
		t.Errorf("outcome %v", o.Err)
	}
}
