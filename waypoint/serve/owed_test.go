package serve_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

func oneLoop(cfg *serve.Config) { cfg.Loops = 1 }

// mirrored has all of cart's requests copied to shadow.
func mirrored() []route.Route {
	return routed(toBackend("cart", route.Filter{Mirror: &route.Mirror{Service: mesh.Key{Namespace: "shop", Name: "shadow"}, Port: servicePort, Numerator: 100, Denominator: 100}}))
}

// TestMirrorOfBodyHEAD: a body that begins with HEAD does not make a copy be read as one whose answer has no body.
func TestMirrorOfBodyHEAD(t *testing.T) {
	evil := "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo), raw(t, "shadow", cartAddr.Next(), func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.ReadAll(req.Body)
			if req.Method == "GET" {
				time.Sleep(400 * time.Millisecond)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
				continue
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(evil))
			time.Sleep(300 * time.Millisecond)
			_, _ = io.WriteString(c, evil)
		}
	})}, oneLoop)
	w.routes = routed(toBackend("cart"))
	w.set()
	a := w.dial()
	ar := bufio.NewReader(a)
	_, _ = io.WriteString(a, "GET /warm HTTP/1.1\r\nHost: h\r\n\r\n")
	readResponse(t, ar, "GET")
	w.routes = mirrored()
	w.set()
	_, _ = io.WriteString(a, "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n")
	time.Sleep(100 * time.Millisecond)
	_, _ = io.WriteString(a, "HEAD")
	readResponse(t, ar, "POST")
	w.routes = routed(toBackend("shadow"))
	w.set()
	time.Sleep(100 * time.Millisecond)
	b := w.dial()
	_, _ = io.WriteString(b, "GET /victim HTTP/1.1\r\nHost: h\r\n\r\n")
	if resp, body := readResponse(t, bufio.NewReader(b), "GET"); body != "good" {
		t.Errorf("the next client got %d %q", resp.StatusCode, body)
	}
}

// TestMirrorExpect: what is left of a copy whose Expect got no 100 is nobody else's request.
func TestMirrorExpect(t *testing.T) {
	evil := "GET /admin HTTP/1.1\r\nHost: h\r\n\r\n"
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo), raw(t, "shadow", cartAddr.Next(), func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if req.Header.Get("Expect") != "" {
				_, _ = io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
				time.Sleep(200 * time.Millisecond)
				continue
			}
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
		}
	})}, oneLoop)
	w.routes = mirrored()
	w.set()
	a := w.dial()
	fmt.Fprintf(a, "POST /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n%s", len(evil), evil)
	_, _ = bufio.NewReader(a).Peek(12)
	time.Sleep(50 * time.Millisecond)
	w.routes = routed(toBackend("shadow"))
	w.set()
	b := w.dial()
	_, _ = io.WriteString(b, "GET /victim HTTP/1.1\r\nHost: h\r\n\r\n")
	if resp, body := readResponse(t, bufio.NewReader(b), "GET"); body != "/victim" {
		t.Errorf("the next client got %d %q", resp.StatusCode, body)
	}
}

// TestDeniedNotMirrored: a request that policy refuses is not copied.
func TestDeniedNotMirrored(t *testing.T) {
	copies := make(chan string, 10)
	cart := serving(t, "cart", cartAddr, 1, echo)
	cart.mode = mesh.ModeStrict
	shadow := serving(t, "shadow", cartAddr.Next(), 1, func(out http.ResponseWriter, r *http.Request) { copies <- r.URL.Path })
	shadow.mode = mesh.ModePermissive
	w := newWorld(t, []*backend{cart, shadow})
	w.header.Identity = ""
	w.routes = mirrored()
	w.set()
	resp, _ := w.get(w.client(), "/refused")
	time.Sleep(300 * time.Millisecond)
	if resp.StatusCode != 403 || len(copies) > 0 {
		t.Errorf("%d, and %d copies", resp.StatusCode, len(copies))
	}
}

// TestMirrorBytes: what copies hold counts, and is bounded: beyond that they are dropped, and no request is refused for them. It is
// given back when they end, also with the waypoint.
func TestMirrorBytes(t *testing.T) {
	const body = 40 << 10
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo), raw(t, "shadow", cartAddr.Next(), func(c net.Conn) {
		_, _ = io.Copy(io.Discard, c) // without a word
	})}, oneLoop, func(cfg *serve.Config) { cfg.Limits.Bytes = 4 * 100 << 10 })
	w.routes = mirrored()
	w.set()
	c := w.client()
	for i := range 10 {
		if resp, _ := w.do(c, request(t, "POST", "/", strings.NewReader(strings.Repeat("x", body)))); resp.StatusCode != 200 {
			t.Fatalf("request %d: %d %v", i, resp.StatusCode, resp.Header)
		}
	}
	if n := w.value("heddle_waypoint_mirrored_total", "outcome", "dropped"); n != 8 {
		t.Errorf("%v copies were dropped, want 8: there is room for two", n)
	}
	eventually(t, "the bytes of two copies are told", func() bool { n := w.gauge("heddle_waypoint_buffered_bytes"); return n >= 2*body && n < 3*body })
	w.stop() // the world looks whether all of it was given back
	if n := w.value("heddle_waypoint_mirrored_total", "outcome", "failed"); n != 2 {
		t.Errorf("%v copies ended with the waypoint, want 2", n)
	}
}

// TestToldToGoOn: a client that waits for a 100 without end, of a workload that never says it, is told to go on, and answered.
func TestToldToGoOn(t *testing.T) {
	w := newWorld(t, []*backend{raw(t, "cart", cartAddr, func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})}, func(cfg *serve.Config) { cfg.Timeouts.Stall = 200 * time.Millisecond })
	for _, body := range []string{"hello", ""} { // which is sent when it is told to, or not even then
		conn := w.dial()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
		in := bufio.NewReader(conn)
		if status, _, err := readHead(in); status != "HTTP/1.1 100 Continue" || err != nil {
			t.Fatalf("the client is told %q, %v", status, err)
		}
		_, _ = io.WriteString(conn, body)
		resp, got := readResponse(t, in, "POST")
		if body != "" && (resp.StatusCode != 200 || got != body) || body == "" && resp.StatusCode != 408 {
			t.Errorf("with %q: %d %q", body, resp.StatusCode, got)
		}
		_ = conn.Close()
	}
}
