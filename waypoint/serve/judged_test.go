package serve_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	asked "github.com/heddle-mesh/heddle/internal/mesh/request"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/requests"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// about is a policy about requests to the workloads of a backend.
func about(name, app string, action mesh.Action, matches ...mesh.RequestMatch) mesh.Policy {
	p := mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: name}, Action: action, Selector: map[string]string{"app": app}}
	for _, m := range matches {
		p.Rules = append(p.Rules, mesh.Rule{From: []mesh.Source{{Identities: []mesh.IdentityPattern{shopIdentity}}}, To: []mesh.Destination{{Requests: &m}}})
	}
	return p
}

func paths(of ...asked.Pattern) mesh.RequestMatch { return mesh.RequestMatch{Paths: of} }

// eachVersions runs a test for clients and workloads of each version of HTTP.
func eachVersions(t *testing.T, test func(t *testing.T, client func(*world) *http.Client, port string)) {
	for client, of := range map[string]func(*world) *http.Client{"HTTP/1.1": (*world).client, "HTTP/2": (*world).client2} {
		for server, port := range map[string]string{"HTTP/1.1": "http", "HTTP/2": "http2"} {
			t.Run(client+" to "+server, func(t *testing.T) { test(t, of, port) })
		}
	}
}

// TestRequestsAreJudged: by what policies say of them, in whatever way a path is written, with
// the reason and the policy on each surface.
func TestRequestsAreJudged(t *testing.T) {
	eachVersions(t, func(t *testing.T, of func(*world) *http.Client, port string) {
		b := serving12(t, "cart", cartAddr, echo)
		b.port = port
		var log *requests.Log
		w := newWorld(t, []*backend{b}, flows(100), func(c *serve.Config) { log = c.Sinks.Flows })
		w.policies = []mesh.Policy{
			about("read", "cart", mesh.ActionAllow, mesh.RequestMatch{Hosts: []asked.Pattern{"*.shop"}, Methods: []string{"GET"}, Paths: []asked.Pattern{"/items/*"}},
				mesh.RequestMatch{Methods: []string{"POST"}, Headers: []asked.HeaderMatch{{Name: "x-role", Values: []asked.Pattern{"writer"}}}}),
			about("never", "cart", mesh.ActionDeny, paths("/items/secret*")),
		}
		w.set()
		c := of(w)
		call := []string{"Content-Type", "application/grpc", "Te", "trailers"}
		refused := 0.0
		for _, test := range []struct {
			method, path, host string
			headers            []string
			reason, policy     string
		}{
			{"GET", "/items/1?secret", "", nil, "", ""},
			{"GET", "/items/1", "CART.shop.:80", nil, "", ""},
			{"GET", "/items/x/../1", "", nil, "", ""},
			{"GET", "/items/1", "cart.bank", nil, "PolicyNoMatch", ""},
			{"GET", "/other", "", nil, "PolicyNoMatch", ""},
			{"GET", "/items/../other", "", nil, "PolicyNoMatch", ""},
			{"GET", "/items/%2e%2e/other", "", nil, "PolicyNoMatch", ""},
			{"GET", "/items/..%2fother", "", nil, "PolicyDeny", "never"},
			{"GET", "/items/..;/other", "", nil, "PolicyDeny", "never"},
			{"DELETE", "/items/1", "", nil, "PolicyNoMatch", ""},
			{"GET", "/items/secret/1", "", nil, "PolicyDeny", "never"},
			{"GET", "/items/%73ecret", "", nil, "PolicyDeny", "never"},
			{"GET", "/items//secret", "", nil, "PolicyDeny", "never"},
			{"GET", "//items/secret", "", nil, "PolicyDeny", "never"},
			{"GET", "/items%2Fsecret", "", nil, "PolicyDeny", "never"},
			{"POST", "/x", "", []string{"X-Role", "writer"}, "", ""},
			{"POST", "/x", "", []string{"X-Role", "reader"}, "PolicyNoMatch", ""},
			{"POST", "/x", "", []string{"X-Role", "writer", "X-Role", "reader"}, "PolicyNoMatch", ""},
			{"POST", "/x", "", nil, "PolicyNoMatch", ""},
			{"POST", "/shop.Cart/Get", "", append([]string{"X-Role", "writer"}, call...), "", ""},
			{"POST", "/shop.Cart/Get", "", call, "PolicyNoMatch", ""},
		} {
			req := request(t, test.method, test.path, nil, test.headers...)
			if test.host != "" {
				req.Host = test.host
			}
			name := fmt.Sprintf("%s %s at %q with %v", test.method, test.path, test.host, test.headers)
			resp, _ := w.do(c, req)
			grpc := len(test.headers) >= 2 && test.headers[len(test.headers)-2] == "Te"
			want := 200
			if test.reason != "" {
				if refused++; !grpc {
					want = 403
				} else if resp.Header.Get("Grpc-Status") != "7" {
					t.Errorf("%s: grpc-status %q", name, resp.Header.Get("Grpc-Status"))
				}
			}
			if resp.StatusCode != want || resp.Header.Get("X-Heddle-Reason") != test.reason {
				t.Errorf("%s: %d %q, want %d %q", name, resp.StatusCode, resp.Header.Get("X-Heddle-Reason"), want, test.reason)
			}
			eventually(t, "a flow of "+name, func() bool {
				last := log.Last(1, &flow.Filter{})
				return len(last) == 1 && last[0].GetReason() == map[bool]string{true: "PolicyAllow", false: test.reason}[test.reason == ""] && (test.policy == "" || strings.HasSuffix(last[0].GetPolicy(), test.policy))
			})
		}
		if n := w.value("heddle_waypoint_refusals_total", "reason", "PolicyDeny") + w.value("heddle_waypoint_refusals_total", "reason", "PolicyNoMatch"); n != refused {
			t.Errorf("%v refusals are counted, want %v", n, refused)
		}
		eventually(t, "the access log says why", func() bool {
			return strings.Contains(w.log.String(), `"reason":"PolicyDeny"`) && strings.Contains(w.log.String(), `"reason":"PolicyNoMatch"`)
		})
	})
}

