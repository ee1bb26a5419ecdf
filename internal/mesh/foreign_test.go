package mesh_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// federated are settings with workloads of another trust domain, each "IDENTITY ADDRESS...".
func federated(workloads ...string) mesh.Settings {
	s := settings()
	d := mesh.FederatedDomain{TrustDomain: spiffeid.RequireTrustDomainFromString("other.org")}
	for _, text := range workloads {
		words := strings.Fields(text)
		w := mesh.FederatedWorkload{Identity: spiffeid.RequireFromString(words[0])}
		for _, addr := range words[1:] {
			w.Addresses = append(w.Addresses, netip.MustParseAddr(addr))
		}
		d.Workloads = append(d.Workloads, w)
	}
	s.Federation = []mesh.FederatedDomain{d}
	return s
}

const billing = "spiffe://other.org/ns/pay/sa/billing"

// TestRouteToForeign: who is declared is connected to at its own addresses, by its identity,
// and nobody else is taken for it.
func TestRouteToForeign(t *testing.T) {
	s := federated(billing+" 10.200.0.1 fd00::200", "spiffe://other.org/db 10.200.0.2")
	s.Egress = mesh.EgressDeny // nothing leaves
	outside := service("outside", "10.96.0.1", 80, 80, "web")
	outside.External = []netip.Addr{netip.MustParseAddr("10.200.0.1")}
	v := mustView(t, s, []mesh.Workload{workload("shop", "web", "10.0.0.1")}, []mesh.Service{outside}, nil)
	src := mustWorkload(t, v, "shop", "web")
	for _, from := range []*mesh.Workload{src, nil} {
		for _, to := range []string{"10.200.0.1:80", "[::ffff:10.200.0.1]:80", "[fd00::200]:80"} {
			for how, r := range map[string]mesh.Route{"route": v.Route(from, netip.MustParseAddrPort(to)), "past": v.Past(from, netip.MustParseAddrPort(to))} {
				if r.Kind != mesh.RouteWorkload || r.Service != nil || r.Port != 80 || len(r.Candidates) != 1 {
					t.Fatalf("%s %s: %+v", how, to, r)
				}
				w := r.Candidates[0]
				addr, ok := w.AddressFor(netip.MustParseAddrPort(to).Addr(), src)
				if w.Identity.String() != billing || !w.Enrolled || w.Key != (mesh.Key{}) || w.Node != "" || !ok || addr != netip.MustParseAddrPort(to).Addr().Unmap() {
					t.Errorf("%s %s: %+v at %v", how, to, w, addr)
				}
			}
		}
	}
	if r := v.Route(src, netip.MustParseAddrPort("10.200.0.1:15008")); r.Kind != mesh.RouteReject || r.Reason != mesh.ReasonReservedPort {
		t.Errorf("to the tunnel's port: %+v", r)
	}
	if r := v.Route(src, netip.MustParseAddrPort("10.200.0.3:80")); r.Kind != mesh.RouteHold {
		t.Errorf("beside it: %+v", r)
	}
	if _, ok := v.WorkloadAt(netip.MustParseAddr("10.200.0.1")); ok || len(v.Workloads()) != 1 {
		t.Error("it is a workload of the mesh")
	}
	id, other, addr := spiffeid.RequireFromString(billing), spiffeid.RequireFromString("spiffe://other.org/db"), netip.MustParseAddr("10.200.0.1")
	if !v.Declared(id, addr) || v.Declared(other, addr) || v.Declared(id, netip.MustParseAddr("10.200.0.2")) || v.Declared(id, netip.MustParseAddr("10.0.0.1")) {
		t.Error("who is declared where is another")
	}
	// What changes beside it leaves it as it is; taken back, nobody is there.
	web := workload("shop", "other", "10.0.0.2")
	next, err := v.With("r2", mesh.Change{Workloads: []*mesh.Workload{&web}})
	if err != nil || !next.Declared(id, addr) || next.Route(nil, netip.MustParseAddrPort("10.0.0.2:80")).Kind != mesh.RouteWorkload {
		t.Fatalf("after a change: %v", err)
	}
	none := settings()
	if next, err = next.With("r3", mesh.Change{Settings: &none}); err != nil || next.Declared(id, addr) {
		t.Fatalf("after the end: %v", err)
	}
	if allocated := testing.AllocsPerRun(100, func() { v.Route(src, netip.MustParseAddrPort("10.200.0.1:80")) }); allocated > 0 {
		t.Errorf("%v allocations", allocated)
	}
}

// TestForeignMustBeClear: what could lead elsewhere than is meant makes no View.
func TestForeignMustBeClear(t *testing.T) {
	third := federated()
	third.Federation = append(third.Federation, mesh.FederatedDomain{TrustDomain: spiffeid.RequireTrustDomainFromString("third.org"),
		Workloads: []mesh.FederatedWorkload{{Identity: spiffeid.RequireFromString("spiffe://third.org/x"), Addresses: []netip.Addr{netip.MustParseAddr("10.200.0.1")}}}})
	third.Federation[0].Workloads = federated(billing + " 10.200.0.1").Federation[0].Workloads
	var many []string
	for i := range mesh.MaxFederatedWorkloads + 1 {
		many = append(many, "spiffe://other.org/w"+strings.Repeat("x", i)+" "+netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i + 1)}).String())
	}
	for _, c := range []struct {
		settings mesh.Settings
		says     string
	}{
		{federated("spiffe://third.org/x 10.200.0.1"), "its identity is none of a workload of that trust domain"},
		{federated("spiffe://example.org/ns/shop/sa/web 10.200.0.1"), "its identity is none of"},
		{federated("spiffe://other.org 10.200.0.1"), "its identity is none of"},
		{federated(billing), "it has no address"},
		{federated(billing+" 10.200.0.1", billing+" 10.200.0.2"), "it is given twice"},
		{federated(billing+" 10.200.0.1", "spiffe://other.org/x 10.200.0.1"), "10.200.0.1 is also that of " + billing},
		{third, "10.200.0.1 is also that of " + billing},
		{federated(billing + " 192.0.2.1"), "192.0.2.1 is outside the cluster ranges"},
		{federated(billing + " ::ffff:10.200.0.1"), "not one that others can reach"},
		{federated(billing + " 127.0.0.1"), "not one that others can reach"},
		{federated(billing + " 10.0.0.1"), "10.0.0.1 is used twice: by workload " + billing + " of another trust domain and by workload shop/web"},
		{federated(billing + " 10.96.0.1"), "10.96.0.1 is used twice: by workload " + billing + " of another trust domain and by service shop/web"},
		{federated(many...), "257 workloads of federated trust domains, 256 are possible"},
	} {
		_, err := mesh.NewView("r", c.settings, []mesh.Workload{workload("shop", "web", "10.0.0.1")}, []mesh.Service{service("web", "10.96.0.1", 80, 80, "web")}, nil)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v\nwant %q", err, c.says)
		}
	}
	v := mustView(t, federated(billing+" 10.200.0.1"), nil, nil, nil)
	taken := workload("shop", "web", "10.200.0.1")
	if _, err := v.With("r2", mesh.Change{Workloads: []*mesh.Workload{&taken}}); err == nil || !strings.Contains(err.Error(), "is used twice") {
		t.Errorf("a workload takes its address: %v", err)
	}
}
