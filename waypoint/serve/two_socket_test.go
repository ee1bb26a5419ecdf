package serve_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/mesh"
	asked "github.com/heddle-mesh/heddle/internal/mesh/request"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// socket2 is a stream of a workload that takes WebSockets over HTTP/2, written by hand.
type socket2 struct {
	id   uint32
	head map[string]string
	mu   *sync.Mutex // of the connection's Framer
	f    *xhttp2.Framer
	came chan []byte // nil is the client's END_STREAM
	over chan xhttp2.ErrCode
}

func (s *socket2) answer(end bool, fields ...string) {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: s.id, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: end})
}

func (s *socket2) say(p string, end bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.f.WriteData(s.id, end, []byte(p))
}

func (s *socket2) reset(code xhttp2.ErrCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.f.WriteRSTStream(s.id, code)
}

// echo says back what comes, as far as the windows let it, and bye at the client's end.
func (s *socket2) echo() {
	s.answer(false, ":status", "200", "sec-websocket-protocol", s.head["sec-websocket-protocol"], "x-for", s.head["x-forwarded-for"])
	_ = s.say("hello", false)
	for p := range s.came {
		if p == nil {
			_ = s.say("bye", true)
			return
		}
		_ = s.say(string(p), false)
	}
}

// sockets2 is a workload that takes WebSockets over HTTP/2, and nothing else; take has each of its streams.
func sockets2(t *testing.T, take func(*socket2)) *backend {
	var all sync.WaitGroup
	b := raw(t, "cart", cartAddr, func(c net.Conn) {
		if _, err := io.ReadFull(c, make([]byte, len(http2.Preface))); err != nil {
			return
		}
		var mu sync.Mutex
		f := xhttp2.NewFramer(c, c)
		f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		_ = f.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingEnableConnectProtocol, Val: 1}, xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 1 << 20})
		_ = f.WriteWindowUpdate(0, 1<<28)
		open := map[uint32]*socket2{}
		defer func() {
			for _, s := range open {
				close(s.came)
			}
		}()
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			mu.Lock()
			switch frame := frame.(type) {
			case *xhttp2.SettingsFrame:
				if !frame.IsAck() {
					_ = f.WriteSettingsAck()
				}
			case *xhttp2.PingFrame:
				_ = f.WritePing(true, frame.Data)
			case *xhttp2.MetaHeadersFrame:
				s := &socket2{id: frame.StreamID, head: map[string]string{}, mu: &mu, f: f, came: make(chan []byte, 1000), over: make(chan xhttp2.ErrCode, 1)}
				for _, h := range frame.Fields {
					s.head[h.Name] = h.Value
				}
				open[s.id] = s
				all.Go(func() { take(s) })
			case *xhttp2.DataFrame:
				if s := open[frame.StreamID]; s != nil {
					if len(frame.Data()) > 0 {
						s.came <- bytes.Clone(frame.Data())
					}
					if frame.StreamEnded() {
						s.came <- nil
					}
				}
			case *xhttp2.RSTStreamFrame:
				if s := open[frame.StreamID]; s != nil {
					delete(open, s.id)
					s.over <- frame.ErrCode
					close(s.came)
				}
			}
			mu.Unlock()
		}
	})
	t.Cleanup(all.Wait)
	b.port = "h2c"
	return b
}

const upgrade = "GET /chat?room=1 HTTP/1.1\r\nHost: cart.shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Forwarded-For: 6.6.6.6\r\n"

// upgraded asks for a WebSocket in HTTP/1.1, and says something at once, before it is granted.
func (w *world) upgraded(t *testing.T, early string, more ...string) (*net.TCPConn, *bufio.Reader, *http.Response) {
	t.Helper()
	c := w.dial().(*net.TCPConn)
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, upgrade+strings.Join(more, "")+"\r\n"+early)
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, request(t, "GET", "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	return c, in, resp
}

// extendedHead is what a workload is to see of upgrade, and of webSocket.
func extendedHead(t *testing.T, head map[string]string) {
	t.Helper()
	for name, want := range map[string]string{":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":path": "/chat?room=1", ":authority": "cart.shop", "sec-websocket-version": "13",
		"sec-websocket-protocol": "chat", "x-forwarded-for": "10.1.2.3"} {
		if head[name] != want {
			t.Errorf("the workload sees %s %q, want %q", name, head[name], want)
		}
	}
	for _, gone := range []string{"sec-websocket-key", "upgrade", "connection", "host", "content-length"} {
		if v, is := head[gone]; is {
			t.Errorf("the workload sees %s %q", gone, v)
		}
	}
}

