package tokenreview

import (
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	typedauthenticationv1 "k8s.io/client-go/kubernetes/typed/authentication/v1"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
	"github.com/heddle-mesh/heddle/operator/issuing"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func newReviewer(t *testing.T, s *clustertest.Server) *Reviewer {
	t.Helper()
	client, err := typedauthenticationv1.NewForConfig(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(Config{Client: client, Audience: "heddle-operator", Namespace: "heddle-system", Account: "heddle-agent",
		Pod: func(key mesh.Key) (*kube.Pod, bool) {
			return &kube.Pod{UID: "uid-1", Node: "n1"}, key == mesh.Key{Namespace: "heddle-system", Name: "agent-1"}
		}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// verdict is a status of a good token, changed.
func verdict(change func(status, extra clustertest.Object)) clustertest.Object {
	extra := clustertest.Object{"authentication.kubernetes.io/pod-name": []string{"agent-1"}, "authentication.kubernetes.io/pod-uid": []string{"uid-1"},
		"authentication.kubernetes.io/node-name": []string{"n9"}}
	status := clustertest.Object{"authenticated": true, "audiences": []string{"heddle-operator"}, "user": clustertest.Object{
		"username": "system:serviceaccount:heddle-system:heddle-agent", "extra": extra}}
	change(status, extra)
	return status
}

func TestVerdicts(t *testing.T) {
	const node, pod, uid = "authentication.kubernetes.io/node-name", "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"
	for name, c := range map[string]struct {
		change     func(status, extra clustertest.Object)
		node, says string
	}{
		"bound to a node":        {func(_, _ clustertest.Object) {}, "n9", ""},
		"bound to a pod only":    {func(_, extra clustertest.Object) { delete(extra, node) }, "n1", ""},
		"a pod of the same name": {func(_, extra clustertest.Object) { delete(extra, node); extra[uid] = []string{"uid-0"} }, "", "not among the cluster's pods"},
		"an unknown pod":         {func(_, extra clustertest.Object) { delete(extra, node); extra[pod] = []string{"agent-2"} }, "", "not among the cluster's pods"},
		"bound to nothing":       {func(_, extra clustertest.Object) { clear(extra) }, "", "bound to no pod"},
		"two nodes":              {func(_, extra clustertest.Object) { clear(extra); extra[node] = []string{"n1", "n2"} }, "", "bound to no pod"},
		"another account": {func(s, _ clustertest.Object) {
			s["user"].(clustertest.Object)["username"] = "system:serviceaccount:shop:web"
		}, "", "agents are system:serviceaccount:heddle-system:heddle-agent"},
		"without audiences":         {func(s, _ clustertest.Object) { delete(s, "audiences") }, "", "the token is for"},
		"for another":               {func(s, _ clustertest.Object) { s["audiences"] = []string{"vault"} }, "", "the token is for"},
		"refused by the API server": {func(s, _ clustertest.Object) { s["authenticated"], s["error"] = false, "token expired" }, "", "token expired"},
	} {
		t.Run(name, func(t *testing.T) {
			s := clustertest.Start(t)
			s.Review = func(string, []string) clustertest.Object { return verdict(c.change) }
			got, err := newReviewer(t, s).NodeOf(t.Context(), "token")
			if got != c.node || (err == nil) != (c.says == "") {
				t.Fatalf("%q, %v", got, err)
			}
			if err != nil && (!errors.Is(err, issuing.ErrNotVouched) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// TestPods: any pod's token says which pod it is bound to; what it says to an agent's question
// is another matter.
func TestPods(t *testing.T) {
	const pod, uid = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"
	of := func(user string) func(s, _ clustertest.Object) {
		return func(s, _ clustertest.Object) { s["user"].(clustertest.Object)["username"] = user }
	}
	for name, c := range map[string]struct {
		change func(status, extra clustertest.Object)
		pod    Pod
		says   string
	}{
		"a waypoint's":              {of("system:serviceaccount:shop:gate"), Pod{mesh.Key{Namespace: "shop", Name: "agent-1"}, "uid-1"}, ""},
		"an agent's":                {func(_, _ clustertest.Object) {}, Pod{mesh.Key{Namespace: "heddle-system", Name: "agent-1"}, "uid-1"}, ""},
		"a person's":                {of("alice"), Pod{}, "bound to no pod"},
		"of no pod":                 {func(_, extra clustertest.Object) { delete(extra, pod) }, Pod{}, "bound to no pod"},
		"without a UID":             {func(_, extra clustertest.Object) { delete(extra, uid) }, Pod{}, "bound to no pod"},
		"for another":               {func(s, _ clustertest.Object) { s["audiences"] = []string{"vault"} }, Pod{}, "the token is for"},
		"refused by the API server": {func(s, _ clustertest.Object) { s["authenticated"], s["error"] = false, "token expired" }, Pod{}, "token expired"},
	} {
		t.Run(name, func(t *testing.T) {
			s := clustertest.Start(t)
			s.Review = func(string, []string) clustertest.Object { return verdict(c.change) }
			r := newReviewer(t, s)
			got, err := r.PodOf(t.Context(), "token")
			if got != c.pod || (err == nil) != (c.says == "") {
				t.Fatalf("%v, %v", got, err)
			}
			if err != nil && (!errors.Is(err, issuing.ErrNotVouched) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if node, err := r.NodeOf(t.Context(), "token"); name == "a waypoint's" && !errors.Is(err, issuing.ErrNotVouched) {
				t.Errorf("a waypoint's token is an agent's of node %q: %v", node, err)
			}
		})
	}
}

func TestReviewsAreKeptWithinBounds(t *testing.T) {
	s := clustertest.Start(t)
	s.Review = func(string, []string) clustertest.Object { return verdict(func(_, _ clustertest.Object) {}) }
	r := newReviewer(t, s)
	for range 5 {
		if _, err := r.NodeOf(t.Context(), "token"); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Requests()["create authentication.k8s.io/tokenreviews"]; n != 1 {
		t.Errorf("%d reviews of one token", n)
	}
	for i := range 2 * maxKept {
		r.remember([32]byte{byte(i), byte(i >> 8), 1}, &authenticationv1.TokenReviewStatus{})
	}
	if n := len(r.kept.byHash); n > maxKept {
		t.Errorf("%d reviews are kept", n)
	}
	// What cannot be asked is no refusal.
	s.Forbid(func(q clustertest.Request) bool { return q.Resource == "tokenreviews" })
	if _, err := r.NodeOf(t.Context(), "another"); err == nil || errors.Is(err, issuing.ErrNotVouched) {
		t.Errorf("without the right to ask: %v", err)
	}
	if _, err := r.NodeOf(t.Context(), strings.Repeat("x", maxToken+1)); !errors.Is(err, issuing.ErrNotVouched) {
		t.Errorf("an endless token: %v", err)
	}
}
