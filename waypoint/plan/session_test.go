package plan_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

// place is a pod of the services of a town, on a node and in a zone of the same name.
type place struct {
	name, service, zone string
	leaving             bool
}

// town is a planner of the services cart and other, whose rule has sessions.
type town struct {
	t      testing.TB
	prefer mesh.Nearness
	places []place
	rule   route.Rule
	store  *snapshot.Store
	*plan.Planner
}

func newTown(t testing.TB, places ...place) *town {
	w := &town{t: t, places: places, rule: rule("r"), store: snapshot.NewStore(key("waypoint"))}
	w.rule.Session = &route.Session{Name: "sid", AbsoluteTimeout: time.Hour}
	w.rule.Backends = append(w.rule.Backends, route.Backend{Service: key("other"), Port: 80})
	w.Planner = plan.New(telemetry.New(prometheus.NewRegistry(), plan.Reasons(), func() float64 { return 0 }))
	w.set()
	return w
}

// set has the planner go by what the town is now. Clients have 10.1.1.1 in zone a, and 10.1.1.2 in zone b.
func (w *town) set() {
	w.t.Helper()
	var workloads []mesh.Workload
	cart := mesh.Service{Key: key("cart"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 8080}}, Prefer: w.prefer}
	other := mesh.Service{Key: key("other"), Ports: cart.Ports}
	add := func(name, zone string, leaving bool, addr [4]byte) {
		workloads = append(workloads, mesh.Workload{Key: key(name), ServiceAccount: "x", Node: zone, Zone: zone, Ready: !leaving, Leaving: leaving, Addresses: []netip.Addr{netip.AddrFrom4(addr)}, Identity: spiffeid.RequireFromString("spiffe://test.example/ns/shop/sa/x")})
	}
	add("client-a", "a", false, [4]byte{10, 1, 1, 1})
	add("client-b", "b", false, [4]byte{10, 1, 1, 2})
	for i, at := range w.places {
		add(at.name, at.zone, at.leaving, [4]byte{10, 1, 2, byte(i)})
		if at.service == "cart" {
			cart.Endpoints = append(cart.Endpoints, key(at.name))
		} else {
			other.Endpoints = append(other.Endpoints, key(at.name))
		}
	}
	v, err := mesh.NewView("v", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("test.example"), ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, workloads, []mesh.Service{cart, other}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	rule := w.rule
	rule.Backends = slices.Clone(rule.Backends)
	if err := w.store.Set("1", v, []route.Route{httpRoute("shop", rule)}); err != nil {
		w.t.Fatal(err)
	}
	w.Use(w.store.Load())
}

var start = time.Unix(1_700_000_000, 0)

// from plans a request of a client with a cookie, and returns the plan, and the cookie that it is given if by answers.
func (w *town) from(client, cookie string, at time.Time, by string) (*plan.Plan, string) {
	w.t.Helper()
	c := web()
	c.Addr = netip.MustParseAddrPort(client + ":4")
	out := &plan.Plan{}
	w.Plan(out, c, &plan.Request{Request: route.Request{Host: "cart", Method: "GET", Headers: []route.Header{{Name: "cookie", Value: cookie}}}, Target: "/"}, at)
	if out.Way == nil {
		w.t.Fatalf("a request is answered with %+v", out.Reply)
	}
	for _, candidate := range out.To.Candidates {
		if candidate.Name == by {
			if fields := out.Stay.Append(nil, candidate, at); len(fields) > 0 {
				return out, string(fields[0].Value[:len("sid=")+24])
			}
			return out, ""
		}
	}
	w.t.Fatalf("%s is none of the %d candidates", by, len(out.To.Candidates))
	return nil, ""
}

func with(p *plan.Plan) string {
	if p.Stay.With == nil {
		return ""
	}
	return p.Stay.With.Name
}

const clientA, clientB = "10.1.1.1", "10.1.1.2"

