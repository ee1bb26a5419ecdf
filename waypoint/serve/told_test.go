package serve_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/requests"
	"github.com/heddle-mesh/heddle/waypoint/serve"
	"github.com/heddle-mesh/heddle/waypoint/trace"
)

// flows has a waypoint keep so many requests, all but those of /quiet when they go well.
func flows(size int) option {
	return func(cfg *serve.Config) {
		rules, err := sample.Parse([]string{"/quiet=0", "1"})
		if err != nil {
			panic(err)
		}
		cfg.Sinks.Flows = requests.New(requests.Config{Waypoint: mesh.Key{Namespace: "shop", Name: waypointServed}, Replica: "waypoint-1", Size: size, Rules: rules})
	}
}

// traces has it write spans, which nobody takes.
func traces(t testing.TB, endpoint, rules string) option {
	t.Helper()
	r, err := sample.Parse([]string{rules})
	if err != nil {
		t.Fatal(err)
	}
	e, err := trace.New(trace.Config{Endpoint: endpoint, Rules: r, Count: func(string, int) {}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = e.Run(ctx) // it closes
	})
	return func(cfg *serve.Config) { cfg.Sinks.Traces = e }
}

// told are the requests that a world has kept.
func (w *world) told(n int, keep *requests.Log) []*meshpb.Flow {
	w.t.Helper()
	var all []*meshpb.Flow
	eventually(w.t, fmt.Sprintf("%d requests are kept", n), func() bool {
		all = keep.Last(100, &flow.Filter{})
		return len(all) == n
	})
	return all
}

// carriedIn2 is HTTP/1.1 from the client, and HTTP/2 to the workload.
const carriedIn2 = "HTTP/1.1 in HTTP/2"

// servingAs is a service that is asked in a version of HTTP.
func servingAs(t testing.TB, version string, handle http.HandlerFunc) *backend {
	t.Helper()
	if version == carriedIn2 {
		return serving2(t, "cart", cartAddr, 1, nil, handle)
	}
	return serving(t, "cart", cartAddr, 1, handle)
}

