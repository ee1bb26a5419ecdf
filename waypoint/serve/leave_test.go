package serve_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// leaves bounds what goes on for a service that has left.
func leaves(idle, all time.Duration) option {
	return func(cfg *serve.Config) { cfg.Timeouts.LeaveIdle, cfg.Timeouts.Leave = idle, all }
}

// named has the world's first service name a waypoint, or none.
func (w *world) named(waypoint string) {
	w.t.Helper()
	w.backends[0].waypoint = waypoint
	w.set()
}

// never is a policy that lets an identity not reach cart.
func never(identity string) mesh.Policy {
	return mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "never"}, Action: mesh.ActionDeny, Selector: map[string]string{"app": "cart"},
		Rules: []mesh.Rule{{From: []mesh.Source{{Identities: []mesh.IdentityPattern{mesh.IdentityPattern(identity)}}}}}}
}

// TestServiceMoves from one waypoint to another and back, and to none, under requests of clients that send each once: POSTs
// over connections that are kept, some busy and some with pauses. None is lost, and none is asked of the former one
// twice over the same connection.
func TestServiceMoves(t *testing.T) {
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			of := func(out http.ResponseWriter, r *http.Request) {
				time.Sleep(3 * time.Millisecond)
				echo(out, r)
			}
			cart := serving(t, "cart", cartAddr, 2, of)
			if two {
				cart = serving2(t, "cart", cartAddr, 2, nil, of)
			}
			copied := *cart
			pings := func(cfg *serve.Config) { cfg.Timeouts.DrainIdle = 10 * time.Second } // those of clients are waited for
			one, other := newWorld(t, []*backend{cart}, pings), newWorld(t, []*backend{&copied}, pings)
			var now atomic.Pointer[func() (net.Conn, error)] // where agents bring new connections
			goes := func(dial func() (net.Conn, error)) { now.Store(&dial) }
			straight := func() (net.Conn, error) {
				return net.Dial("tcp", overLoopback(netip.AddrPortFrom(cart.workloads[0], cart.target)).String())
			}
			one.named(waypointServed)
			other.named("another")
			goes(one.connect)

			stop := make(chan struct{})
			var all sync.WaitGroup
			var made atomic.Int64
			for i := range 12 {
				pause := []time.Duration{0, 0, 20 * time.Millisecond, 250 * time.Millisecond}[i%4]
				c := one.once(two, func() (net.Conn, error) { return (*now.Load())() })
				ask := func() {
					for body := strings.Repeat("x", 100*i); ; time.Sleep(pause) {
						select {
						case <-stop:
							return
						default:
						}
						resp, got, fresh, err := c.ask("POST", body)
						if err != nil || resp.StatusCode != 200 || got != fmt.Sprint("POST ", len(body)) {
							testenv.ForGood(t, "a request is lost, on a connection that is new: %v: %v %q %v", fresh, resp, got, err)
							return
						}
						made.Add(1)
					}
				}
				all.Go(ask)
				if two {
					all.Go(ask)
				}
			}
			leave := func(from, to *world, dial func() (net.Conn, error)) {
				time.Sleep(300 * time.Millisecond)
				if to != nil {
					to.named(waypointServed)
				}
				goes(dial)
				name := "another"
				if to == nil {
					name = ""
				}
				if from != nil {
					from.named(name)
					eventually(t, "nobody is connected to the former waypoint", func() bool { return from.server.Connections() == 0 })
				}
			}
			leave(one, other, other.connect)
			leave(other, one, one.connect)
			leave(one, nil, straight)
			leave(nil, one, one.connect)
			time.Sleep(300 * time.Millisecond)
			close(stop)
			all.Wait()
			if n := made.Load(); n < 100 {
				t.Errorf("%d requests were made", n)
			}
		})
	}
}

