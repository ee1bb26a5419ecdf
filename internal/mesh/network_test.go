package mesh_test

import (
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// networked has shop/api, to which only shop/web may connect and which may connect
// only to shop/db, all by their addresses.
func networked(t testing.TB, policies ...mesh.Policy) *mesh.View {
	t.Helper()
	ws := []mesh.Workload{workload("shop", "api", "10.0.0.1", "fd00::1"), workload("shop", "web", "10.0.0.2"), workload("shop", "db", "10.0.0.3")}
	ws[0].ProbePorts = []uint16{9000}
	set := func(name, addr string) []netpolicy.Shard {
		return netpolicy.Split(name, []netpolicy.Member{{Addr: netip.MustParseAddr(addr)}})
	}
	rules := func(set string) *netpolicy.Direction {
		return &netpolicy.Direction{Rules: []netpolicy.Rule{{Peers: []netpolicy.Peer{{Set: set}}}}}
	}
	v, err := mesh.NewNetworkView("r1", settings(), ws, nil, policies, mesh.Network{
		Policies: []netpolicy.Policy{{Name: netpolicy.Name{Namespace: "shop", Name: "api"}, Selector: netpolicy.Selector{{Key: "app", Values: []string{"api"}}},
			Ingress: rules("web"), Egress: rules("db")}},
		Sets: append(set("web", "10.0.0.2"), set("db", "10.0.0.3")...),
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A NetworkPolicy and an AuthorizationPolicy must both admit.
func TestNetworkPolicyBesideAuthorizationPolicy(t *testing.T) {
	onlyDB := policy("only-db", mesh.ActionAllow, mesh.Rule{From: []mesh.Source{{Identities: []mesh.IdentityPattern{"spiffe://example.org/ns/shop/sa/db"}}}})
	open, both := networked(t), networked(t, onlyDB)
	web, db, other := identity("shop", "web"), identity("shop", "db"), identity("shop", "other")
	for name, c := range map[string]struct {
		view *mesh.View
		c    mesh.Connection
		want mesh.Reason
	}{
		"admitted":                         {open, mesh.Connection{Peer: web, Source: netip.MustParseAddr("10.0.0.2")}, mesh.ReasonNoPolicy},
		"mapped address":                   {open, mesh.Connection{Peer: web, Source: netip.MustParseAddr("::ffff:10.0.0.2")}, mesh.ReasonNoPolicy},
		"not admitted":                     {open, mesh.Connection{Peer: db, Source: netip.MustParseAddr("10.0.0.3")}, mesh.ReasonNetworkPolicyIngress},
		"no address":                       {open, mesh.Connection{Peer: web}, mesh.ReasonNetworkPolicyIngress},
		"admitted, but not authorized":     {both, mesh.Connection{Peer: web, Source: netip.MustParseAddr("10.0.0.2")}, mesh.ReasonPolicyNoMatch},
		"authorized, but not admitted":     {both, mesh.Connection{Peer: db, Source: netip.MustParseAddr("10.0.0.3")}, mesh.ReasonNetworkPolicyIngress},
		"somebody else has the address":    {open, mesh.Connection{Peer: other, Source: netip.MustParseAddr("10.0.0.2")}, mesh.ReasonNetworkPolicyIngress},
		"itself":                           {open, mesh.Connection{Peer: identity("shop", "api"), Source: netip.MustParseAddr("fd00::1")}, mesh.ReasonNoPolicy},
		"plaintext is refused as such":     {open, mesh.Connection{Source: netip.MustParseAddr("10.0.0.9")}, mesh.ReasonStrictPlaintext},
		"a probe":                          {open, mesh.Connection{Source: netip.MustParseAddr("10.0.0.9"), Port: 9000, Probe: true}, mesh.ReasonProbe},
		"the node, where it may":           {open, mesh.Connection{Peer: db, Source: netip.MustParseAddr("10.0.0.3"), Node: true}, mesh.ReasonNoPolicy},
		"the node, to what is STRICT":      {open, mesh.Connection{Source: netip.MustParseAddr("10.0.0.9"), Node: true}, mesh.ReasonStrictPlaintext},
		"the agent's own port comes first": {open, mesh.Connection{Peer: db, Source: netip.MustParseAddr("10.0.0.3"), Port: 15008}, mesh.ReasonReservedPort},
	} {
		c.c.Destination = mustWorkload(t, c.view, "shop", "api")
		permit, d := c.view.Authorize(c.c)
		if d.Reason != c.want || permit.Valid() == (d.Verdict == mesh.VerdictDeny) {
			t.Errorf("%s: %+v, want %v", name, d, c.want)
		}
		if d.Reason == mesh.ReasonNetworkPolicyIngress && (d.Policy != mesh.Key{Namespace: "shop", Name: "api"} || d.Rule != -1) {
			t.Errorf("%s: decided by %v, rule %d", name, d.Policy, d.Rule)
		}
	}
}

func TestLeaves(t *testing.T) {
	v := networked(t)
	api, web := mustWorkload(t, v, "shop", "api"), mustWorkload(t, v, "shop", "web")
	gone := workload("shop", "gone", "10.0.0.7")
	for _, c := range []struct {
		src  *mesh.Workload
		dst  string
		want bool
	}{
		{api, "10.0.0.3:5432", true}, {api, "[::ffff:10.0.0.3]:5432", true}, {api, "10.0.0.2:80", false}, {api, "192.0.2.1:443", false},
		{api, "10.0.0.1:80", true}, {api, "[fd00::1]:80", true}, {web, "192.0.2.1:443", true}, {&gone, "192.0.2.1:443", true}, {nil, "192.0.2.1:443", true},
	} {
		d, ok := v.Leaves(c.src, netip.MustParseAddrPort(c.dst))
		if ok != c.want || !ok && (d.Reason != mesh.ReasonNetworkPolicyEgress || d.Policy.Name != "api" || d.Verdict != mesh.VerdictDeny || d.Rule != -1) {
			t.Errorf("%v to %s: %v %+v", c.src, c.dst, ok, d)
		}
	}
	// A workload of an older View is judged by this one.
	older := *api
	if _, ok := v.Leaves(&older, netip.MustParseAddrPort("10.0.0.2:80")); ok {
		t.Error("let go by an older View")
	}
}

func TestNetworkPolicyAllocatesNothing(t *testing.T) {
	v := networked(t)
	api := mustWorkload(t, v, "shop", "api")
	for _, peer := range []spiffeid.ID{identity("shop", "web"), identity("shop", "db")} {
		c := mesh.Connection{Peer: peer, Source: netip.MustParseAddr("10.0.0.2"), Destination: api, Port: 80}
		v.Authorize(c) // looks the rules up
		if n := testing.AllocsPerRun(100, func() { v.Authorize(c) }); n != 0 {
			t.Errorf("%v: %v allocations, want none", peer, n)
		}
	}
	for _, dst := range []string{"10.0.0.3:80", "10.0.0.2:80"} {
		to := netip.MustParseAddrPort(dst)
		if n := testing.AllocsPerRun(100, func() { v.Leaves(api, to) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", dst, n)
		}
	}
}

func BenchmarkAuthorizeByNetworkPolicy(b *testing.B) {
	v := networked(b)
	c := mesh.Connection{Peer: identity("shop", "web"), Source: netip.MustParseAddr("10.0.0.2"), Destination: mustWorkload(b, v, "shop", "api"), Port: 80}
	b.ReportAllocs()
	for b.Loop() {
		v.Authorize(c)
	}
}
