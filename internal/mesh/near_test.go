package mesh_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// spread returns a view of one service with n workloads, in turn in zones a and
// b and on nodes n0 to n3, and of clients without a service.
func spread(t testing.TB, n int, prefer mesh.Nearness, clients ...mesh.Workload) *mesh.View {
	t.Helper()
	workloads, service := clients, mesh.Service{Key: mesh.Key{Namespace: "shop", Name: "web"}, Prefer: prefer,
		Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 8080}}}
	for i := range n {
		w := workload("shop", fmt.Sprintf("web-%d", i), fmt.Sprintf("10.0.1.%d", i+1))
		w.Node, w.Zone = fmt.Sprintf("n%d", i%4), string("ab"[i%2])
		workloads = append(workloads, w)
		service.Endpoints = append(service.Endpoints, w.Key)
	}
	return mustView(t, settings(), workloads, []mesh.Service{service}, nil)
}

func clientAt(name, address, node, zone string) mesh.Workload {
	w := workload("shop", name, address)
	w.Node, w.Zone = node, zone
	return w
}

func candidates(t testing.TB, v *mesh.View, client string) []*mesh.Workload {
	t.Helper()
	r := v.Route(mustWorkload(t, v, "shop", client), netip.MustParseAddrPort("10.96.0.1:80"))
	if r.Kind != mesh.RouteWorkload {
		t.Fatalf("%s is routed %+v", client, r)
	}
	return r.Candidates
}

func TestNearWorkloadsArePreferred(t *testing.T) {
	here, there := clientAt("here", "10.0.0.1", "n1", "b"), clientAt("there", "10.0.0.2", "n9", "c")
	for _, c := range []struct {
		prefer           mesh.Nearness
		near, elsewhere  int
		sameNode, sameAZ bool
	}{
		{mesh.AnyDistance, 8, 8, false, false},
		{mesh.SameZone, 4, 8, false, true},
		{mesh.SameNode, 2, 8, true, true},
	} {
		v := spread(t, 8, c.prefer, here, there)
		near := candidates(t, v, "here")
		if len(near) != c.near || len(candidates(t, v, "there")) != c.elsewhere {
			t.Errorf("prefer %d: %d near, %d elsewhere", c.prefer, len(near), len(candidates(t, v, "there")))
		}
		for _, w := range near {
			if c.sameNode && w.Node != "n1" || c.sameAZ && w.Zone != "b" {
				t.Errorf("prefer %d: %v is on %s in %s", c.prefer, w.Key, w.Node, w.Zone)
			}
		}
	}
	v := spread(t, 8, mesh.SameZone, here)
	src := mustWorkload(t, v, "shop", "here")
	if n := testing.AllocsPerRun(100, func() { v.Route(src, netip.MustParseAddrPort("10.96.0.1:80")) }); n != 0 {
		t.Errorf("a route makes %v allocations", n)
	}
	// The node has none: its zone has.
	v = spread(t, 8, mesh.SameNode, clientAt("near", "10.0.0.3", "n9", "a"))
	if got := candidates(t, v, "near"); len(got) != 4 || got[0].Zone != "a" {
		t.Errorf("%d candidates", len(got))
	}
}

func TestOnlyTheClientsNode(t *testing.T) {
	here, there := clientAt("here", "10.0.0.1", "n1", "b"), clientAt("there", "10.0.0.2", "n9", "b")
	v := spread(t, 8, mesh.OnlyNode, here, there)
	if got := candidates(t, v, "here"); len(got) != 2 || got[0].Node != "n1" || got[1].Node != "n1" {
		t.Errorf("where the node has two: %v", got)
	}
	// Its zone has some, and they do not count.
	r := v.Route(mustWorkload(t, v, "shop", "there"), netip.MustParseAddrPort("10.96.0.1:80"))
	if r.Kind != mesh.RouteReject || r.Reason != mesh.ReasonNoEndpoint {
		t.Errorf("where the node has none: %+v", r)
	}
}

// served returns the names of those that take a client's connections, for workloads
// that are ready, leaving or neither ("r", "l", "-"), one on each of the nodes n0, n1, ...
func served(t *testing.T, states string, change func(*mesh.Service)) (names string) {
	t.Helper()
	service := mesh.Service{Key: mesh.Key{Namespace: "shop", Name: "web"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 8080}}}
	workloads := []mesh.Workload{clientAt("client", "10.0.0.1", "n0", "")}
	for i, state := range states {
		w := workload("shop", fmt.Sprintf("%d", i), fmt.Sprintf("10.0.1.%d", i+1))
		w.Node, w.Ready, w.Leaving = fmt.Sprintf("n%d", i), state == 'r', state == 'l'
		workloads = append(workloads, w)
		service.Endpoints = append(service.Endpoints, w.Key)
	}
	change(&service)
	v := mustView(t, settings(), workloads, []mesh.Service{service}, nil)
	r := v.Route(mustWorkload(t, v, "shop", "client"), netip.MustParseAddrPort("10.96.0.1:80"))
	if (r.Kind == mesh.RouteReject) != (len(r.Candidates) == 0) {
		t.Errorf("%s: %+v", states, r)
	}
	for _, w := range r.Candidates {
		names += w.Name
	}
	return names
}

func TestWhoTakesConnections(t *testing.T) {
	always := func(*mesh.Service) {}
	local := func(s *mesh.Service) { s.Prefer = mesh.OnlyNode }
	unready := func(s *mesh.Service) { s.Unready = true }
	for _, c := range []struct {
		states string
		change func(*mesh.Service)
		want   string
	}{
		{"lrr-", always, "12"},
		{"ll-", always, "01"}, // the last ones go on until they are gone
		{"---", always, ""},
		{"lr", local, "0"}, // a node's last one, though another node has a ready one
		{"rl", local, "0"},
		{"-l", local, ""},
		{"l-", local, "0"},
		{"lr-", unready, "012"},
		{"---", unready, "012"},
	} {
		if got := served(t, c.states, c.change); got != c.want {
			t.Errorf("of %s connections go to %q, want %q", c.states, got, c.want)
		}
	}
}
