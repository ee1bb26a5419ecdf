package operator

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
	"github.com/heddle-mesh/heddle/operator/leader"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// leads returns whom the Lease names.
func leads(s *clustertest.Server) string {
	lease := s.Get("/apis/coordination.k8s.io/v1/namespaces/heddle-system/leases", leader.LeaseName)
	spec, _ := lease["spec"].(map[string]any)
	name, _ := spec["holderIdentity"].(string)
	return name
}

// putPolicy makes one, and returns what its status says.
func putPolicy(t *testing.T, s *clustertest.Server, name string) (says func() string) {
	t.Helper()
	const path = heddle + "/namespaces/shop/authorizationpolicies"
	s.Put(t, path, object{"apiVersion": "heddle.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": meta("shop", name, nil),
		"spec": object{"rules": []any{object{"from": []any{object{"namespaces": []any{"shop"}}}}}}})
	return func() string { return fmt.Sprint(s.Get(path, name)["status"]) }
}

// replicaThatLeads starts one that can be cut off from the API server, waits until it
// leads and has written a status, and starts another.
func replicaThatLeads(t *testing.T, s *clustertest.Server) (first, second *replica, cut *atomic.Bool) {
	t.Helper()
	cut = &atomic.Bool{}
	way := s.Config()
	way.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if cut.Load() {
				return nil, errors.New("the network is gone")
			}
			return next.RoundTrip(r)
		})
	})
	first = startReplicaBy(t, way, "heddle-operator-0")
	first.awaitReady(t)
	says := putPolicy(t, s, "before")
	testenv.Eventually(t, 20*time.Second, "the first writes statuses", func() bool {
		return leads(s) == "heddle-operator-0" && strings.Contains(says(), "Accepted")
	})
	second = startReplica(t, s, "heddle-operator-1")
	second.awaitReady(t)
	return first, second, cut
}

// TestAnotherReplicaTakesOver: the replica that leads is stopped, gives the Lease back, and
// the other writes the statuses of what is put from then on.
func TestAnotherReplicaTakesOver(t *testing.T) {
	s := newCluster(t)
	first, _, _ := replicaThatLeads(t, s)
	first.stop()
	if by := leads(s); by == "heddle-operator-0" {
		t.Error("the Lease is not given back")
	}
	says := putPolicy(t, s, "after")
	testenv.Eventually(t, 12*time.Second, "the other writes statuses, sooner than a Lease lasts", func() bool {
		return leads(s) == "heddle-operator-1" && strings.Contains(says(), "Accepted")
	})
}

// TestAnotherReplicaTakesOverFromOneThatWasKilled: nobody gives the Lease back, which names
// the dead one until it has expired.
func TestAnotherReplicaTakesOverFromOneThatWasKilled(t *testing.T) {
	s := newCluster(t)
	first, _, cut := replicaThatLeads(t, s)
	cut.Store(true)
	first.stop()
	if by := leads(s); by != "heddle-operator-0" {
		t.Fatalf("the Lease of one that was killed names %q", by)
	}
	says := putPolicy(t, s, "after")
	testenv.Eventually(t, 45*time.Second, "the other writes statuses", func() bool {
		return leads(s) == "heddle-operator-1" && strings.Contains(says(), "Accepted")
	})
}