// TestRequestsAreJudgedAsTheyAreSent: what a route makes of a request is what its workload gets, also
// when it gets it at the second try, or in a copy.
func TestRequestsAreJudgedAsTheyAreSent(t *testing.T) {
	eachVersions(t, func(t *testing.T, of func(*world) *http.Client, port string) {
		copies := make(chan string, 10)
		b := serving12(t, "cart", cartAddr, echo)
		shadow := serving12(t, "shadow", cartAddr.Next(), func(_ http.ResponseWriter, r *http.Request) { copies <- r.URL.Path })
		b.port, shadow.port = port, port
		b.workloads = append([]netip.Addr{workloadAddress()}, b.workloads...) // nobody listens there
		w := newWorld(t, []*backend{b, shadow})
		admin := toBackend("cart", route.Filter{Rewrite: &route.Rewrite{Path: &route.PathChange{Value: "/admin"}}}, route.Filter{RequestHeaders: &route.Headers{Set: []route.Header{{Name: "x-by", Value: "rule"}}}})
		admin.Matches = []route.Match{{Path: route.PathMatch{Type: route.PathExact, Value: "/public"}}}
		w.routes = routed(admin, toBackend("cart", route.Filter{RequestHeaders: &route.Headers{Set: []route.Header{{Name: "x-by", Value: "rule"}}}},
			route.Filter{Mirror: &route.Mirror{Service: mesh.Key{Namespace: "shop", Name: "shadow"}, Port: servicePort, Numerator: 1, Denominator: 1}}))
		w.policies = []mesh.Policy{
			about("by-rule", "cart", mesh.ActionAllow, mesh.RequestMatch{Headers: []asked.HeaderMatch{{Name: "x-by", Values: []asked.Pattern{"rule"}}}}),
			about("by-agent", "cart", mesh.ActionDeny, mesh.RequestMatch{Headers: []asked.HeaderMatch{{Name: "x-forwarded-for", Values: []asked.Pattern{"6.6.6.6"}}}}),
			about("no-admin", "cart", mesh.ActionDeny, paths("/admin")),
			about("no-copies", "shadow", mesh.ActionDeny, paths("/mine*")),
		}
		w.set()
		c := of(w)
		for range 4 {
			if resp, body := w.get(c, "/public"); resp.StatusCode != 403 || resp.Header.Get("X-Heddle-Reason") != "PolicyDeny" {
				t.Errorf("what becomes /admin: %d %q", resp.StatusCode, body)
			}
			if resp, body := w.get(c, "/mine", "X-By", "client", "X-Forwarded-For", "6.6.6.6"); resp.StatusCode != 200 {
				t.Errorf("/mine: %d %q", resp.StatusCode, body)
			}
		}
		if resp, body := w.get(c, "/yours"); resp.StatusCode != 200 {
			t.Errorf("/yours: %d %q", resp.StatusCode, body)
		}
		eventually(t, "a copy is sent, and four are refused", func() bool {
			return w.value("heddle_waypoint_mirrored_total", "outcome", "sent") == 1 && w.value("heddle_waypoint_mirrored_total", "outcome", "failed") == 4
		})
		if got := <-copies; got != "/yours" {
			t.Errorf("a copy is of %s", got)
		}
	})
}

