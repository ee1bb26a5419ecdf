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

// TestRevokedWhileAnEndIsGone: the processes of a deleted pod go on for a while, and with them
// its connections; a revoked identity ends those as it does others.
func TestRevokedWhileAnEndIsGone(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("mesh.test")
	client, server := mesh.Key{Namespace: "shop", Name: "web"}, mesh.Key{Namespace: "shop", Name: "api"}
	web, api := spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/web"), spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/api")
	for _, c := range []struct {
		name      string
		direction flow.Direction
		by        flow.Transport
		gone      mesh.Key
		anonymous bool // the client has proved no identity
		reason    mesh.Reason
		revoked   spiffeid.ID
		ended     mesh.Reason // ReasonUnknown when it goes on
	}{
		{"splice, nobody", flow.DirectionLocal, flow.TransportSplice, server, false, mesh.ReasonNoPolicy, spiffeid.ID{}, mesh.ReasonUnknown},
		{"splice, client", flow.DirectionLocal, flow.TransportSplice, server, false, mesh.ReasonNoPolicy, web, mesh.ReasonIdentityRevoked},
		{"splice, server", flow.DirectionLocal, flow.TransportSplice, server, false, mesh.ReasonNoPolicy, api, mesh.ReasonIdentityRevoked},
		{"splice, client that is gone", flow.DirectionLocal, flow.TransportSplice, client, false, mesh.ReasonNoPolicy, web, mesh.ReasonIdentityRevoked},
		{"tunnel in, client", flow.DirectionInbound, flow.TransportTunnel, server, false, mesh.ReasonNoPolicy, web, mesh.ReasonIdentityRevoked},
		{"tunnel in, server", flow.DirectionInbound, flow.TransportTunnel, server, false, mesh.ReasonNoPolicy, api, mesh.ReasonIdentityRevoked},
		{"tunnel out, server that is gone", flow.DirectionOutbound, flow.TransportTunnel, server, false, mesh.ReasonNoPolicy, api, mesh.ReasonIdentityRevoked},
		{"tunnel out, client that is gone", flow.DirectionOutbound, flow.TransportTunnel, client, false, mesh.ReasonNoPolicy, web, mesh.ReasonIdentityRevoked},
		{"plaintext in, who would be the client", flow.DirectionInbound, flow.TransportPlaintext, server, true, mesh.ReasonPermissive, web, mesh.ReasonUnknown},
		{"plaintext in, server", flow.DirectionInbound, flow.TransportPlaintext, server, true, mesh.ReasonPermissive, api, mesh.ReasonIdentityRevoked},
		{"plaintext in, server that is probed", flow.DirectionInbound, flow.TransportPlaintext, server, true, mesh.ReasonProbe, api, mesh.ReasonUnknown},
		{"plaintext out, client that is gone", flow.DirectionOutbound, flow.TransportPlaintext, client, false, mesh.ReasonEgressAllowed, web, mesh.ReasonIdentityRevoked},
		{"plaintext out, nobody", flow.DirectionOutbound, flow.TransportPlaintext, client, false, mesh.ReasonEgressAllowed, spiffeid.ID{}, mesh.ReasonUnknown},
	} {
		with := mesh.Settings{TrustDomain: td, ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
		if !c.revoked.IsZero() {
			with.RevokedIdentities = []spiffeid.ID{c.revoked}
		}
		there := []mesh.Workload{
			{Key: client, ServiceAccount: "web", Node: "n", Identity: web, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1")}, Enrolled: true, Ready: true},
			{Key: server, ServiceAccount: "api", Node: "n", Identity: api, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.2")}, Enrolled: true, Ready: true},
		}
		if c.gone == client {
			there = there[1:]
		} else {
			there = there[:1]
		}
		view, err := mesh.NewView("r", with, there, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &flow.Record{Direction: c.direction, Reason: c.reason, Wire: flow.Wire{Transport: c.by}}
		r.Source = flow.Endpoint{Workload: client, Identity: web, Addr: netip.MustParseAddrPort("10.1.0.1:4000")}
		r.Destination = flow.Endpoint{Workload: server, Identity: api, Addr: netip.MustParseAddrPort("10.1.0.2:80")}
		switch {
		case c.anonymous:
			r.Source.Identity = spiffeid.ID{}
		case c.by == flow.TransportPlaintext:
			r.Destination = flow.Endpoint{Addr: netip.MustParseAddrPort("203.0.113.7:443")}
		}
		if why, ok, _ := wire.NewJudge(mesh.NewStore(), "n", nil, time.Second).Allowed(view, r, false, false); ok != (c.ended == mesh.ReasonUnknown) || why != c.ended {
			t.Errorf("%s: goes on %v, %v; want %v", c.name, ok, why, c.ended)
		}
	}
}