// TestWebSocketInHTTP2: an upgrade in HTTP/1.1, and an extended CONNECT, to a workload that takes the latter: bytes both ways, each way
// ends by itself, and no timeout of the answer's ends what was granted.
func TestWebSocketInHTTP2(t *testing.T) {
	heads := make(chan map[string]string, 4)
	w := newWorld(t, []*backend{sockets2(t, func(s *socket2) { heads <- s.head; s.echo() })})
	w.routes = routed(toBackend("cart"))
	w.routes[0].Rules[0].RequestTimeout = 300 * time.Millisecond
	w.set()
	payload := strings.Repeat("ping", 4000)
	want := "helloearly" + payload + "bye"

	c, in, resp := w.upgraded(t, "early")
	if h := resp.Header; resp.StatusCode != 101 || h.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || h.Get("Upgrade") != "websocket" || h.Get("Connection") != "Upgrade" ||
		h.Get("Sec-Websocket-Protocol") != "chat" || h.Get("X-For") != "10.1.2.3" {
		t.Errorf("%d %v", resp.StatusCode, h)
	}
	extendedHead(t, <-heads)
	time.Sleep(400 * time.Millisecond)
	_, _ = io.WriteString(c, payload)
	_ = c.CloseWrite()
	if got, err := io.ReadAll(in); string(got) != want || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}

	s := w.open2(t, webSocket("sec-websocket-key", "of another version", "x-forwarded-for", "6.6.6.6")...)
	_ = s.f.WriteData(1, false, []byte("early"))
	s.until(func() bool { return len(s.data) >= len("helloearly") })
	if s.head[":status"] != "200" || s.head["sec-websocket-protocol"] != "chat" || s.head["x-for"] != "10.1.2.3" || s.head["sec-websocket-accept"] != "" {
		t.Errorf("%v", s.head)
	}
	extendedHead(t, <-heads)
	time.Sleep(400 * time.Millisecond)
	_ = s.f.WriteData(1, false, []byte(payload))
	_ = s.f.WriteData(1, true, nil)
	s.until(func() bool { return s.ended })
	if string(s.data) != want || s.reset != nil {
		t.Errorf("%d bytes came back, %v", len(s.data), s.reset)
	}
	eventually(t, "both are counted", func() bool {
		return w.value("heddle_waypoint_requests_total", "code", "1xx") == 1 && w.value("heddle_waypoint_requests_total", "code", "2xx") == 1
	})
	has(t, "the access log", w.log.String(), `"status":101`)
}

// TestWebSocketHalves: the workload may end first, and hears the client still.
func TestWebSocketHalves(t *testing.T) {
	heard := make(chan string, 2)
	w := newWorld(t, []*backend{sockets2(t, func(s *socket2) {
		s.answer(false, ":status", "200")
		_ = s.say("all", true)
		var all []byte
		for p := range s.came {
			if p == nil {
				break
			}
			all = append(all, p...)
		}
		heard <- string(all)
	})})
	c, in, _ := w.upgraded(t, "")
	if got, err := io.ReadAll(in); string(got) != "all" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	_, _ = io.WriteString(c, "still")
	_ = c.CloseWrite()
	s := w.open2(t, webSocket()...)
	s.until(func() bool { return s.ended })
	_ = s.f.WriteData(1, true, []byte("still"))
	for range 2 {
		if got := <-heard; got != "still" || string(s.data) != "all" {
			t.Errorf("the workload hears %q, the client %q", got, s.data)
		}
	}
	eventually(t, "both have ended", func() bool { return w.value("heddle_waypoint_requests_total", "", "") == 2 })
	if n := w.value("heddle_waypoint_refusals_total", "", ""); n != 0 {
		t.Errorf("%v are refused: %s", n, w.log.String())
	}
}

