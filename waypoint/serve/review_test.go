package serve_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const otherIdentity = "spiffe://test.example/ns/shop/sa/api"

// ticking answers without end.
func ticking(out http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/silent" {
		<-r.Context().Done()
		return
	}
	for {
		if _, err := io.WriteString(out, "tick\n"); err != nil {
			return
		}
		_ = http.NewResponseController(out).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// switching answers with a tunnel in which it ticks.
func switching(out http.ResponseWriter, _ *http.Request) {
	c, _, err := out.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	tick(c)
}

func tick(c net.Conn) {
	for {
		if _, err := io.WriteString(c, "tick\n"); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ticks reads a line.
func ticks(t *testing.T, in *bufio.Reader) {
	t.Helper()
	if line, err := in.ReadString('\n'); line != "tick\n" || err != nil {
		t.Fatalf("%q, %v", line, err)
	}
}

// TestPolicyEndsWhatGoesOn: what was let in is judged again when policy changes, and ends
// within a second when its client may not reach the workload any more. Others' goes on.
func TestPolicyEndsWhatGoesOn(t *testing.T) {
	streamed := func(of func(*world) *http.Client) func(*testing.T, *world) *bufio.Reader {
		return func(t *testing.T, w *world) *bufio.Reader {
			resp, err := of(w).Do(request(t, "GET", "/", nil))
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v, %v", resp, err)
			}
			t.Cleanup(func() { resp.Body.Close() })
			return bufio.NewReader(resp.Body)
		}
	}
	raw1 := func(send string) func(*testing.T, *world) *bufio.Reader {
		return func(t *testing.T, w *world) *bufio.Reader {
			c := w.dial()
			t.Cleanup(func() { c.Close() })
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = io.WriteString(c, send)
			in := bufio.NewReader(c)
			if send[0] == 'G' {
				if resp, err := http.ReadResponse(in, request(t, "GET", "/", nil)); err != nil || resp.StatusCode != 101 {
					t.Fatalf("%v %v", resp, err)
				}
			}
			return in
		}
	}
	one := func(t *testing.T) *backend { return serving(t, "cart", cartAddr, 1, ticking) }
	for _, c := range []struct {
		name    string
		backend func(*testing.T) *backend
		open    func(*testing.T, *world) *bufio.Reader
	}{
		{"an answer of HTTP/1.1", one, streamed((*world).client)},
		{"an answer by HTTP/2", one, streamed((*world).client2)},
		{"an answer of HTTP/2", func(t *testing.T) *backend { return serving2(t, "cart", cartAddr, 1, nil, ticking) }, streamed((*world).client2)},
		{"an answer of HTTP/1.1 in HTTP/2", func(t *testing.T) *backend { return serving2(t, "cart", cartAddr, 1, nil, ticking) }, streamed((*world).client)},
		{"a WebSocket", func(t *testing.T) *backend { return serving(t, "cart", cartAddr, 1, switching) },
			raw1("GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")},
		{"no HTTP", func(t *testing.T) *backend {
			b := raw(t, "cart", cartAddr, tick)
			b.port = "tcp"
			return b
		}, raw1("x")},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, []*backend{c.backend(t)})
			goes := c.open(t, w)
			w.header.Identity = otherIdentity
			stays := c.open(t, w)
			ticks(t, goes)
			ticks(t, stays)
			w.set() // an equal one changes nothing
			w.policies = []mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "no-web"}, Action: mesh.ActionDeny, Selector: map[string]string{"app": "cart"},
				Rules: []mesh.Rule{{From: []mesh.Source{{Identities: []mesh.IdentityPattern{shopIdentity}}}}}}}
			began := time.Now()
			w.set()
			if _, err := io.Copy(io.Discard, goes); err == nil {
				t.Error("it ended as if it were whole")
			}
			if took := time.Since(began); took > 5*time.Second { // a busy machine's second
				t.Errorf("it went on for %v", took)
			}
			if n := w.value("heddle_waypoint_refusals_total", "reason", "PolicyChanged"); n != 1 {
				t.Errorf("%v are counted", n)
			}
			w.backends[0].workloads = nil // what leaves the mesh drains
			w.set()
			for until := time.Now().Add(300 * time.Millisecond); time.Now().Before(until); {
				ticks(t, stays)
			}
		})
	}
}

// TestPolicyEndsWhatIsAwaited: a request without an answer yet is answered.
func TestPolicyEndsWhatIsAwaited(t *testing.T) {
	for name, of := range map[string]func(*world) *http.Client{"HTTP/1.1": (*world).client, "HTTP/2": (*world).client2, carriedIn2: (*world).client} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []*backend{servingAs(t, name, ticking)})
			w.policies = []mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "nobody"}, Action: mesh.ActionAllow, Selector: map[string]string{"app": "cart"}}}
			timer := time.AfterFunc(200*time.Millisecond, w.set)
			defer timer.Stop()
			if resp, _ := w.get(of(w), "/silent"); resp.StatusCode != 403 || resp.Header.Get("X-Heddle-Reason") != "PolicyChanged" {
				t.Errorf("%d %q", resp.StatusCode, resp.Header.Get("X-Heddle-Reason"))
			}
		})
	}
}

// TestServiceThatLeaves: clients' connections end when nothing is under way, so that what they
// ask next goes where the service is now.
func TestServiceThatLeaves(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			_, _ = io.WriteString(out, "begun\n")
			_ = http.NewResponseController(out).Flush()
			time.Sleep(300 * time.Millisecond)
		}
		_, _ = io.WriteString(out, "done")
	})})
	slow := func(c *http.Client) *http.Response {
		resp, err := c.Do(request(t, "GET", "/slow", nil))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	one, two := w.client(), w.client2()
	w.get(one, "/")
	w.get(two, "/")
	if n := w.server.Connections(); n != 2 {
		t.Fatalf("%d connections are kept", n)
	}
	busy := []*http.Response{slow(w.client()), slow(w.client2())}
	w.backends[0].address = netip.Addr{}
	began := time.Now()
	w.set()
	eventually(t, "the idle ones have ended", func() bool { return w.server.Connections() <= 2 })
	for _, resp := range busy {
		if body, err := io.ReadAll(resp.Body); string(body) != "begun\ndone" || err != nil {
			t.Errorf("%q, %v", body, err)
		}
	}
	eventually(t, "all have ended", func() bool { return w.server.Connections() == 0 })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("they lasted %v", took)
	}
}
