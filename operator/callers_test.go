package operator

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// nodeStreams opens what an agent follows, and returns how each goes on: Recv of the
// configuration's stream, and of that of trust.
func nodeStreams(t *testing.T, n *nodeauth.Node) map[string]func() error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	configuration, err := discoveryv3.NewAggregatedDiscoveryServiceClient(n.Conn()).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := meshpb.NewTrustClient(n.Conn()).Follow(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]func() error{
		"configuration": func() error { _, err := configuration.Recv(); return err },
		"trust":         func() error { _, err := trust.Recv(); return err },
	}
}

// TestRevokedNode: the streams of a node whose identity is revoked end, and it is refused
// from then on: it is told nothing, nobody waits for its reports, and other nodes notice
// nothing. Taken back, it is as before.
func TestRevokedNode(t *testing.T) {
	folder := newFolder(t)
	r := start(t, folder, filepath.Join(t.TempDir(), "state"), func(c *Config) { c.Settle = time.Millisecond })
	revoke := func(identities string) {
		write(t, filepath.Join(folder, "mesh.yaml"), strings.Replace(meshYAML, "\n---", "\n  revokedIdentities: ["+identities+"]\n---", 1))
	}
	connected := func() (discovery, trust string) {
		for _, n := range r.status(t).GetNodes() {
			if n.GetConnected() {
				discovery += n.GetName()
			}
		}
		c, err := r.admin.Certificates(t.Context(), &meshpb.CertificatesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range c.GetNodes() {
			if n.GetConnected() {
				trust += n.GetNode()
			}
		}
		return discovery, trust
	}
	are := func(want string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, want+" follow", func() bool { d, trust := connected(); return d == want && trust == want })
	}
	n1, n2 := r.join(t, "n1", filepath.Join(t.TempDir(), "n1")), r.join(t, "n2", filepath.Join(t.TempDir(), "n2"))
	a1, a2 := r.agent(t, n1, "n1"), r.agent(t, n2, "n2")
	follow(t, n1, "spiffe://test.example/ns/shop/sa/web")
	follow(t, n2, "spiffe://test.example/ns/shop/sa/api")
	are("n1n2")
	live := nodeStreams(t, n1)
	if err := live["trust"](); err != nil {
		t.Fatalf("the first word about trust: %v", err)
	}
	revoke("spiffe://test.example/node/n1")
	for what, recv := range live {
		if err := recv(); err == nil || status.Code(err) == codes.DeadlineExceeded {
			t.Errorf("the stream of %s goes on", what)
		}
	}
	are("n2")
	for what, recv := range nodeStreams(t, n1) {
		err := recv()
		if code := status.Code(err); code != codes.PermissionDenied && code != codes.Unauthenticated || !strings.Contains(err.Error(), "identity of node n1 is revoked") {
			t.Errorf("another stream of %s: %v", what, err)
		}
	}
	write(t, filepath.Join(folder, "cache.yaml"), workloadYAML("cache", "n1", 3))
	a2.await(t, "n2 is told what is new", has("cache"))
	if has("cache")(a1.store.View()) {
		t.Error("n1 is told what is new")
	}
	if _, err := r.admin.RotateCertificates(t.Context(), &meshpb.RotateCertificatesRequest{Action: meshpb.RotateCertificatesRequest_ACTION_BEGIN, Kind: "root"}); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 60*time.Second, "a rotation is complete without n1", func() bool {
		c, err := r.admin.Certificates(t.Context(), &meshpb.CertificatesRequest{})
		return err == nil && c.GetRotation().GetEnded() == "completed"
	})
}

// TestRevocationIsTakenBack: a node that is no longer revoked comes back by itself.
func TestRevocationIsTakenBack(t *testing.T) {
	folder := newFolder(t)
	r := start(t, folder, filepath.Join(t.TempDir(), "state"))
	n1 := r.join(t, "n1", filepath.Join(t.TempDir(), "n1"))
	a := r.agent(t, n1, "n1")
	a.await(t, "the folder arrives", has("api"))
	write(t, filepath.Join(folder, "mesh.yaml"), strings.Replace(meshYAML, "\n---", "\n  revokedIdentities: [spiffe://test.example/node/n1]\n---", 1))
	testenv.Eventually(t, 20*time.Second, "it is cut off", func() bool {
		nodes := r.status(t).GetNodes()
		return len(nodes) == 1 && !nodes[0].GetConnected()
	})
	write(t, filepath.Join(folder, "cache.yaml"), workloadYAML("cache", "n1", 3))
	write(t, filepath.Join(folder, "mesh.yaml"), meshYAML)
	a.await(t, "it is told what it missed", has("cache"))
}