// TestWebSocketThatIsHeardNoMore: a workload that has said all may say that it hears no more, as net/http's does when it returns
// (RFC 9113 section 8.1): what it said before arrives, and ends in good order.
func TestWebSocketThatIsHeardNoMore(t *testing.T) {
	all := strings.Repeat("x", 10<<10)
	w := newWorld(t, []*backend{sockets2(t, func(s *socket2) {
		s.answer(false, ":status", "200")
		_ = s.say(all, true)
		s.reset(xhttp2.ErrCodeNo)
	})})
	c, in, _ := w.upgraded(t, "")
	_, _ = io.WriteString(c, "nobody hears this")
	if got, err := io.ReadAll(in); string(got) != all || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	s := w.open2(t, webSocket()...)
	s.until(func() bool { return s.ended })
	s.until(func() bool { return s.reset != nil })
	if string(s.data) != all || s.reset == nil || s.reset.ErrCode != xhttp2.ErrCodeNo {
		t.Errorf("%d bytes, %v", len(s.data), s.reset)
	}
	eventually(t, "both have ended", func() bool { return w.value("heddle_waypoint_requests_total", "", "") == 2 })
	if n := w.value("heddle_waypoint_refusals_total", "", ""); n != 0 {
		t.Errorf("%v are refused", n)
	}
}

// TestWebSocketResets: a reset of either end is one of the other (RFC 8441 section 5).
func TestWebSocketResets(t *testing.T) {
	streams := make(chan *socket2, 4)
	w := newWorld(t, []*backend{sockets2(t, func(s *socket2) { s.answer(false, ":status", "200"); streams <- s })})
	told := func(s *socket2) {
		t.Helper()
		select {
		case code := <-s.over:
			if code != xhttp2.ErrCodeCancel {
				t.Errorf("the workload is told %v", code)
			}
		case <-time.After(10 * time.Second):
			t.Error("the workload is told nothing")
		}
	}
	_, in, _ := w.upgraded(t, "")
	(<-streams).reset(xhttp2.ErrCodeCancel)
	if n, err := io.Copy(io.Discard, in); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("by the workload: %d bytes, %v", n, err)
	}
	c, _, _ := w.upgraded(t, "")
	_ = c.SetLinger(0)
	_ = c.Close()
	told(<-streams)

	s := w.open2(t, webSocket()...)
	s.until(s.answered)
	(<-streams).reset(xhttp2.ErrCodeCancel)
	s.until(func() bool { return s.ended })
	if s.ended || s.reset == nil || s.reset.ErrCode != xhttp2.ErrCodeCancel {
		t.Errorf("ended %v, %v", s.ended, s.reset)
	}
	s = w.open2(t, webSocket()...)
	s.until(s.answered)
	_ = s.f.WriteRSTStream(1, xhttp2.ErrCodeCancel)
	told(<-streams)
}

// TestWebSocketIsRefusedInHTTP2: what the workload refuses the client is told as it is, and its connection ends: what it has sent on may
// have been meant for the tunnel.
func TestWebSocketIsRefusedInHTTP2(t *testing.T) {
	w := newWorld(t, []*backend{sockets2(t, func(s *socket2) { s.answer(true, ":status", "403", "x-why", "full") })})
	_, in, resp := w.upgraded(t, "GET /other HTTP/1.1\r\nHost: h\r\n\r\n")
	if body, err := io.ReadAll(resp.Body); resp.StatusCode != 403 || resp.Header.Get("X-Why") != "full" || !resp.Close || len(body) > 0 || err != nil {
		t.Errorf("%d %v %q %v", resp.StatusCode, resp.Header, body, err)
	}
	if rest, _ := io.ReadAll(in); len(rest) > 0 {
		t.Errorf("more is said: %q", rest)
	}
	s := w.open2(t, webSocket()...)
	s.until(s.answered)
	if s.head[":status"] != "403" || s.head["x-why"] != "full" {
		t.Errorf("%v", s.head)
	}
}

