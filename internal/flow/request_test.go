package flow

import (
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

func sampleRequest() Request {
	return Request{
		Start: time.Unix(1700000000, 5), Duration: 12 * time.Millisecond,
		Source: Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "web"}, Identity: spiffeid.RequireFromString("spiffe://d/ns/shop/sa/web"), Addr: netip.MustParseAddrPort("10.1.0.1:4567")},
		Destination: Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "cart-1"}, Identity: spiffeid.RequireFromString("spiffe://d/ns/shop/sa/cart"),
			Addr: netip.MustParseAddrPort("10.1.0.2:8080")},
		Service: "shop/cart:80", Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow.String(), Policy: mesh.Key{Namespace: "shop", Name: "p"}, Rule: 2, Audited: "shop/everything,shop/gets",
		BytesSent: 100, BytesReceived: 2000,
		HTTP: HTTP{Method: "GET", Path: "/cart/*", Status: 503, Route: "HTTPRoute shop/cart rules[1]", Backend: "shop/cart:80", Tries: 2, First: "BackendReset"},
	}
}

func TestRequestOverTheWire(t *testing.T) {
	r := sampleRequest()
	got := r.ToProto(7, "waypoint-1", mesh.Key{Namespace: "shop", Name: "waypoint"})
	rule := int32(2)
	want := &meshpb.Flow{Id: 7, StartNs: r.Start.UnixNano(), DurationNs: 12_000_000, Direction: "request",
		Source:      &meshpb.FlowEndpoint{Workload: "shop/web", Identity: "spiffe://d/ns/shop/sa/web", Address: "10.1.0.1:4567"},
		Destination: &meshpb.FlowEndpoint{Workload: "shop/cart-1", Identity: "spiffe://d/ns/shop/sa/cart", Address: "10.1.0.2:8080"},
		Service:     "shop/cart", Node: "waypoint-1", Waypoint: "shop/waypoint", Verdict: "allow", Reason: "PolicyAllow", Policy: "shop/p", Rule: &rule, Audited: []string{"shop/everything", "shop/gets"},
		BytesSent: 100, BytesReceived: 2000, Transport: "none",
		Request: &meshpb.FlowRequest{Method: "GET", Path: "/cart/*", Status: 503, Route: "HTTPRoute shop/cart rules[1]", Backend: "shop/cart:80", Tries: 2, FirstError: "BackendReset"}}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestRequestFilter: each key, as a command line has it and after it has been over the wire.
func TestRequestFilter(t *testing.T) {
	now := time.Unix(1700000060, 0)
	for _, tc := range []struct {
		key, value string
		want       bool
	}{
		{"method", "get", true}, {"method", "POST,PUT", false}, {"status", "503", true}, {"status", "404,5xx", true}, {"status", "2xx", false}, {"status", "0", false},
		{"route", "shop/cart", true}, {"route", "cart", true}, {"route", "other/cart", false}, {"route", "rules[1]", false},
		{"port", "80", true}, {"port", "8080", true}, {"port", "81", false}, {"namespace", "shop", true}, {"workload", "shop/cart-1", true}, {"workload", "shop/cart", false},
		{"identity", "spiffe://d/ns/shop/*", true}, {"peer", "10.1.0.0/24", true}, {"peer", "10.2.0.0/24", false}, {"verdict", "deny", false}, {"reason", "PolicyAllow", true},
		{"reason", "PolicyDeny", false}, {"direction", "request", true}, {"direction", "outbound,request", true}, {"direction", "inbound", false}, {"since", "5m", true},
		{"since", "10s", false}, {"transport", "none", true}, {"transport", "tunnel", false},
	} {
		var f Filter
		if err := f.Set(tc.key, tc.value, now); err != nil {
			t.Errorf("%s=%s: %v", tc.key, tc.value, err)
			continue
		}
		r := sampleRequest()
		back, err := FilterFromProto(f.ToProto())
		if err != nil || f.MatchRequest(&r) != tc.want || back.MatchRequest(&r) != tc.want {
			t.Errorf("%s=%s: %v, over the wire %v, %v", tc.key, tc.value, f.MatchRequest(&r), back.MatchRequest(&r), err)
		}
		of := tc.key == "method" || tc.key == "status" || tc.key == "route" || tc.value == "request"
		connection := sample()
		if f.OfRequests() != of || of && f.Match(&connection) {
			t.Errorf("%s=%s: only of requests is %v, and a connection matches: %v", tc.key, tc.value, f.OfRequests(), f.Match(&connection))
		}
	}
	r := sampleRequest()
	r.Reason = "BadPath"
	if byReason := (Filter{Reasons: []mesh.Reason{mesh.ReasonUnknown}}); byReason.MatchRequest(&r) {
		t.Error("a reason of the waypoint's own is taken for one of the mesh's")
	}
	for _, wrong := range []string{"6xx", "x", "99", "1000", "-1", "5XXX", ""} {
		var f Filter
		if err := f.Set("status", wrong, now); err == nil {
			t.Errorf("status %q was taken", wrong)
		}
	}
}
