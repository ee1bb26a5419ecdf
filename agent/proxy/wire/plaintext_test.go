package wire_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestPlaintextToWhatIsTheMeshsByNow: what left the mesh in plaintext ends when a new one would
// not leave so any more; one from before its destination was enrolled goes on, as the gate
// there has it.
func TestPlaintextToWhatIsTheMeshsByNow(t *testing.T) {
	td, abroad := spiffeid.RequireTrustDomainFromString("mesh.test"), spiffeid.RequireFromString("spiffe://other.test/billing")
	web, legacy := mesh.Key{Namespace: "shop", Name: "web"}, mesh.Key{Namespace: "old", Name: "legacy"}
	outside, pod := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("10.1.0.2")
	here, wide := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("203.0.113.0/24")}
	at := func(key mesh.Key, addr netip.Addr, enrolled bool) mesh.Workload {
		return mesh.Workload{Key: key, ServiceAccount: "a", Node: "n", Identity: spiffeid.RequireFromPath(td, "/ns/"+key.Namespace+"/sa/a"), Addresses: []netip.Addr{addr}, Enrolled: enrolled, Ready: true}
	}
	for _, c := range []struct {
		name  string
		to    mesh.Key // whose the destination was
		addr  netip.Addr
		with  mesh.Settings
		there []mesh.Workload
		ended mesh.Reason // ReasonUnknown when it goes on
	}{
		{"outside", mesh.Key{}, outside, mesh.Settings{ClusterRanges: here}, nil, mesh.ReasonUnknown},
		{"outside, where nobody may go any more", mesh.Key{}, outside, mesh.Settings{ClusterRanges: here, Egress: mesh.EgressDeny}, nil, mesh.ReasonPolicyChanged},
		{"outside, of who is revoked", mesh.Key{}, outside, mesh.Settings{ClusterRanges: here, RevokedIdentities: []spiffeid.ID{at(web, pod, true).Identity}}, nil, mesh.ReasonIdentityRevoked},
		{"of another trust domain by now", legacy, pod, mesh.Settings{ClusterRanges: here, Federation: []mesh.FederatedDomain{{TrustDomain: abroad.TrustDomain(),
			Workloads: []mesh.FederatedWorkload{{Identity: abroad, Addresses: []netip.Addr{pod}}}}}}, nil, mesh.ReasonPolicyChanged},
		{"inside the ranges by now", mesh.Key{}, outside, mesh.Settings{ClusterRanges: wide}, nil, mesh.ReasonPolicyChanged},
		{"a workload by now", mesh.Key{}, outside, mesh.Settings{ClusterRanges: wide}, []mesh.Workload{at(legacy, outside, false)}, mesh.ReasonUnknown},
		{"not enrolled", legacy, pod, mesh.Settings{ClusterRanges: here}, []mesh.Workload{at(legacy, pod, false)}, mesh.ReasonUnknown},
		{"enrolled by now", legacy, pod, mesh.Settings{ClusterRanges: here}, []mesh.Workload{at(legacy, pod, true)}, mesh.ReasonUnknown},
		{"deleted, and draining", legacy, pod, mesh.Settings{ClusterRanges: here}, nil, mesh.ReasonUnknown},
	} {
		c.with.TrustDomain = td
		view, err := mesh.NewView("r", c.with, append(c.there, at(web, netip.MustParseAddr("10.1.0.1"), true)), nil, nil)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		r := &flow.Record{Direction: flow.DirectionOutbound, Wire: flow.Wire{Transport: flow.TransportPlaintext}}
		r.Source.Workload, r.Source.Addr = web, netip.MustParseAddrPort("10.1.0.1:4000")
		r.Destination.Workload, r.Destination.Addr = c.to, netip.AddrPortFrom(c.addr, 443)
		if why, ok, _ := wire.NewJudge(mesh.NewStore(), "n", nil, time.Second).Allowed(view, r, false, false); ok != (c.ended == mesh.ReasonUnknown) || why != c.ended {
			t.Errorf("%s: goes on %v, %v; want %v", c.name, ok, why, c.ended)
		}
	}
}
