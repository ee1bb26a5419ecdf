package wire_test

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestTargetOf: a stream is for the pod, or for a service that has it as its waypoint, and
// then only from who can be named to that.
func TestTargetOf(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("mesh.test")
	id, err := mesh.IdentityFor(td, "shop", "waypoint")
	if err != nil {
		t.Fatal(err)
	}
	key := mesh.Key{Namespace: "shop", Name: "waypoint"}
	service := mesh.Service{Key: mesh.Key{Namespace: "shop", Name: "db"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 80}}, Waypoint: key}
	view, err := mesh.NewView("r", mesh.Settings{TrustDomain: td, ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
		[]mesh.Workload{{Key: key, ServiceAccount: "waypoint", Node: "n", Identity: id, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1")}, Enrolled: true, Ready: true}},
		[]mesh.Service{{Key: key, Endpoints: []mesh.Key{key}}, service}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w, _ := view.Workload(key)
	long := spiffeid.RequireFromString("spiffe://mesh.test/" + strings.Repeat("x", 2048))
	for _, c := range []struct {
		authority, local string
		peer             spiffeid.ID
		app              string
		status           int
		reason           mesh.Reason
	}{
		{"10.1.0.1:80", "10.1.0.1:15008", id, "10.1.0.1:80", http.StatusOK, mesh.ReasonUnknown},
		{"10.96.0.1:80", "[::ffff:10.1.0.1]:15008", id, "10.1.0.1:15009", http.StatusOK, mesh.ReasonUnknown},
		{"10.96.0.1:81", "10.1.0.1:15008", id, "invalid AddrPort", http.StatusBadRequest, mesh.ReasonAuthorityMismatch},
		{"10.96.0.1:80", "10.1.0.2:15008", id, "invalid AddrPort", http.StatusBadRequest, mesh.ReasonAuthorityMismatch},
		{"10.1.0.1:80", "10.1.0.1:15008", long, "10.1.0.1:80", http.StatusOK, mesh.ReasonUnknown},
		{"10.96.0.1:80", "10.1.0.1:15008", long, "invalid AddrPort", http.StatusBadRequest, mesh.ReasonBadRequest},
	} {
		target, status, reason, err := wire.TargetOf(view, w, nil, &hbone.StreamRequest{Peer: c.peer, Local: netip.MustParseAddrPort(c.local), Authority: netip.MustParseAddrPort(c.authority)})
		if target.App.String() != c.app || status != c.status || reason != c.reason || (err == nil) != (c.status == http.StatusOK) {
			t.Errorf("%s at %s: %v, %d, %v, %v", c.authority, c.local, target, status, reason, err)
		}
		if behind := strings.HasSuffix(c.app, ":15009"); (target.Service != nil) != behind || behind && target.Behind.String() != c.authority {
			t.Errorf("%s at %s: behind %v", c.authority, c.local, target.Behind)
		}
	}
}

// TestAllowedAtWaypoints: a connection to a waypoint goes on when its service has another,
// but not when its client is revoked or no longer federated, then or later.
func TestAllowedAtWaypoints(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("mesh.test")
	waypoint, db := mesh.Key{Namespace: "shop", Name: "waypoint"}, mesh.Key{Namespace: "shop", Name: "db"}
	id, ours, foreign := spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/waypoint"), spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/web"), spiffeid.RequireFromString("spiffe://other.test/ns/shop/sa/web")
	to := netip.MustParseAddrPort("10.96.0.1:80")
	federated := []mesh.FederatedDomain{{TrustDomain: foreign.TrustDomain()}}
	for _, c := range []struct {
		name  string
		peer  spiffeid.ID
		by    mesh.Key
		with  mesh.Settings
		ended mesh.Reason // ReasonUnknown when it goes on
	}{
		{"as before", ours, waypoint, mesh.Settings{}, mesh.ReasonUnknown},
		{"without a waypoint", ours, mesh.Key{}, mesh.Settings{}, mesh.ReasonUnknown},
		{"revoked", ours, waypoint, mesh.Settings{RevokedIdentities: []spiffeid.ID{ours}}, mesh.ReasonIdentityRevoked},
		{"revoked, without a waypoint", ours, mesh.Key{}, mesh.Settings{RevokedIdentities: []spiffeid.ID{ours}}, mesh.ReasonIdentityRevoked},
		{"federated, without a waypoint", foreign, mesh.Key{}, mesh.Settings{Federation: federated}, mesh.ReasonUnknown},
		{"no longer federated", foreign, waypoint, mesh.Settings{}, mesh.ReasonPolicyChanged},
		{"no longer federated, without a waypoint", foreign, mesh.Key{}, mesh.Settings{}, mesh.ReasonPolicyChanged},
	} {
		c.with.TrustDomain, c.with.ClusterRanges = td, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		view, err := mesh.NewView("r", c.with,
			[]mesh.Workload{{Key: waypoint, ServiceAccount: "waypoint", Node: "n", Identity: id, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1")}, Enrolled: true, Ready: true}},
			[]mesh.Service{{Key: waypoint, Endpoints: []mesh.Key{waypoint}}, {Key: db, Addresses: []netip.Addr{to.Addr()}, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 80}}, Waypoint: c.by}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &flow.Record{Direction: flow.DirectionInbound, Wire: flow.Wire{Transport: flow.TransportTunnel}}
		r.Waypoint = waypoint
		r.Source.Identity, r.Source.Addr = c.peer, netip.MustParseAddrPort("10.1.0.9:4000")
		r.Destination.Workload, r.Destination.Addr = waypoint, to
		if why, ok, _ := wire.NewJudge(mesh.NewStore(), "n", nil, time.Second).Allowed(view, r, false, true); ok != (c.ended == mesh.ReasonUnknown) || why != c.ended {
			t.Errorf("%s: goes on %v, %v; want %v", c.name, ok, why, c.ended)
		}
	}
}
