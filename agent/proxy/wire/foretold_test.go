package wire

import (
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestForetold: a stream waits for what the node is told next only where that can make the pod
// the waypoint of what the stream is for: of a service of its own namespace.
func TestForetold(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	pod := mesh.Key{Namespace: "shop", Name: "w"}
	id, err := mesh.IdentityFor(td, "shop", "w")
	if err != nil {
		t.Fatal(err)
	}
	service := func(namespace, addr string) mesh.Service {
		return mesh.Service{Key: mesh.Key{Namespace: namespace, Name: "s"}, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 80}}}
	}
	view, err := mesh.NewView("r", mesh.Settings{TrustDomain: td, ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
		[]mesh.Workload{{Key: pod, ServiceAccount: "w", Node: "n", Identity: id, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Enrolled: true, Ready: true}},
		[]mesh.Service{service("shop", "10.96.0.1"), service("bank", "10.96.0.2")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]bool{"10.0.0.1:80": false, "10.96.0.1:80": true, "10.96.0.2:80": false, "10.96.0.3:80": false, "192.0.2.1:80": false} {
		if is := Foretold(view, pod, nil, netip.MustParseAddrPort(to)); is != want {
			t.Errorf("%s: waits: %v, want %v", to, is, want)
		}
	}
}
