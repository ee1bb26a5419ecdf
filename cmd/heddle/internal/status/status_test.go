package status

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// of sums up what two replicas say, of which one leads.
func of(policies ...*meshpb.OperatorPolicy) *Summary {
	s := &Summary{OK: true}
	s.operators([]reach.Answer[*meshpb.OperatorState]{{Value: &meshpb.OperatorState{}}, {Value: &meshpb.OperatorState{Policies: policies}}})
	return s
}

func text(t *testing.T, s *Summary, all bool) string {
	t.Helper()
	var out bytes.Buffer
	if err := s.Print(&out, false, all); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func row(text, of string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, of+" ") {
			return strings.Join(strings.Fields(line), " ")
		}
	}
	return ""
}

func TestPolicies(t *testing.T) {
	s := of(
		&meshpb.OperatorPolicy{Kind: "Mesh", Name: "default", Accepted: true, Nodes: 2, Live: 2},
		&meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: "slow", Accepted: true, Nodes: 3, Live: 1, Pending: []string{"n2", "n3"}},
		&meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: "nobody", Accepted: true},
	)
	if !s.OK {
		t.Errorf("what is not live yet is a problem: %v", s.Problems)
	}
	out := text(t, s, false)
	for of, want := range map[string]string{
		"Mesh default":              "Mesh default accepted 2/2 -",
		"NetworkPolicy shop/slow":   "NetworkPolicy shop/slow accepted 1/3 not yet on n2, n3",
		"NetworkPolicy shop/nobody": "NetworkPolicy shop/nobody accepted 0/0 no enrolled workload is concerned",
	} {
		if got := row(out, of); got != want {
			t.Errorf("%s is shown as %q, want %q", of, got, want)
		}
	}
	s = of(&meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: "bad", Message: "spec.ingress[0]: is wrong; mend it", Nodes: 1, Live: 1})
	if out := text(t, s, false); s.OK || row(out, "NetworkPolicy shop/bad") != "NetworkPolicy shop/bad refused 1/1 -" ||
		!strings.Contains(out, "not well: NetworkPolicy shop/bad is refused: spec.ingress[0]: is wrong; mend it") {
		t.Errorf("of one that is refused it says\n%s", out)
	}
}

// TestManyPolicies: those that are well are shown when they are asked for.
func TestManyPolicies(t *testing.T) {
	var all []*meshpb.OperatorPolicy
	for i := range 100 {
		all = append(all, &meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: fmt.Sprintf("np-%d", i), Accepted: true, Nodes: 1, Live: uint32(min(i, 1))})
	}
	short, long := text(t, of(all...), false), text(t, of(all...), true)
	if strings.Count(short, "NetworkPolicy") != 1 || row(short, "NetworkPolicy shop/np-0") == "" || !strings.Contains(short, "and 99 more") {
		t.Errorf("in short:\n%s", short)
	}
	if strings.Count(long, "NetworkPolicy") != 100 || strings.Contains(long, "more") {
		t.Errorf("in full:\n%s", long)
	}
}

// TestLag: an agent is behind since the first that it has not applied, by the operator that
// it is connected to, and not since the newest; that is not well when it lasts.
func TestLag(t *testing.T) {
	for _, tc := range []struct {
		behind    time.Duration // of n1, by the operator
		published time.Duration // since the newest was
		epoch     uint64        // of n1
		from, to  float64       // seconds
		problem   bool
	}{
		{0, time.Hour, 9, 0, 0, false},
		{5 * time.Second, time.Second, 8, 5, 6, false},
		{time.Hour, time.Second, 8, 3600, 3601, true},
		{0, time.Hour, 8, 0, 0, false}, // of another replica, and nothing in it that is new to the node
	} {
		s := &Summary{OK: true}
		lacking := s.operators([]reach.Answer[*meshpb.OperatorState]{
			{Value: &meshpb.OperatorState{Configuration: &meshpb.OperatorConfiguration{Epoch: 9, AppliedNs: time.Now().Add(-tc.published).UnixNano()},
				Nodes: []*meshpb.OperatorNode{{Name: "n1", Connected: true, Epoch: tc.epoch, BehindNs: int64(tc.behind)}}}},
			{Value: &meshpb.OperatorState{Nodes: []*meshpb.OperatorNode{{Name: "n1", BehindNs: int64(24 * time.Hour)}}}}, // which it has left
		})
		s.nodes([]reach.Answer[*meshpb.AgentStatus]{{Value: &meshpb.AgentStatus{Node: "n1", Version: "v1", Operator: &meshpb.OperatorStatus{Connected: true},
			Configuration: &meshpb.ConfigurationStatus{Synced: true, Epoch: tc.epoch}}}}, lacking, namespaces{})
		if lag := s.Nodes[0].LagSeconds; lag < tc.from || lag > tc.to {
			t.Errorf("%+v: lag %v s", tc, lag)
		}
		want := "node n1 has not applied what was published 1h0m0s ago"
		if s.OK == tc.problem || tc.problem && (len(s.Problems) != 1 || s.Problems[0] != want) {
			t.Errorf("%+v: %q", tc, s.Problems)
		}
		if out := text(t, s, false); tc.problem && !strings.Contains(out, "not well: "+want) {
			t.Errorf("%+v: it says\n%s", tc, out)
		}
	}
}