// TestWebSocketNotOffered: workloads that speak HTTP/2 and offer no WebSocket there are asked in HTTP/1.1. Those that do not
// understand that have a reason of their own, and are no worse for other requests.
func TestWebSocketNotOffered(t *testing.T) {
	b := serving12(t, "cart", cartAddr, chat)
	b.port = "h2c"
	w := newWorld(t, []*backend{b})
	for range 2 { // by a trunk that is new, and one that is there
		c, in, resp := w.upgraded(t, "early")
		_ = c.CloseWrite()
		if got, err := io.ReadAll(in); resp.StatusCode != 101 || string(got) != "helloearlybye" || err != nil {
			t.Errorf("both versions: %d %q, %v", resp.StatusCode, got, err)
		}
		s := w.open2(t, webSocket()...)
		_ = s.f.WriteData(1, true, []byte("early"))
		s.until(func() bool { return s.ended })
		if s.head[":status"] != "200" || string(s.data) != "helloearlybye" {
			t.Errorf("both versions: %v %q", s.head, s.data)
		}
	}
	w = newWorld(t, []*backend{serving2(t, "cart", cartAddr, 1, nil, echo)})
	for range 3 {
		_, _, resp := w.upgraded(t, "")
		if resp.StatusCode != 502 || resp.Header.Get("X-Heddle-Reason") != "NoWebSocket" {
			t.Errorf("HTTP/2 alone: %d %v", resp.StatusCode, resp.Header)
		}
		s := w.open2(t, webSocket()...)
		s.until(s.answered)
		if s.head[":status"] != "502" || s.head["x-heddle-reason"] != "NoWebSocket" {
			t.Errorf("HTTP/2 alone: %v", s.head)
		}
		if resp, _ := w.get(w.client(), "/"); resp.StatusCode != 200 {
			t.Errorf("another request: %d", resp.StatusCode)
		}
	}
	if n := w.value("heddle_waypoint_refusals_total", "reason", "NoWebSocket"); n != 6 {
		t.Errorf("%v are counted", n)
	}
}

// TestWebSocketWaitsForSettings: nothing is asked before SETTINGS have come, and the route's timeout bounds that.
func TestWebSocketWaitsForSettings(t *testing.T) {
	said := make(chan int, 4)
	b := raw(t, "cart", cartAddr, func(c net.Conn) {
		f := xhttp2.NewFramer(io.Discard, c)
		_, _ = io.ReadFull(c, make([]byte, len(http2.Preface)))
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			if frame.Header().Type == xhttp2.FrameHeaders {
				said <- 1
			}
		}
	})
	b.port = "h2c"
	w := newWorld(t, []*backend{b})
	w.routes = routed(toBackend("cart"))
	w.routes[0].Rules[0].RequestTimeout = 300 * time.Millisecond
	w.set()
	_, _, resp := w.upgraded(t, "")
	if resp.StatusCode != 504 || resp.Header.Get("X-Heddle-Reason") != "Timeout" || len(said) > 0 {
		t.Errorf("%d %v, %d were asked", resp.StatusCode, resp.Header, len(said))
	}
}

// TestWebSocketsAreJudgedAlike: in each pair of versions, a policy says the same of a WebSocket: it is a GET with an Upgrade.
func TestWebSocketsAreJudgedAlike(t *testing.T) {
	b := sockets2(t, func(s *socket2) { s.echo() })
	one := serving(t, "cart", cartAddr, 1, chat)
	for name, c := range map[string]struct {
		policy mesh.Policy
		allows bool
	}{
		"deny GET":           {about("p", "cart", mesh.ActionDeny, mesh.RequestMatch{Methods: []string{"GET"}}), false},
		"deny CONNECT":       {about("p", "cart", mesh.ActionDeny, mesh.RequestMatch{Methods: []string{"CONNECT"}}), true},
		"allow GET":          {about("p", "cart", mesh.ActionAllow, mesh.RequestMatch{Methods: []string{"GET"}}), true},
		"allow CONNECT":      {about("p", "cart", mesh.ActionAllow, mesh.RequestMatch{Methods: []string{"CONNECT"}}), false},
		"deny an upgrade":    {about("p", "cart", mesh.ActionDeny, headers("upgrade", "websocket")), false},
		"allow an upgrade":   {about("p", "cart", mesh.ActionAllow, headers("upgrade", "websocket")), true},
		"deny the path":      {about("p", "cart", mesh.ActionDeny, paths("/chat")), false},
		"allow another path": {about("p", "cart", mesh.ActionAllow, paths("/cha")), false},
		"allow the host":     {about("p", "cart", mesh.ActionAllow, mesh.RequestMatch{Hosts: []asked.Pattern{"cart.shop"}}), true},
		"deny a subprotocol": {about("p", "cart", mesh.ActionDeny, headers("sec-websocket-protocol", "chat")), false},
		"allow a version":    {about("p", "cart", mesh.ActionAllow, headers("sec-websocket-version", "13")), true},
	} {
		for _, to := range []*backend{one, b} {
			w := newWorld(t, []*backend{to})
			w.policies = []mesh.Policy{c.policy}
			w.set()
			_, _, resp := w.upgraded(t, "")
			s := w.open2(t, webSocket()...)
			s.until(s.answered)
			if (resp.StatusCode == 101) != c.allows || (s.head[":status"] == "200") != c.allows || !c.allows && (resp.StatusCode != 403 || s.head[":status"] != "403") {
				t.Errorf("%s, to %s: HTTP/1.1 %d, HTTP/2 %v, want allowed %v", name, to.port, resp.StatusCode, s.head, c.allows)
			}
			_ = s.c.Close()
		}
	}
}