// TestFlows: what is told of requests that went well, were refused, were answered by a route, and were sent again.
func TestFlows(t *testing.T) {
	for _, version := range []string{"HTTP/1.1", "HTTP/2", carriedIn2} {
		t.Run(version, func(t *testing.T) {
			var keep *requests.Log
			var failing atomic.Bool
			cart := servingAs(t, version, func(out http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/again") && failing.CompareAndSwap(false, true) {
					out.WriteHeader(503)
					return
				}
				echo(out, r)
			})
			w := newWorld(t, []*backend{cart}, flows(64), func(cfg *serve.Config) { keep = cfg.Sinks.Flows })
			again, gone := toBackend("cart"), route.Rule{Name: "gone", Matches: []route.Match{{Path: route.PathMatch{Type: route.PathExact, Value: "/old"}}},
				Filters: []route.Filter{{Redirect: &route.Redirect{Status: 301, Hostname: "new.example"}}}}
			again.Name, again.Matches = "again", []route.Match{{Path: route.PathMatch{Value: "/again"}, Method: "GET"}}
			again.Retry = &route.Retry{Attempts: 2, Codes: []uint16{503}}
			rest := toBackend("cart")
			rest.Matches = []route.Match{{Path: route.PathMatch{Value: "/v1"}}, {Path: route.PathMatch{Value: "/quiet"}}}
			w.routes = routed(rest, again, gone)
			w.set()
			c := w.client()
			if version == "HTTP/2" {
				c = w.client2()
			}
			for _, ask := range []struct {
				path   string
				status int
			}{{"/v1/items?token=secret", 200}, {"/quiet", 200}, {"/again/a", 200}, {"/old", 301}, {"/nowhere", 404}} {
				if resp, _ := w.get(c, ask.path); resp.StatusCode != ask.status {
					t.Fatalf("%s: %d", ask.path, resp.StatusCode)
				}
			}
			about := func(name string, action mesh.Action) mesh.Policy {
				return mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: name}, Action: action, Selector: map[string]string{"app": "cart"}, Rules: []mesh.Rule{{}}}
			}
			w.policies = []mesh.Policy{about("watch", mesh.ActionAudit)}
			w.set()
			if resp, _ := w.get(c, "/v1/x"); resp.StatusCode != 200 {
				t.Fatalf("a policy audits: %d", resp.StatusCode)
			}
			w.policies = append(w.policies, about("nobody", mesh.ActionDeny))
			w.set()
			if resp, _ := w.get(c, "/v1/x"); resp.StatusCode != 403 {
				t.Fatalf("a policy says no: %d", resp.StatusCode)
			}
			var got []string
			for _, f := range w.told(6, keep) {
				r := f.GetRequest()
				got = append(got, fmt.Sprintf("%s %s %d %s tries=%d first=%q route=%q to=%s policy=%s[%d] %s", r.GetMethod(), r.GetPath(), r.GetStatus(), f.GetVerdict()+"/"+f.GetReason(),
					r.GetTries(), r.GetFirstError(), r.GetRoute(), f.GetDestination().GetWorkload(), f.GetPolicy(), f.GetRule(), f.GetAudited()))
				if f.GetSource().GetIdentity() != shopIdentity || f.GetSource().GetAddress() != "10.1.2.3:4567" || f.GetService() != "shop/cart" || f.GetWaypoint() != "shop/waypoint" || (r.GetTries() > 0 && f.GetDurationNs() <= 0) {
					t.Errorf("a flow is %v", f)
				}
				if strings.Contains(f.String(), "secret") || strings.Contains(f.String(), "items") {
					t.Errorf("what was asked for is told: %v", f)
				}
			}
			want := []string{
				`GET /v1/* 200 allow/NoPolicy tries=1 first="" route="HTTPRoute shop/cart all" to=shop/cart-0 policy=[0] []`,
				`GET /again/* 200 allow/NoPolicy tries=2 first="status 503" route="HTTPRoute shop/cart again" to=shop/cart-0 policy=[0] []`,
				`GET /old 301 allow/ tries=0 first="" route="HTTPRoute shop/cart gone" to= policy=[0] []`,
				`GET  404 deny/NoRoute tries=0 first="" route="" to= policy=[0] []`,
				`GET /v1/* 200 audit/NoPolicy tries=1 first="" route="HTTPRoute shop/cart all" to=shop/cart-0 policy=[0] [shop/watch]`,
				`GET /v1/* 403 deny/PolicyDeny tries=0 first="" route="HTTPRoute shop/cart all" to= policy=shop/nobody[0] [shop/watch]`,
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestTraceGoesOn: a workload's parent is the waypoint's span, in the client's trace; without a collector all is as it came.
func TestTraceGoesOn(t *testing.T) {
	const theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, version := range []string{"HTTP/1.1", "HTTP/2", carriedIn2} {
		for _, on := range []bool{true, false} {
			t.Run(fmt.Sprint(version, on), func(t *testing.T) {
				options := []option{}
				if on {
					options = append(options, traces(t, "http://127.0.0.1:1", "0"))
				}
				w := newWorld(t, []*backend{servingAs(t, version, echo)}, options...)
				w.routes = routed(toBackend("cart"))
				w.set()
				c := w.client()
				if version == "HTTP/2" {
					c = w.client2()
				}
				resp, _ := w.get(c, "/", "traceparent", theirs, "tracestate", "a=b", "X-B3-Sampled", "1")
				parent := resp.Header.Get("Got-Traceparent")
				if resp.Header.Get("Got-Tracestate") != "a=b" || resp.Header.Get("Got-X-B3-Sampled") != "1" || (parent == theirs) == on || !strings.HasPrefix(parent, theirs[:36]) || !strings.HasSuffix(parent, "-01") {
					t.Errorf("the workload got %q, %v", parent, resp.Header)
				}
				resp, _ = w.get(c, "/")
				if parent := resp.Header.Get("Got-Traceparent"); (len(parent) == len(theirs)) != on || on && !strings.HasSuffix(parent, "-00") {
					t.Errorf("of a client that says nothing the workload got %q", parent)
				}
			})
		}
	}
}

// TestFlowOfNonsense: what is no request at all is told of as one that was refused.
func TestFlowOfNonsense(t *testing.T) {
	var keep *requests.Log
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)}, flows(8), func(cfg *serve.Config) { keep = cfg.Sinks.Flows })
	w.routes = routed(toBackend("cart"))
	w.set()
	c := w.dial()
	defer func(c net.Conn) { _ = c.Close() }(c)
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 512)
	n, err := c.Read(answer)
	if err != nil || !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 400 ")) {
		t.Fatalf("%q %v", answer[:n], err)
	}
	if f := w.told(1, keep)[0]; f.GetReason() != "bad_content_length" || f.GetVerdict() != "deny" || f.GetRequest().GetStatus() != 400 || f.GetSource().GetAddress() != netip.MustParseAddrPort("10.1.2.3:4567").String() {
		t.Errorf("a flow is %v", f)
	}
}