// TestLastRequest: a connection that is kept when its service leaves is there for one more request, which is judged by the
// policies of that moment, and is told to be the last. One that has none ends in good order.
func TestLastRequest(t *testing.T) {
	const idle = 1500 * time.Millisecond
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)}, leaves(idle, time.Minute))
	w.named(waypointServed)
	kept := func(identity string) (net.Conn, *bufio.Reader) {
		w.header.Identity = identity
		c := w.dial()
		t.Cleanup(func() { _ = c.Close() })
		in := bufio.NewReader(c)
		if resp, _, err := exchange1(c, in, "POST", "x"); err != nil || resp.StatusCode != 200 || resp.Close {
			t.Fatalf("%v, %v", resp, err)
		}
		return c, in
	}
	asks, askIn := kept(shopIdentity)
	silent, _ := kept(shopIdentity)
	denied, deniedIn := kept(otherIdentity)
	began := time.Now()
	w.named("another")
	time.Sleep(200 * time.Millisecond)
	w.policies = []mesh.Policy{never(otherIdentity)}
	w.set() // changes move no bound
	if resp, got, err := exchange1(asks, askIn, "POST", "body"); err != nil || resp.StatusCode != 200 || got != "POST 4" || !resp.Close {
		t.Errorf("the last request: %v %q %v", resp, got, err)
	}
	if resp, _, err := exchange1(denied, deniedIn, "POST", "body"); err != nil || resp.StatusCode != 403 || resp.Header.Get("X-Heddle-Reason") != "PolicyDeny" || !resp.Close {
		t.Errorf("who may not any more: %v %v", resp, err)
	}
	if n, err := silent.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("without a request: %d, %v", n, err)
	}
	if took := time.Since(began); took < idle || took > idle+5*time.Second {
		t.Errorf("without a request it ended after %v", took)
	}
	// One that is back is served as ever.
	w.policies = nil
	w.named(waypointServed)
	back, backIn := kept(shopIdentity)
	w.named("")
	w.named(waypointServed)
	for range 2 {
		if resp, _, err := exchange1(back, backIn, "POST", "x"); err != nil || resp.StatusCode != 200 || resp.Close {
			t.Errorf("one that is back: %v %v", resp, err)
		}
	}
	// A connection that comes to who is the waypoint no more is served, once.
	w.named("another")
	late := w.dial()
	t.Cleanup(func() { _ = late.Close() })
	if resp, _, err := exchange1(late, bufio.NewReader(late), "POST", "x"); err != nil || resp.StatusCode != 200 || !resp.Close {
		t.Errorf("one that is late: %v %v", resp, err)
	}
}

// TestWhatGoesOnWhenAServiceLeaves: WebSockets, streams and connections that are passed on go on, as long as policy has
// it, and end at the bound; those of a service that is back do not.
func TestWhatGoesOnWhenAServiceLeaves(t *testing.T) {
	const bound = 2 * time.Second
	upgrade := "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	opened := func(send string) func(*testing.T, *world) io.Reader {
		return func(t *testing.T, w *world) io.Reader {
			c := w.dial()
			t.Cleanup(func() { _ = c.Close() })
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = io.WriteString(c, send)
			in := bufio.NewReader(c)
			if send[0] == 'G' {
				if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 101 && resp.StatusCode != 200 {
					t.Fatalf("%v %v", resp, err)
				} else if resp.StatusCode == 200 {
					return resp.Body
				}
			}
			return in
		}
	}
	for _, c := range []struct {
		name    string
		backend func(*testing.T) *backend
		open    func(*testing.T, *world) io.Reader
	}{
		{"a WebSocket", func(t *testing.T) *backend { return serving(t, "cart", cartAddr, 1, switching) }, opened(upgrade)},
		{"an answer of HTTP/1.1", func(t *testing.T) *backend { return serving(t, "cart", cartAddr, 1, ticking) }, opened("GET / HTTP/1.1\r\nHost: h\r\n\r\n")},
		{"a call of gRPC", func(t *testing.T) *backend { return serving2(t, "cart", cartAddr, 1, nil, ticking) }, func(t *testing.T, w *world) io.Reader {
			resp, err := w.client2().Do(request(t, "POST", "/tick", strings.NewReader("x"), "Content-Type", "application/grpc", "Te", "trailers"))
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v, %v", resp, err)
			}
			t.Cleanup(func() { _ = resp.Body.Close() })
			return resp.Body
		}},
		{"no HTTP", func(t *testing.T) *backend {
			b := raw(t, "cart", cartAddr, tick)
			b.port = "tcp"
			return b
		}, opened("x")},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, []*backend{c.backend(t)}, leaves(bound/2, bound))
			w.named(waypointServed)
			open := func(identity string) *bufio.Reader {
				w.header.Identity = identity
				in := bufio.NewReader(c.open(t, w))
				ticks(t, in)
				return in
			}
			goes, denied := open(shopIdentity), open(otherIdentity)
			began := time.Now()
			w.named("another")
			w.policies = []mesh.Policy{never(otherIdentity)}
			w.set()
			if _, err := io.Copy(io.Discard, denied); err == nil || time.Since(began) > bound*3/4 {
				t.Errorf("who may not any more: %v after %v", err, time.Since(began))
			}
			if n := w.value("heddle_waypoint_refusals_total", "reason", "PolicyChanged"); n != 1 {
				t.Errorf("%v ended by policy", n)
			}
			ticks(t, goes)
			if _, err := io.Copy(io.Discard, goes); err == nil {
				t.Error("it ended as if it were whole")
			}
			if took := time.Since(began); took < bound || took > bound+5*time.Second {
				t.Errorf("it ended after %v", took)
			}
			if n := w.value("heddle_waypoint_refusals_total", "reason", "Draining"); n != 1 {
				t.Errorf("%v ended at the bound", n)
			}
			w.policies = nil
			w.named(waypointServed)
			stays := open(shopIdentity)
			w.named("another")
			w.named(waypointServed)
			for until := time.Now().Add(bound + time.Second/2); time.Now().Before(until); {
				ticks(t, stays)
			}
		})
	}
}