// TestSessionGoesOn: with the workload that answered first, at its backend, whatever the weights are; no other token is given
// but by another workload that answers.
func TestSessionGoesOn(t *testing.T) {
	w := newTown(t, place{name: "cart-1", service: "cart", zone: "a"}, place{name: "cart-2", service: "cart", zone: "a"}, place{name: "other-1", service: "other", zone: "a"})
	first, cookie := w.from(clientA, "", start, "cart-2")
	if with(first) != "" || cookie == "" {
		t.Fatalf("the first request stays with %q, and is given %q", with(first), cookie)
	}
	for _, weights := range [][2]uint32{{1, 0}, {0, 1}, {0, 0}} {
		w.rule.Backends[0].Weight, w.rule.Backends[1].Weight = weights[0], weights[1]
		w.set()
		if p, anew := w.from(clientA, cookie, start.Add(59*time.Minute), "cart-2"); with(p) != "cart-2" || anew != "" || p.Way.Backend != "shop/cart:80" {
			t.Errorf("with weights %v it goes on with %q at %s, and is given %q", weights, with(p), p.Way.Backend, anew)
		}
	}
	w.rule.Backends[0].Weight, w.rule.Backends[1].Weight = 0, 1
	w.set()
	p, moved := w.from(clientA, cookie, start.Add(59*time.Minute), "cart-1") // as cart-2 did not accept
	if with(p) != "cart-2" || moved == "" || moved == cookie {
		t.Errorf("a session that %q did not take on is given %q", with(p), moved)
	}
	if p, anew := w.from(clientA, moved, start.Add(61*time.Minute), "cart-1"); with(p) != "cart-1" || anew != "" {
		t.Errorf("then it goes on with %q, and is given %q", with(p), anew)
	}
	if p, anew := w.from(clientA, cookie, start.Add(61*time.Minute), "other-1"); with(p) != "" || anew == "" {
		t.Errorf("after its time it goes on with %q, and is given %q", with(p), anew)
	}
	w.places = append([]place{{name: "cart-3", service: "cart", zone: "a"}}, w.places[:1]...)
	w.places = append(w.places, place{name: "other-1", service: "other", zone: "a"})
	w.set()
	if p, anew := w.from(clientA, cookie, start, "other-1"); with(p) != "" || anew == "" {
		t.Errorf("without its workload it goes on with %q and is given %q, and not by weight", with(p), anew)
	}
	w.places = append(w.places, place{name: "cart-2", service: "other", zone: "a"}) // which is not of its backend any more
	w.set()
	if p, _ := w.from(clientA, cookie, start, "other-1"); with(p) != "" {
		t.Errorf("it goes on with %q, which is another backend's", with(p))
	}
}

// TestSessionAndNearness: a session whose requests come from several places stays with one workload, though the first one is
// picked near its client. Where only those on the client's node count, it does not leave that.
func TestSessionAndNearness(t *testing.T) {
	w := newTown(t, place{name: "cart-a", service: "cart", zone: "a"}, place{name: "cart-b", service: "cart", zone: "b"})
	for _, prefer := range []mesh.Nearness{mesh.AnyDistance, mesh.SameZone, mesh.SameNode, mesh.OnlyNode} {
		w.prefer = prefer
		w.set()
		p, cookie := w.from(clientA, "", start, "cart-a")
		if near := prefer != mesh.AnyDistance; near != (len(p.To.Candidates) == 1) {
			t.Fatalf("by nearness %d the first request has %d candidates", prefer, len(p.To.Candidates))
		}
		if p, anew := w.from(clientA, cookie, start, "cart-a"); with(p) != "cart-a" || anew != "" || prefer != mesh.AnyDistance && len(p.To.Candidates) != 1 {
			t.Errorf("by nearness %d it goes on with %q of %d, and is given %q", prefer, with(p), len(p.To.Candidates), anew)
		}
		if p, anew := w.from(clientB, cookie, start, "cart-b"); prefer == mesh.OnlyNode {
			if with(p) != "" || anew == "" || len(p.To.Candidates) != 1 {
				t.Errorf("it leaves the node: to %q of %d", with(p), len(p.To.Candidates))
			}
		} else if with(p) != "cart-a" || len(p.To.Candidates) != 2 {
			t.Errorf("by nearness %d it goes on from elsewhere with %q of %d", prefer, with(p), len(p.To.Candidates))
		}
	}
	_, cookie := w.from(clientA, "", start, "cart-a")
	w.places[1].leaving = true // and nobody else is on its node
	w.set()
	if p, _ := w.from(clientB, cookie, start, "cart-b"); with(p) != "" || len(p.To.Candidates) != 1 {
		t.Errorf("it leaves a node whose last workload leaves: to %q of %d", with(p), len(p.To.Candidates))
	}
}

// TestSessionCost: planning a request of a session that goes on allocates nothing.
func TestSessionCost(t *testing.T) {
	var places []place
	for i := range 250 {
		places = append(places, place{name: fmt.Sprint("cart-", i), service: "cart", zone: "a"})
	}
	w := newTown(t, append(places, place{name: "other-1", service: "other", zone: "a"})...)
	_, cookie := w.from(clientA, "", start, "cart-77")
	c, out, r, headers := web(), &plan.Plan{}, &plan.Request{}, []route.Header{{Name: "cookie", Value: cookie}}
	if n := testing.AllocsPerRun(100, func() {
		*r = plan.Request{Request: route.Request{Host: "cart", Method: "GET", Headers: headers}, Target: "/a"}
		w.Plan(out, c, r, start)
	}); n > 0 || with(out) != "cart-77" {
		t.Errorf("%v allocations, with %q", n, with(out))
	}
}

// BenchmarkSession is one request of a session that goes on with one of 250 workloads.
func BenchmarkSession(b *testing.B) {
	var places []place
	for i := range 250 {
		places = append(places, place{name: fmt.Sprint("cart-", i), service: "cart", zone: "a"})
	}
	w := newTown(b, places...)
	_, cookie := w.from(clientA, "", start, "cart-77")
	c, out, r, headers := web(), &plan.Plan{}, &plan.Request{}, []route.Header{{Name: "cookie", Value: cookie}}
	b.ReportAllocs()
	for b.Loop() {
		*r = plan.Request{Request: route.Request{Host: "cart", Method: "GET", Headers: headers}, Target: "/a"}
		w.Plan(out, c, r, start)
	}
}
