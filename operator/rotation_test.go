package operator

import (
	"context"
	"crypto/x509"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/identity/trustfeed"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/keys"
)

// follow runs what an agent has of the authority, until the test ends.
func follow(t *testing.T, n *nodeauth.Node, workload string) *identity.Source {
	t.Helper()
	return followWith(t, n, workload, nil)
}

// followWith is follow of an agent that has so many pods amiss.
func followWith(t *testing.T, n *nodeauth.Node, workload string, amiss func() int) *identity.Source {
	t.Helper()
	bundle, err := n.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	source, err := identity.NewSource(identity.SourceConfig{TrustDomain: n.TrustDomain(), Signer: n, Bundle: bundle})
	if err != nil {
		t.Fatal(err)
	}
	if err := source.Want([]spiffeid.ID{spiffeid.RequireFromString(workload)}); err != nil {
		t.Fatal(err)
	}
	follower, err := trustfeed.NewFollower(trustfeed.FollowerConfig{TrustDomain: n.TrustDomain(), Conn: n.Conn(), Node: n.Source(), Workloads: source, Amiss: amiss, Look: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, run := range []func(context.Context) error{n.Run, source.Run, follower.Run} {
		all.Go(func() { _ = run(ctx) }) // nil, when ctx is done
	}
	t.Cleanup(func() { cancel(); all.Wait() })
	return source
}

// TestReplicasRotate has one replica begin a rotation and the nodes of both
// complete it; a replica that is there and does not answer holds it.
func TestReplicasRotate(t *testing.T) {
	s := newCluster(t)
	_, port, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	operatorPod := func(name, address string) {
		pod := podObject("heddle-system", name, "n1", address)
		pod["spec"].(object)["serviceAccountName"] = "heddle-operator"
		s.Put(t, core+"/namespaces/heddle-system/pods", pod)
	}
	operatorPod("heddle-operator-0", "127.0.0.1")
	operatorPod("heddle-operator-1", "127.0.0.2")
	one := startReplicaOn(t, s.Config(), "heddle-operator-0", "127.0.0.1:"+port)
	two := startReplicaOn(t, s.Config(), "heddle-operator-1", "127.0.0.2:"+port)
	one.awaitReady(t)
	two.awaitReady(t)
	web := follow(t, one.mustJoin(t, s, "n1"), "spiffe://test.example/ns/shop/sa/web")
	follow(t, two.mustJoin(t, s, "n2"), "spiffe://test.example/ns/shop/sa/api")
	certificates := func(r *replica) *meshpb.CertificatesResponse {
		c, err := r.admin.Certificates(t.Context(), &meshpb.CertificatesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	testenv.Eventually(t, 30*time.Second, "both know both nodes' certificates", func() bool {
		for _, r := range []*replica{one, two} {
			nodes := certificates(r).GetNodes()
			if len(nodes) != 2 || len(nodes[0].GetReport().GetCertificates()) != 2 || len(nodes[1].GetReport().GetCertificates()) != 2 {
				return false
			}
		}
		return true
	})
	before, _ := web.Holdings()
	operatorPod("heddle-operator-2", "127.0.0.3") // which nobody is
	begin := &meshpb.RotateCertificatesRequest{Action: meshpb.RotateCertificatesRequest_ACTION_BEGIN, Kind: "root"}
	if _, err := two.admin.RotateCertificates(t.Context(), begin); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, "the replica that does not answer holds it, and nobody else", func() bool {
		w := certificates(one).GetRotation().GetWaiting()
		return len(w) == 1 && strings.HasPrefix(w[0].GetName(), "127.0.0.3:") && strings.Contains(w[0].GetReason(), "does not answer") && !w[0].GetForcible()
	})
	s.Delete(core+"/namespaces/heddle-system/pods", "heddle-operator-2")
	testenv.Eventually(t, 60*time.Second, "it is complete", func() bool {
		r := certificates(two).GetRotation()
		return r.GetKind() == "" && r.GetEnded() == "completed"
	})
	var after []*x509.Certificate
	testenv.Eventually(t, 30*time.Second, "the other replica's node has one root", func() bool {
		after, _ = web.Holdings()
		return len(after) == 1
	})
	if _, held := web.Holdings(); after[0].Equal(before[0]) || len(held) != 1 {
		t.Errorf("the root is the same, or there are %d certificates", len(held))
	}
	testenv.Eventually(t, 30*time.Second, "agents to come find the new root", func() bool {
		roots := s.Get(core+"/namespaces/heddle-system/configmaps", keys.RootsName)["data"].(map[string]any)[keys.RootsKey].(string)
		return roots == string(identity.CertificatesText(after)) && strings.Count(roots, "BEGIN") == 1
	})
}