// TestUnknownPods: a pod whose agent did not answer is not said to be outside the mesh.
func TestUnknownPods(t *testing.T) {
	s := &Summary{OK: true}
	counts := namespaces{}
	s.nodes([]reach.Answer[*meshpb.AgentStatus]{
		{Target: reach.Target{Node: "n1"}, Value: &meshpb.AgentStatus{Version: "v1", Operator: &meshpb.OperatorStatus{Connected: true},
			Configuration: &meshpb.ConfigurationStatus{Synced: true}, Pods: []*meshpb.PodStatus{{Workload: "shop/in", State: "enrolled"}}}},
		{Target: reach.Target{Node: "n2"}, Err: errors.New("no answer in time")},
	}, nil, counts)
	on := func(node string) (p corev1.Pod) { p.Spec.NodeName = node; return p }
	n := counts.of("shop")
	n.Pods, n.Unknown = s.belonging([]corev1.Pod{on("n1"), on("n1"), on("n2"), on("n2"), on("")})
	if s.sum(counts); n.Pods != 4 || n.Enrolled != 1 || n.Unknown != 2 {
		t.Errorf("%+v", n)
	}
	out := text(t, s, false)
	for _, want := range []string{"1/4, 2 unknown", "namespace shop: 1 of 4 pods are not in the mesh", "namespace shop: of 2 of 4 pods it is not known whether they are in the mesh"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}

func TestWaypointThatRefuses(t *testing.T) {
	s := &Summary{OK: true}
	s.operators([]reach.Answer[*meshpb.OperatorState]{{Value: &meshpb.OperatorState{Waypoints: []*meshpb.OperatorNode{{Name: "shop/gate/a"}, {Name: "shop/gate/b", Error: "no such route"}}}}})
	if want := "waypoint shop/gate/b refused the newest configuration: no such route"; s.OK || len(s.Problems) != 1 || s.Problems[0] != want {
		t.Errorf("%q, want %q", s.Problems, want)
	}
}

// TestFederatedWorkloads: a trust domain is told of once, and is well where each replica has
// what verifies it.
func TestFederatedWorkloads(t *testing.T) {
	good := &meshpb.FederatedWorkloads{TrustDomain: "good.test", Workloads: 2, Addresses: 3, RootsNotAfterNs: time.Now().Add(time.Hour).UnixNano()}
	none := &meshpb.FederatedWorkloads{TrustDomain: "none.test", Workloads: 1, Addresses: 1, Error: "no route"}
	s := &Summary{OK: true}
	answer := reach.Answer[*meshpb.OperatorState]{Value: &meshpb.OperatorState{Federated: []*meshpb.FederatedWorkloads{good, none}}}
	s.operators([]reach.Answer[*meshpb.OperatorState]{answer, answer})
	if len(s.Federated) != 2 || !s.Federated[0].Verifiable || s.Federated[1].Verifiable || s.OK || len(s.Problems) != 2 || !strings.Contains(s.Problems[0], "none.test") || !strings.Contains(s.Problems[0], "no route") {
		t.Errorf("%+v, %q", s.Federated, s.Problems)
	}
	if out := text(t, s, false); !strings.Contains(out, "good.test") || !strings.Contains(out, "verifiable") || !strings.Contains(out, "refused") {
		t.Errorf("it says\n%s", out)
	}
	if out := text(t, &Summary{OK: true}, false); strings.Contains(out, "TRUST DOMAIN") {
		t.Errorf("a mesh without says\n%s", out)
	}
}
