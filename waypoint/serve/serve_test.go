package serve_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// TestForward: a request without routes goes to the service that was dialled, and says who the
// client is, whatever that says itself.
func TestForward(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 2, echo)})
	c := w.client()
	resp, body := w.get(c, "/a/b?c=d", "X-Forwarded-For", "6.6.6.6", "Forwarded", "for=6.6.6.6", "X-Forwarded-Client-Cert", "URI=spiffe://evil", "X-Forwarded-Odd", "1", "X-Own", "1")
	if resp.StatusCode != 200 || body != "GET 0" || resp.Header.Get("X-Path") != "/a/b?c=d" || resp.Header.Get("X-Host") != "cart.shop" {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
	for name, want := range map[string]string{
		"X-Forwarded-For": "10.1.2.3", "X-Forwarded-Proto": "http", "Forwarded": "for=10.1.2.3;proto=http", "X-Own": "1", "X-Forwarded-Odd": "",
		"X-Forwarded-Client-Cert": "By=spiffe://test.example/ns/shop/sa/waypoint;URI=" + shopIdentity,
	} {
		if got := strings.Join(resp.Header["Got-"+name], "|"); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, size := range []int{1, 100, 64 << 10, 3 << 20} {
		payload := make([]byte, size)
		if _, err := rand.Read(payload); err != nil {
			t.Fatal(err)
		}
		for _, in := range []io.Reader{bytes.NewReader(payload), io.MultiReader(bytes.NewReader(payload))} { // with a length, and in chunks
			if _, body := w.do(c, request(t, "POST", "/", in)); body != fmt.Sprintf("POST %d", size) {
				t.Errorf("a body of %d bytes: %s", size, body)
			}
		}
	}
	// A request is counted when its answer has gone out.
	eventually(t, "9 requests are counted", func() bool { return w.value("heddle_waypoint_requests_total", "backend", "shop/cart:80") == 9 })
}

// TestBodies: what a backend answers arrives as it is: with a length, in chunks, until it closes,
// with trailers, and without a body.
func TestBodies(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 200_000)
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/length":
			out.Header().Set("Content-Length", fmt.Sprint(len(large)))
			_, _ = io.WriteString(out, large)
		case "/chunks":
			for i := 0; i < len(large); i += 100_000 {
				_, _ = io.WriteString(out, large[i:i+100_000])
				out.(http.Flusher).Flush()
			}
		case "/trailers":
			out.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(out, large)
			out.Header().Set("X-Sum", "42")
		case "/close":
			hijacked, _, err := out.(http.Hijacker).Hijack()
			if err == nil {
				_, _ = fmt.Fprintf(hijacked, "HTTP/1.0 200 OK\r\nX-Old: 1\r\n\r\n%s", large)
				_ = hijacked.Close()
			}
		case "/empty":
			out.WriteHeader(204)
		case "/hints":
			out.Header().Set("Link", "</x>; rel=preload")
			out.WriteHeader(103)
			_, _ = io.WriteString(out, "hinted")
		}
	})})
	c := w.client()
	for _, path := range []string{"/length", "/chunks", "/close", "/trailers", "/length"} {
		resp, body := w.get(c, path)
		if body != large {
			t.Errorf("%s: %d bytes, want %d", path, len(body), len(large))
		}
		if path == "/trailers" && resp.Trailer.Get("X-Sum") != "42" {
			t.Errorf("trailers are %v", resp.Trailer)
		}
	}
	if resp, body := w.get(c, "/empty"); resp.StatusCode != 204 || body != "" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	if resp, body := w.do(c, request(t, "HEAD", "/length", nil)); body != "" || resp.ContentLength != int64(len(large)) {
		t.Errorf("HEAD: %q, a length of %d", body, resp.ContentLength)
	}
	raw := w.dial()
	defer raw.Close()
	_, _ = io.WriteString(raw, "GET /hints HTTP/1.1\r\nHost: h\r\n\r\n")
	in := bufio.NewReader(raw)
	if line, _ := in.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 103 ") {
		t.Errorf("the first response is %q", line)
	}
}

// TestKeepAlive: many requests on one connection use one connection to the backend.
func TestKeepAlive(t *testing.T) {
	remotes := make(chan string, 1000)
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(_ http.ResponseWriter, r *http.Request) { remotes <- r.RemoteAddr })},
		func(cfg *serve.Config) { cfg.Loops = 1 }) // each loop has connections of its own
	c := w.client()
	for range 100 {
		w.get(c, "/")
	}
	seen := map[string]bool{}
	for range 100 {
		seen[<-remotes] = true
	}
	if len(seen) != 1 {
		t.Errorf("%d connections to the backend, want 1", len(seen))
	}
}

