package plan_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func key(name string) mesh.Key { return mesh.Key{Namespace: "shop", Name: name} }

func web() *plan.Client {
	return &plan.Client{Addr: netip.MustParseAddrPort("10.1.2.3:4"), To: netip.MustParseAddrPort("10.96.0.10:80"), ID: spiffeid.RequireFromString("spiffe://test.example/ns/web/sa/x"), Namespace: "web"}
}

// planner goes by a service with one workload, whose waypoint this is, and routes.
func planner(t testing.TB, routes ...route.Route) *plan.Planner {
	t.Helper()
	w := mesh.Workload{Key: key("cart-1"), ServiceAccount: "cart", Node: "n", Ready: true, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1")}, Identity: spiffeid.RequireFromString("spiffe://test.example/ns/shop/sa/cart")}
	s := mesh.Service{Key: key("cart"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 8080}}, Endpoints: []mesh.Key{w.Key}, Waypoint: key("waypoint")}
	self := mesh.Workload{Key: key("waypoint-1"), ServiceAccount: "waypoint", Node: "n", Ready: true, Enrolled: true, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.9")}, Identity: spiffeid.RequireFromString("spiffe://test.example/ns/shop/sa/waypoint")}
	waypoint := mesh.Service{Key: key("waypoint"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.9")}, Ports: []mesh.ServicePort{{Port: mesh.WaypointPort, TargetPort: mesh.WaypointPort}}, Endpoints: []mesh.Key{self.Key}}
	v, err := mesh.NewView("v", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("test.example"), ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, []mesh.Workload{w, self}, []mesh.Service{s, waypoint}, nil)
	if err != nil {
		t.Fatal(err)
	}
	store := snapshot.NewStore(key("waypoint"))
	if err := store.Set("1", v, routes); err != nil {
		t.Fatal(err)
	}
	p := plan.New(telemetry.New(prometheus.NewRegistry(), plan.Reasons(), func() float64 { return 0 }))
	p.Use(store.Load())
	return p
}

func rule(name string, filters ...route.Filter) route.Rule {
	return route.Rule{Name: name, Backends: []route.Backend{{Service: key("cart"), Port: 80, Weight: 1}}, Filters: filters}
}

func httpRoute(namespace string, rules ...route.Rule) route.Route {
	return route.Route{ID: route.ID{Key: mesh.Key{Namespace: namespace, Name: "r"}}, Parents: []route.Parent{{Service: key("cart"), Port: 80}}, Rules: rules}
}

// ask plans one request.
func ask(p *plan.Planner, c *plan.Client, method, target string) *plan.Plan {
	out := &plan.Plan{}
	p.Plan(out, c, &plan.Request{Request: route.Request{Host: "cart", Method: method}, Target: target}, time.Unix(1, 0))
	return out
}

// TestEditIsApply: what filters make of a head by an Edit is what route.Headers makes of its fields.
func TestEditIsApply(t *testing.T) {
	names := []string{"x-a", "x-b", "x-c"}
	filters := []*route.Headers{
		{Set: []route.Header{{Name: "x-a", Value: "1"}}}, {Add: []route.Header{{Name: "x-a", Value: "2"}, {Name: "x-b", Value: "3"}}}, {Remove: []string{"x-b"}},
		{Remove: []string{"X-A"}, Set: []route.Header{{Name: "x-c", Value: "4"}}, Add: []route.Header{{Name: "x-c", Value: "5"}}},
	}
	for i := range 4 * 4 * 4 {
		chain := []*route.Headers{filters[i%4], filters[i/4%4], filters[i/16]}
		var want []route.Header
		for _, n := range names {
			want = append(want, route.Header{Name: n, Value: "old"})
		}
		var all []route.Filter
		for _, f := range chain {
			want = f.Apply(want)
			all = append(all, route.Filter{RequestHeaders: f})
		}
		e := ask(planner(t, httpRoute("shop", rule("r", all...))), web(), "GET", "/").Way.Request
		var got []route.Header
		for _, n := range names {
			gone := false
			for _, r := range e.Remove {
				gone = gone || strings.EqualFold(r, n)
			}
			if !gone {
				got = append(got, route.Header{Name: n, Value: "old"})
			}
		}
		for _, f := range e.Add {
			got = append(got, route.Header{Name: string(f.Name), Value: string(f.Value)})
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("chain %d: %v, want %v", i, got, want)
		}
	}
}

// TestUnrouted: where no route is about a service, its requests go to its workloads, not to its
// waypoint again.
func TestUnrouted(t *testing.T) {
	out := ask(planner(t), web(), "GET", "/")
	if out.Way == nil || len(out.To.Candidates) != 1 || out.To.Candidates[0].Key != key("cart-1") || out.To.Port != 8080 {
		t.Errorf("it goes to %+v", out.To)
	}
}

// TestOutcomes: what each kind of request comes to.
func TestOutcomes(t *testing.T) {
	routed := httpRoute("shop", route.Rule{Name: "a", Matches: []route.Match{{Path: route.PathMatch{Value: "/a"}}}, Backends: []route.Backend{{Service: key("cart"), Port: 80, Weight: 1}}},
		route.Rule{Name: "gone", Matches: []route.Match{{Path: route.PathMatch{Value: "/gone"}}}, Backends: []route.Backend{{Service: key("none"), Port: 80, Weight: 1}}})
	other := web()
	other.To = netip.MustParseAddrPort("10.96.0.99:80")
	port := web()
	port.To = netip.MustParseAddrPort("10.96.0.10:81")
	pod := web()
	pod.To = netip.MustParseAddrPort("10.1.0.1:8080")
	for _, c := range []struct {
		client         *plan.Client
		method, target string
		want           string
	}{
		{web(), "GET", "/a/b?x", "HTTPRoute shop/r a"}, {web(), "GET", "/A", "404 NoRoute"}, {web(), "GET", "a", "400 BadPath"}, {web(), "GET", "/a%00", "400 BadPath"},
		{web(), "CONNECT", "", "405 ConnectRefused"}, {other, "GET", "/a", "404 UnknownDestination"}, {port, "GET", "/a", "503 ServicePortUndefined"}, {pod, "GET", "/a", "404 Unknown"},
		{web(), "GET", "/gone", "503 UnknownDestination"}, {web(), "OPTIONS", "*", "404 NoRoute"},
	} {
		out := ask(planner(t, routed), c.client, c.method, c.target)
		got := out.Route
		if out.Way == nil {
			got = fmt.Sprintf("%d %s", out.Reply.Status, out.Reply.Reason)
		}
		if got != c.want {
			t.Errorf("%s %s to %s: %s, want %s", c.method, c.target, c.client.To, got, c.want)
		}
	}
	if out := ask(planner(t), web(), "CONNECT", ""); out.Way != nil || out.Reply.Status != 405 || out.Reply.Reason != plan.ConnectRefused || out.Service != "shop/cart:80" {
		t.Errorf("CONNECT without routes: %+v", out)
	}
	if out := ask(planner(t, httpRoute("web", rule("theirs"))), web(), "GET", "/"); out.Route != "HTTPRoute web/r theirs" {
		t.Errorf("a consumer's route: %q", out.Route)
	}
	unsynced := plan.New(telemetry.New(nil, nil, func() float64 { return 0 }))
	unsynced.Use(snapshot.NewStore(key("waypoint")).Load())
	if out := ask(unsynced, web(), "GET", "/"); out.Reply.Status != 503 || out.Reply.Reason != "NotSynced" {
		t.Errorf("without a configuration: %+v", out.Reply)
	}
}

// TestReasons: each is a label's value once.
func TestReasons(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range plan.Reasons() {
		if seen[r] || r == "" {
			t.Errorf("%q is there twice", r)
		}
		seen[r] = true
	}
}

// TestForwarded: who a client is, of both families, with and without an identity.
func TestForwarded(t *testing.T) {
	p := planner(t)
	c := web()
	text := func() (s string) {
		all, _ := p.Forwarded(nil, nil, c)
		for _, f := range all {
			s += string(f.Name) + ": " + string(f.Value) + "\n"
		}
		return s
	}
	if got, want := text(), "x-forwarded-for: 10.1.2.3\nx-forwarded-proto: http\nforwarded: for=10.1.2.3;proto=http\nx-forwarded-client-cert: By=spiffe://test.example/ns/shop/sa/waypoint;URI=spiffe://test.example/ns/web/sa/x\n"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	c.Addr, c.ID = netip.MustParseAddrPort("[fd00::1]:2"), spiffeid.ID{}
	if got, want := text(), "x-forwarded-for: fd00::1\nx-forwarded-proto: http\nforwarded: for=\"[fd00::1]\";proto=http\n"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for name, want := range map[string]string{"X-Forwarded-For": "x-forwarded-for", "FORWARDED": "forwarded", "x-real-ip": "x-real-ip", "X-Forwarded-Zone": "X-Forwarded-Zone", "X-Forward": "", "From": "", "X-Forwarded-": "", "": ""} {
		if got := plan.SaysWho([]byte(name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestCost: planning allocates nothing.
func TestCost(t *testing.T) {
	p := planner(t, httpRoute("shop", rule("r", route.Filter{RequestHeaders: &route.Headers{Set: []route.Header{{Name: "x", Value: "1"}}}})))
	c, out, now := web(), &plan.Plan{}, time.Now()
	r := &plan.Request{}
	headers := []route.Header{{Name: "accept", Value: "*/*"}}
	fields, buf := make([]http1.Field, 0, 8), make([]byte, 0, 512)
	if n := testing.AllocsPerRun(100, func() {
		*r = plan.Request{Request: route.Request{Host: "cart", Method: "GET", Headers: headers}, Target: "/a/b?c"}
		p.Plan(out, c, r, now)
		fields, buf = p.Forwarded(fields[:0], buf[:0], c)
	}); n > 0 || out.Way == nil {
		t.Errorf("%v allocations", n)
	}
}