// TestPolicyEndsWebSocketsInHTTP2: those that a changed policy names, and no others on the same connection to the workload.
func TestPolicyEndsWebSocketsInHTTP2(t *testing.T) {
	w := newWorld(t, []*backend{sockets2(t, func(s *socket2) {
		s.answer(false, ":status", "200")
		for s.say("tick\n", false) == nil {
			select {
			case <-s.over:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})})
	w.policies = []mesh.Policy{about("all", "cart", mesh.ActionAllow, paths("/*"))}
	w.set()
	_, goes, _ := w.upgraded(t, "", "X-Role: a\r\n")
	_, stays, _ := w.upgraded(t, "", "X-Role: b\r\n")
	ticks(t, goes)
	ticks(t, stays)
	w.policies = []mesh.Policy{about("b", "cart", mesh.ActionAllow, headers("x-role", "b"))}
	w.set()
	if _, err := io.Copy(io.Discard, goes); err == nil {
		t.Error("it ended as if it were whole")
	}
	if n := w.value("heddle_waypoint_refusals_total", "reason", "PolicyChanged"); n != 1 {
		t.Errorf("%v are counted", n)
	}
	for until := time.Now().Add(300 * time.Millisecond); time.Now().Before(until); {
		ticks(t, stays)
	}
}

// TestWebSocketThatNobodyReads: what a client does not take the workload cannot send without end, what the workload does not take neither
// can the client; little is held of either, and others on the same connection go on.
func TestWebSocketThatNobodyReads(t *testing.T) {
	w := newWorld(t, []*backend{sockets2(t, func(s *socket2) {
		if s.head["x-role"] == "" {
			s.echo()
			return
		}
		s.answer(false, ":status", "200")
		_ = s.say(strings.Repeat("x", 16<<10), false) // four fill the window
		_ = s.say(strings.Repeat("x", 16<<10), false)
		_ = s.say(strings.Repeat("x", 16<<10), false)
	})}, func(cfg *serve.Config) { cfg.Loops = 1 })
	var silent []*net.TCPConn
	for range 8 {
		c, _, resp := w.upgraded(t, "", "X-Role: silent\r\n")
		if resp.StatusCode != 101 {
			t.Fatal(resp.StatusCode)
		}
		silent = append(silent, c)
	}
	big := bytes.Repeat([]byte("y"), 64<<10)
	for _, c := range silent { // the stream's window is 1 MiB, and nothing is given back
		_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		for n := 0; n < 64<<20; {
			k, err := c.Write(big)
			if n += k; err != nil {
				break
			}
			if n >= 60<<20 {
				t.Fatal("what nobody takes goes on without end")
			}
		}
	}
	if held := w.gauge("heddle_waypoint_buffered_bytes"); held > 8*(256<<10) {
		t.Errorf("%v bytes are held", held)
	}
	c, in, _ := w.upgraded(t, "more")
	_ = c.CloseWrite()
	if got, err := io.ReadAll(in); string(got) != "hellomorebye" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// TestWebSocketHeadsAreHeld: the head of a WebSocket counts as what is held as long as it lasts.
func TestWebSocketHeadsAreHeld(t *testing.T) {
	const size, sockets = 30_000, 10
	w := newWorld(t, []*backend{sockets2(t, func(s *socket2) {
		s.answer(false, ":status", "200")
		for p := range s.came {
			if p == nil {
				_ = s.say("", true)
				return
			}
		}
	})})
	var all []*net.TCPConn
	for range sockets {
		c, _, resp := w.upgraded(t, "", strings.Repeat("x-a: "+strings.Repeat("y", size/5)+"\r\n", 5))
		if resp.StatusCode != 101 {
			t.Fatal(resp.StatusCode)
		}
		all = append(all, c)
	}
	held := func() float64 { return w.gauge("heddle_waypoint_buffered_bytes") }
	eventually(t, "the heads are held, each once", func() bool { n := held(); return n > sockets*size && n < sockets*size*5/4 })
	for _, c := range all {
		_ = c.Close()
	}
	eventually(t, "and no more", func() bool { return held() == 0 })
}