// TestPolicyEndsRequestsThatGoOn: those that a changed policy names, and no others of the same client.
func TestPolicyEndsRequestsThatGoOn(t *testing.T) {
	streamed := func(of func(*world) *http.Client) func(*testing.T, *world, string) *bufio.Reader {
		return func(t *testing.T, w *world, path string) *bufio.Reader {
			resp, err := of(w).Do(request(t, "GET", path, nil))
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v, %v", resp, err)
			}
			t.Cleanup(func() { resp.Body.Close() })
			return bufio.NewReader(resp.Body)
		}
	}
	webSocket := func(t *testing.T, w *world, path string) *bufio.Reader {
		c := w.dial()
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		in := bufio.NewReader(c)
		if resp, err := http.ReadResponse(in, request(t, "GET", "/", nil)); err != nil || resp.StatusCode != 101 {
			t.Fatalf("%v %v", resp, err)
		}
		return in
	}
	test := func(t *testing.T, handle http.HandlerFunc, port string, open func(*testing.T, *world, string) *bufio.Reader) {
		b := serving12(t, "cart", cartAddr, handle)
		b.port = port
		w := newWorld(t, []*backend{b})
		goes, stays := open(t, w, "/a?x=1"), open(t, w, "/b")
		for _, policies := range [][]mesh.Policy{
			{about("both", "cart", mesh.ActionAllow, paths("/a", "/b"))}, // the first that is about requests comes when they are under way
			{about("both", "cart", mesh.ActionAllow, paths("/*")), about("no-a", "cart", mesh.ActionDeny, mesh.RequestMatch{Headers: []asked.HeaderMatch{{Name: "x-none"}}})},
		} {
			w.policies = policies
			w.set()
			for until := time.Now().Add(300 * time.Millisecond); time.Now().Before(until); {
				ticks(t, goes)
				ticks(t, stays)
			}
		}
		w.policies = []mesh.Policy{about("b", "cart", mesh.ActionAllow, paths("/b"))}
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
	eachVersions(t, func(t *testing.T, of func(*world) *http.Client, port string) { test(t, ticking, port, streamed(of)) })
	t.Run("WebSocket", func(t *testing.T) { test(t, switching, "http", webSocket) })
}

// TestWhatIsNoRequest: where policies are about requests, a connection that is no HTTP is refused by what
// cannot be judged.
func TestWhatIsNoRequest(t *testing.T) {
	b := raw(t, "cart", cartAddr, tick)
	b.port = "tcp"
	w := newWorld(t, []*backend{b})
	for _, p := range []mesh.Policy{about("get", "cart", mesh.ActionAllow, mesh.RequestMatch{Methods: []string{"GET"}}), about("no-admin", "cart", mesh.ActionDeny, paths("/admin"))} {
		w.policies = []mesh.Policy{p}
		w.set()
		before := w.value("heddle_waypoint_refusals_total", "reason", "RequestUnseen")
		c := w.dial()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		if n, err := io.Copy(io.Discard, c); n > 0 {
			t.Errorf("%s: %d bytes came, %v", p.Name, n, err)
		}
		_ = c.Close()
		if n := w.value("heddle_waypoint_refusals_total", "reason", "RequestUnseen") - before; n != 1 {
			t.Errorf("%s: %v are counted", p.Name, n)
		}
	}
}

// TestConnectIsRefused: what is inside a CONNECT would pass by all that is said of requests, and of who sends them.
func TestConnectIsRefused(t *testing.T) {
	for _, port := range []string{"http", "http2", "said-by-nobody"} {
		b := serving12(t, "cart", cartAddr, func(http.ResponseWriter, *http.Request) { t.Errorf("%s: a request came to the workload", port) })
		b.port = port
		w := newWorld(t, []*backend{b})
		for name, policies := range map[string][]mesh.Policy{
			"no policy":      nil,
			"deny a method":  {about("d", "cart", mesh.ActionDeny, mesh.RequestMatch{Methods: []string{"DELETE"}})},
			"deny a host":    {about("d", "cart", mesh.ActionDeny, mesh.RequestMatch{Hosts: []asked.Pattern{"admin.shop"}})},
			"allow a method": {about("a", "cart", mesh.ActionAllow, mesh.RequestMatch{NotMethods: []string{"DELETE"}})},
			"allow CONNECT":  {about("a", "cart", mesh.ActionAllow, mesh.RequestMatch{Methods: []string{"CONNECT"}})},
		} {
			w.policies = policies
			w.set()
			if port != "http2" {
				got := w.exchanged([]byte("CONNECT cart.shop:80 HTTP/1.1\r\nHost: cart.shop:80\r\n\r\n"), []byte("DELETE /x HTTP/1.1\r\nHost: admin.shop\r\nX-Forwarded-Client-Cert: URI=spiffe://forged\r\n\r\n"))
				if !strings.HasPrefix(string(got), "HTTP/1.1 405 ") || !strings.Contains(string(got), "X-Heddle-Reason: ConnectRefused\r\n") || strings.Count(string(got), "HTTP/1.1 ") != 1 {
					t.Errorf("%s, %s: %q", port, name, got)
				}
			}
			s := w.open2(t, ":method", "CONNECT", ":authority", "db.shop:5432")
			s.until(s.answered)
			if s.head[":status"] != "405" || s.head["x-heddle-reason"] != "ConnectRefused" {
				t.Errorf("%s, %s: %v", port, name, s.head)
			}
		}
	}
}
