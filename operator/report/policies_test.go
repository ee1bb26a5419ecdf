package report

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/publish"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestBounded: an answer has room for policies that are not well before others, and
// for no more than a message holds.
func TestBounded(t *testing.T) {
	var all []*meshpb.OperatorPolicy
	for i := range 40_000 {
		p := &meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: fmt.Sprintf("np-%05d", i), Accepted: true, Nodes: 1, Live: 1, Message: strings.Repeat("x", 100)}
		switch i {
		case 7:
			p.Live = 0
		case 39_999:
			p.Accepted, p.Message = false, strings.Repeat("y", maxMessage)
		}
		all = append(all, p)
	}
	kept, leftOut := Bounded(all)
	size := proto.Size(&meshpb.OperatorState{Policies: kept})
	if size > maxAnswer || size < maxAnswer*9/10 || len(kept)+leftOut != len(all) {
		t.Errorf("kept %d, left out %d, %d bytes", len(kept), leftOut, size)
	}
	if last := kept[len(kept)-1]; last.GetAccepted() || kept[7].GetLive() != 0 {
		t.Errorf("what is not well was left out: the last is %v", last.GetName())
	}
	if kept, leftOut := Bounded(all[:10]); len(kept) != 10 || leftOut != 0 {
		t.Errorf("of 10, %d are kept and %d left out", len(kept), leftOut)
	}
}

// TestSendersOfDatagrams: who is let in over UDP cannot send before the gate of its own node has
// the policy, so that node is counted, too. A policy that refuses is enforced where it is sent to.
func TestSendersOfDatagrams(t *testing.T) {
	for action, want := range map[v1alpha1.Action]struct {
		nodes   uint32
		pending []string
	}{v1alpha1.ActionAllow: {2, []string{"n2"}}, v1alpha1.ActionDeny: {1, nil}} {
		policy := &v1alpha1.AuthorizationPolicy{}
		policy.Namespace, policy.Name = "shop", "quic"
		policy.Spec.Selector = &v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": "db"}}
		compiled := &mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "quic"}, Action: map[v1alpha1.Action]mesh.Action{v1alpha1.ActionDeny: mesh.ActionDeny}[action],
			Rules: []mesh.Rule{{From: []mesh.Source{{Identities: []mesh.IdentityPattern{"spiffe://mesh.test/ns/shop/sa/api"}}}, To: []mesh.Destination{{Ports: []uint16{443}}}}}}
		db := enrolled("db", "n1", "10.1.0.2")
		db.Datagrams = []*mesh.Policy{compiled}
		outcome := served(t, db, enrolled("api", "n2", "10.1.0.3"), enrolled("other", "n3", "10.1.0.4"))
		outcome.Objects.AuthorizationPolicies = []kube.Sourced[v1alpha1.AuthorizationPolicy]{{Value: policy}}
		f := NewFolder(func() publish.Outcome { return outcome }, func() []Node {
			return []Node{{Name: "n1", Revision: "r7", Connected: true, Reports: true}, {Name: "n2", Revision: "r6", Epoch: 6, Connected: true, Reports: true}}
		})
		all := f.Policies()
		i := slices.IndexFunc(all, func(p *meshpb.OperatorPolicy) bool { return p.GetName() == "quic" })
		if i < 0 || all[i].GetLive() != 1 || all[i].GetNodes() != want.nodes || !slices.Equal(all[i].GetPending(), want.pending) {
			t.Errorf("%s: %v, want %+v", action, all, want)
		}
	}
}
