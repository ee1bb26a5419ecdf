package explain

import (
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestHeadlessServices: their names are those of workloads that are ready, or of all where
// the service says so (publishNotReadyAddresses).
func TestHeadlessServices(t *testing.T) {
	domain := spiffeid.RequireTrustDomainFromString("m")
	key := func(name string) mesh.Key { return mesh.Key{Namespace: "shop", Name: name} }
	workload := func(name, address string, ready bool) mesh.Workload {
		w := mesh.Workload{Key: key(name), Node: "n1", ServiceAccount: name, Ready: ready, Identity: spiffeid.RequireFromPath(domain, "/ns/shop/sa/"+name)}
		if address != "" {
			w.Addresses = []netip.Addr{netip.MustParseAddr(address)}
		}
		return w
	}
	view, err := mesh.NewNetworkView("r", mesh.Settings{TrustDomain: domain}, []mesh.Workload{workload("a", "10.0.0.1", true), workload("b", "10.0.0.2", false), workload("c", "", false)}, nil, nil, mesh.Network{})
	if err != nil {
		t.Fatal(err)
	}
	for unready, want := range map[bool]int{false: 1, true: 2} {
		route := headless(view, target{service: &mesh.Service{Key: key("db"), Unready: unready, Endpoints: []mesh.Key{key("a"), key("b"), key("c")}}})
		if len(route.Candidates) != want || route.Kind != mesh.RouteWorkload {
			t.Errorf("unready %v: %d endpoints, want %d", unready, len(route.Candidates), want)
		}
	}
}