// TestPipelining: requests that come at once are answered in their order.
func TestPipelining(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)})
	c := w.dial()
	defer c.Close()
	var all strings.Builder
	for i := range 200 {
		body := strings.Repeat("x", i)
		fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body)
	}
	go func() { _, _ = io.WriteString(c, all.String()) }()
	in := bufio.NewReader(c)
	for i := range 200 {
		resp, body := readResponse(t, in, "POST")
		if resp.Header.Get("X-Path") != fmt.Sprintf("/%d", i) || body != fmt.Sprintf("POST %d", i) {
			t.Fatalf("answer %d is %s %q", i, resp.Header.Get("X-Path"), body)
		}
	}
}

// TestBytewise: a request that comes byte by byte, and one in HTTP/1.0.
func TestBytewise(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)})
	c := w.dial()
	defer c.Close()
	in := bufio.NewReader(c)
	for _, text := range []string{"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "GET /y HTTP/1.0\r\nHost: h\r\n\r\n"} {
		for i := range len(text) {
			if _, err := io.WriteString(c, text[i:i+1]); err != nil {
				t.Fatal(err)
			}
			if i%7 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		resp, _ := readResponse(t, in, "GET")
		if resp.StatusCode != 200 {
			t.Errorf("%q: %d", text, resp.StatusCode)
		}
	}
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("after HTTP/1.0: %v, want the end", err)
	}
}

// TestExpect: a client that waits for a 100 gets it from the backend.
func TestExpect(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			out.WriteHeader(403)
			return
		}
		echo(out, r)
	})})
	c := w.client()
	c.Transport.(*http.Transport).ExpectContinueTimeout = 10 * time.Second
	began := time.Now()
	if _, body := w.do(c, request(t, "POST", "/", strings.NewReader("hello"), "Expect", "100-continue")); body != "POST 5" || time.Since(began) > 5*time.Second {
		t.Errorf("%q after %s", body, time.Since(began))
	}
	if resp, _ := w.do(c, request(t, "POST", "/no", strings.NewReader("hello"), "Expect", "100-continue")); resp.StatusCode != 403 {
		t.Errorf("refused: %d", resp.StatusCode)
	}
}

