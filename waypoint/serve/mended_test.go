package serve_test

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/mesh"
	asked "github.com/heddle-mesh/heddle/internal/mesh/request"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

func headers(name string, values ...asked.Pattern) mesh.RequestMatch {
	return mesh.RequestMatch{Headers: []asked.HeaderMatch{{Name: name, Values: values}}}
}

// TestUpgradesAreJudged: that a WebSocket is asked for is among what policies may name, in either version.
func TestUpgradesAreJudged(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, switching)})
	w.policies = []mesh.Policy{about("no-sockets", "cart", mesh.ActionDeny, headers("upgrade", "websocket"))}
	w.set()
	got := w.exchanged([]byte("GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"))
	if !strings.HasPrefix(string(got), "HTTP/1.1 403 ") || !strings.Contains(string(got), "PolicyDeny") {
		t.Errorf("HTTP/1.1: %q", got)
	}
	s := w.open2(t, webSocket()...)
	s.until(s.answered)
	if s.head[":status"] != "403" || s.head["x-heddle-reason"] != "PolicyDeny" {
		t.Errorf("HTTP/2: %v", s.head)
	}
}

// TestNamesThatServersTakeForOthers: a header that is another one to CGI.
func TestNamesThatServersTakeForOthers(t *testing.T) {
	eachVersions(t, func(t *testing.T, of func(*world) *http.Client, port string) {
		b := serving12(t, "cart", cartAddr, echo)
		b.port = port
		w := newWorld(t, []*backend{b})
		w.policies = []mesh.Policy{about("no-admin", "cart", mesh.ActionDeny, headers("x-role", "admin"))}
		w.set()
		c := of(w)
		if resp, _ := w.get(c, "/", "X_Role", "admin"); resp.StatusCode != 403 {
			t.Errorf("%d", resp.StatusCode)
		}
		if resp, _ := w.get(c, "/", "X_Role", "user"); resp.StatusCode != 200 {
			t.Errorf("another value: %d", resp.StatusCode)
		}
	})
}

// TestKeptRequestsAreHeld: what is kept of a request to be judged anew counts as what is held, and a tunnel keeps no more than that.
func TestKeptRequestsAreHeld(t *testing.T) {
	const size, sockets = 30_000, 20
	come, release := make(chan struct{}, 1), make(chan struct{})
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/late" {
			switching(out, r)
			return
		}
		come <- struct{}{}
		<-release
	})})
	defer close(release)
	held := func() float64 { return w.gauge("heddle_waypoint_buffered_bytes") }
	ask := func(path string, lines string) *bufio.Reader {
		c := w.dial()
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: h\r\n"+strings.Repeat("x-a: "+strings.Repeat("y", size/5)+"\r\n", 5)+lines+"\r\n")
		return bufio.NewReader(c)
	}
	for range sockets {
		resp, err := http.ReadResponse(ask("/", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), request(t, "GET", "/", nil))
		if err != nil || resp.StatusCode != 101 {
			t.Fatal(resp, err)
		}
	}
	eventually(t, "the heads of tunnels are held, each once", func() bool { n := held(); return n > sockets*size && n < sockets*size*5/4 })
	before := held()
	ask("/late", "")
	<-come
	eventually(t, "a head and what is kept of it are held", func() bool { return held()-before > 2*size })
}

// TestCopiesGoByThePolicyThatHolds: a copy that is sent once more is judged as it is then.
func TestCopiesGoByThePolicyThatHolds(t *testing.T) {
	var copies atomic.Int32
	come, refuse := make(chan struct{}, 10), make(chan struct{})
	shadow := frames(t, func(f *xhttp2.Framer, id uint32, n int32) bool {
		copies.Store(n)
		come <- struct{}{}
		<-refuse
		return f.WriteRSTStream(id, xhttp2.ErrCodeRefusedStream) == nil
	})
	shadow.name, shadow.address = "shadow", cartAddr.Next()
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo), shadow})
	w.routes = mirrored()
	w.set()
	if resp, _ := w.get(w.client2(), "/"); resp.StatusCode != 200 {
		t.Errorf("%d", resp.StatusCode)
	}
	<-come
	w.policies = []mesh.Policy{about("no-copies", "shadow", mesh.ActionDeny, paths("/*"))}
	w.set()
	close(refuse)
	eventually(t, "the copy has ended", func() bool { return w.value("heddle_waypoint_mirrored_total", "outcome", "failed") == 1 })
	if n := copies.Load(); n != 1 {
		t.Errorf("the workload got it %d times", n)
	}
}

// TestFullOfHellos: beyond the bound of bytes, ClientHellos that are not whole end.
func TestFullOfHellos(t *testing.T) {
	w := newWorld(t, []*backend{greeting(t, "cart", cartAddr)}, oneLoop, func(cfg *serve.Config) { cfg.Limits.Bytes = 128 << 10 })
	w.routes = []route.Route{passing(route.TLS, "shop", "tls", []string{"a.b"}, map[string]uint32{"cart": 1})}
	w.set()
	part := append([]byte{22, 3, 1, 0x3f, 4, 1, 0, 0x3f, 0}, make([]byte, 12<<10)...)
	for range 40 {
		c := w.dial()
		defer c.Close()
		_, _ = c.Write(part)
	}
	eventually(t, "some are refused", func() bool { return w.value("heddle_waypoint_refusals_total", "reason", "Overloaded") > 10 })
	eventually(t, "few are left", func() bool { return w.server.Connections() < 20 })
	if n := w.value("heddle_waypoint_passages_total", "", ""); n < 10 {
		t.Errorf("%v are told of", n)
	}
}
