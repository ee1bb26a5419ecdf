package kernel

import (
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestEndedByTheGate: what a gate ends says why, and who was at its ends, as far as is known.
func TestEndedByTheGate(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.test")
	id, err := mesh.IdentityFor(td, "shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	web := mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: "web"}, ServiceAccount: "web", Node: "n1", Identity: id,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Enrolled: true}
	view, err := mesh.NewView("1", mesh.Settings{TrustDomain: td}, []mesh.Workload{web}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		local, remote string
		remaining     time.Duration
		direction     flow.Direction
		reason        mesh.Reason
	}{
		{"10.0.0.1:40000", "192.0.2.1:443", time.Minute, flow.DirectionOutbound, mesh.ReasonIdentityRevoked},
		{"10.0.0.1:40000", "192.0.2.1:443", 0, flow.DirectionOutbound, mesh.ReasonGrandfathered},
		{"10.0.0.1:80", "192.0.2.1:50000", 0, flow.DirectionInbound, mesh.ReasonGrandfathered},
	} {
		e := bpf.FlowEntry{Opened: bpf.Outbound, Local: netip.MustParseAddrPort(c.local), Remote: netip.MustParseAddrPort(c.remote), Kind: bpf.FlowGrandfathered, Remaining: c.remaining}
		if c.direction == flow.DirectionInbound {
			e.Opened = bpf.Inbound
		}
		r := ended(view, web.Key, e)
		own, other := r.Source, r.Destination
		if c.direction == flow.DirectionInbound {
			own, other = other, own
		}
		if r.Verdict != mesh.VerdictDeny || r.Reason != c.reason || r.Direction != c.direction || r.Rule != -1 || r.Detail == "" ||
			own != (flow.Endpoint{Workload: web.Key, Identity: id, Addr: e.Local}) || other != (flow.Endpoint{Addr: e.Remote}) {
			t.Errorf("%+v: %+v", c, r)
		}
	}
}
