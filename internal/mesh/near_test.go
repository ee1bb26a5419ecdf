package mesh_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// spread returns a view of one service with n workloads, in turn in zones a and
// b and on nodes n0 to n3, and of clients without a service.
func spread(t testing.TB, n int, prefer mesh.Nearness, sticky bool, clients ...mesh.Workload) *mesh.View {
	t.Helper()
	workloads, service := clients, mesh.Service{Key: mesh.Key{Namespace: "shop", Name: "web"}, Prefer: prefer, Sticky: sticky,
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
		v := spread(t, 8, c.prefer, false, here, there)
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
	// The node has none: its zone has.
	v := spread(t, 8, mesh.SameNode, false, clientAt("near", "10.0.0.3", "n9", "a"))
	if got := candidates(t, v, "near"); len(got) != 4 || got[0].Zone != "a" {
		t.Errorf("%d candidates", len(got))
	}
}

func TestStickyClientsStay(t *testing.T) {
	var clients []mesh.Workload
	for i := range 200 {
		clients = append(clients, clientAt(fmt.Sprintf("c%d", i), fmt.Sprintf("10.0.2.%d", i+1), "n1", "a"))
	}
	before, after := spread(t, 8, mesh.AnyDistance, true, clients...), spread(t, 7, mesh.AnyDistance, true, clients...)
	used, moved := map[string]int{}, 0
	for _, c := range clients {
		first, second := candidates(t, before, c.Name), candidates(t, after, c.Name)
		if len(first) != 1 || len(second) != 1 {
			t.Fatalf("%s has %d and %d candidates", c.Name, len(first), len(second))
		}
		if candidates(t, before, c.Name)[0] != first[0] {
			t.Errorf("%s moves without a reason", c.Name)
		}
		used[first[0].Name]++
		if first[0].Name != second[0].Name {
			moved++
			if first[0].Name != "web-7" {
				t.Errorf("%s leaves %s, which is still there", c.Name, first[0].Name)
			}
		}
	}
	if len(used) != 8 || moved == 0 {
		t.Errorf("%d workloads are used, %d clients moved", len(used), moved)
	}
	for name, n := range used {
		if n < 8 || n > 50 {
			t.Errorf("%s has %d of 200 clients", name, n)
		}
	}
	src := mustWorkload(t, before, "shop", "c0")
	if n := testing.AllocsPerRun(100, func() { before.Route(src, netip.MustParseAddrPort("10.96.0.1:80")) }); n != 0 {
		t.Errorf("a route makes %v allocations", n)
	}
}
