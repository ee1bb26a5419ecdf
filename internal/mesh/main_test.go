package mesh_test

import (
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func domain() spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString("example.org") }

func settings() mesh.Settings {
	return mesh.Settings{
		TrustDomain:   domain(),
		ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
	}
}

func identity(namespace, account string) spiffeid.ID {
	id, err := mesh.IdentityFor(domain(), namespace, account)
	if err != nil {
		panic(err)
	}
	return id
}

// workload returns an enrolled, ready, STRICT workload.
func workload(namespace, name string, addrs ...string) mesh.Workload {
	w := mesh.Workload{
		Key:            mesh.Key{Namespace: namespace, Name: name},
		ServiceAccount: name, Node: "n1", Identity: identity(namespace, name),
		Labels:   map[string]string{"app": name},
		Enrolled: true, Gated: true, Ready: true,
	}
	for _, a := range addrs {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
	}
	return w
}

func mustView(t testing.TB, s mesh.Settings, ws []mesh.Workload, svcs []mesh.Service, ps []mesh.Policy) *mesh.View {
	t.Helper()
	v, err := mesh.NewView("r1", s, ws, svcs, ps)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustWorkload(t testing.TB, v *mesh.View, namespace, name string) *mesh.Workload {
	t.Helper()
	w, ok := v.Workload(mesh.Key{Namespace: namespace, Name: name})
	if !ok {
		t.Fatalf("no workload %s/%s", namespace, name)
	}
	return w
}