// TestUpgrade: a WebSocket is a tunnel both ways, and each way ends by itself.
func TestUpgrade(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		c, rw, err := out.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello")
		_, _ = io.Copy(c, rw)
		_, _ = io.WriteString(c, "bye")
	})})
	c := w.dial().(*net.TCPConn)
	defer c.Close()
	_, _ = io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, request(t, "GET", "/", nil))
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v %v", resp, err)
	}
	payload := strings.Repeat("ping", 100_000)
	go func() {
		_, _ = io.WriteString(c, payload)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(in)
	if err != nil || string(got) != "hello"+payload+"bye" {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestOpaque: what is no HTTP is passed on as it is: where the port's name says so, where the bytes do,
// and where the server speaks first.
func TestOpaque(t *testing.T) {
	for _, c := range []struct{ name, port, send string }{
		{"by the port's name", "tcp-thing", "GET / is not what it seems\n"},
		{"by the bytes", "", "\x16\x03\x01 is TLS\n"},
		{"the server first", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := raw(t, "cart", cartAddr, func(conn net.Conn) {
				_, _ = io.WriteString(conn, "220 ready\n")
				_, _ = io.Copy(conn, conn)
			})
			b.port = c.port
			w := newWorld(t, []*backend{b}, func(cfg *serve.Config) { cfg.Timeouts.Sniff = 50 * time.Millisecond })
			conn := w.dial().(*net.TCPConn)
			defer conn.Close()
			_, _ = io.WriteString(conn, c.send)
			in := bufio.NewReader(conn)
			if line, err := in.ReadString('\n'); line != "220 ready\n" {
				t.Fatalf("%q, %v", line, err)
			}
			_, _ = io.WriteString(conn, "more")
			_ = conn.CloseWrite()
			if rest, err := io.ReadAll(in); string(rest) != c.send+"more" || err != nil {
				t.Errorf("%q, %v", rest, err)
			}
		})
	}
}

// TestRefused: what is wrong is answered with a reason, and counted.
func TestRefused(t *testing.T) {
	b := serving(t, "cart", cartAddr, 1, echo)
	w := newWorld(t, []*backend{b})
	for _, c := range []struct {
		send, reason string
		status       int
	}{
		{"GET / HTTP/1.1\r\n\r\n", "host_missing", 400},
		{"GET / HTTP/1.1\nHost: h\n\n", "bare_lf", 400},
		{"GET /a%5Cb HTTP/1.1\r\nHost: h\r\n\r\n", "BadPath", 400},
		{"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "length_and_coding", 400},
	} {
		conn := w.dial()
		_, _ = io.WriteString(conn, c.send)
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		resp, _ := readResponse(t, bufio.NewReader(conn), "GET")
		if resp.StatusCode != c.status || resp.Header.Get("X-Heddle-Reason") != c.reason {
			t.Errorf("%q: %d %v", c.send, resp.StatusCode, resp.Header)
		}
		if w.value("heddle_waypoint_refusals_total", "reason", c.reason) != 1 {
			t.Errorf("%s was not counted", c.reason)
		}
		_ = conn.Close()
	}
}

// TestDenied: policy is asked with the client's identity before anything is sent, and gRPC clients get
// a status of theirs.
func TestDenied(t *testing.T) {
	asked := 0
	b := serving(t, "cart", cartAddr, 1, func(http.ResponseWriter, *http.Request) { asked++ })
	w := newWorld(t, []*backend{b})
	w.policies = []mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "deny"}, Action: mesh.ActionDeny, Selector: map[string]string{"app": "cart"}, Rules: []mesh.Rule{{}}}}
	w.set()
	c := w.client()
	if resp, body := w.get(c, "/"); resp.StatusCode != 403 || resp.Header.Get("X-Heddle-Reason") != "PolicyDeny" || body != "heddle: PolicyDeny\n" {
		t.Errorf("%d %v %q", resp.StatusCode, resp.Header, body)
	}
	resp, _ := w.do(c, request(t, "POST", "/a.B/C", strings.NewReader("x"), "Content-Type", "application/grpc"))
	if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "7" || resp.Header.Get("Grpc-Message") != "heddle: PolicyDeny" {
		t.Errorf("gRPC: %d %v", resp.StatusCode, resp.Header)
	}
	w.policies = nil
	b.mode = mesh.ModeStrict
	w.set()
	w.header.Identity = ""
	if resp, _ := w.get(w.client(), "/"); resp.StatusCode != 403 || resp.Header.Get("X-Heddle-Reason") != "StrictPlaintext" {
		t.Errorf("without an identity: %d %v", resp.StatusCode, resp.Header)
	}
	if asked != 0 {
		t.Errorf("%d requests came to the backend", asked)
	}
	b.mode = mesh.ModePermissive
	w.set()
	if resp, _ := w.get(w.client(), "/"); resp.StatusCode != 200 || asked != 1 {
		t.Errorf("permissive: %d", resp.StatusCode)
	}
}

// TestNoHeader: whoever does not say whose the connection is is not served.
func TestNoHeader(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)}, func(cfg *serve.Config) { cfg.Timeouts.Header = 100 * time.Millisecond })
	for _, send := range []string{"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "", "\r\n\r\n\x00\r\nQUIT\n"} {
		c, err := net.DialTCP("tcp", nil, w.at)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, send)
		if b, err := io.ReadAll(c); len(b) != 0 {
			t.Errorf("%q was answered with %q, %v", send, b, err)
		}
		_ = c.Close()
	}
	eventually(t, "counted", func() bool { return w.value("heddle_waypoint_refusals_total", "reason", "NoHeader") == 3 })
}

// TestAccessLog: a line of JSON for each request.
func TestAccessLog(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)})
	w.get(w.client(), "/a?b=c", "User-Agent", "quo\"te")
	w.stop()
	var line map[string]any
	if err := json.Unmarshal([]byte(w.log.String()), &line); err != nil {
		t.Fatalf("%v: %q", err, w.log.String())
	}
	for name, want := range map[string]any{"client": "10.1.2.3:4567", "peer": shopIdentity, "service": "shop/cart:80", "backend": "shop/cart:80", "workload": "shop/cart-0",
		"method": "GET", "host": "cart.shop", "path": "/a", "query": "b=c", "user_agent": "quo\"te", "status": 200.0, "tries": 1.0} {
		if line[name] != want {
			t.Errorf("%s is %v, want %v", name, line[name], want)
		}
	}
}
