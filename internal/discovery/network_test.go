package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// networkView has a policy for ns0/app0 on n1, whose peers are a set of so many
// addresses, and one for ns1/app1 on n2.
func networkView(t testing.TB, peers int) *mesh.View {
	t.Helper()
	full := viewOf(t, shape{workloads: 2, services: 2, nodes: twoNodes})
	var ws []mesh.Workload
	for _, w := range full.Workloads() {
		ws = append(ws, *w)
	}
	policy := func(ns, app, set string) netpolicy.Policy {
		return netpolicy.Policy{Name: netpolicy.Name{Namespace: ns, Name: "np"}, Selector: netpolicy.Selector{{Key: "app", Values: []string{app}}},
			Ingress: &netpolicy.Direction{Rules: []netpolicy.Rule{{Peers: []netpolicy.Peer{{Set: set}}}}}}
	}
	var members []netpolicy.Member
	for i := range peers {
		members = append(members, netpolicy.Member{Addr: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})})
	}
	network := mesh.Network{Policies: []netpolicy.Policy{policy("ns0", "app0", "many"), policy("ns1", "app1", "one")},
		Sets: append(netpolicy.Split("many", members), netpolicy.Split("one", []netpolicy.Member{{Addr: netip.MustParseAddr("10.9.0.1")}})...)}
	v, err := mesh.NewNetworkView("", *full.Settings(), ws, nil, nil, network)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// admits asks a node's View who may connect to its workload.
func admits(t testing.TB, v *mesh.View, ns string, from string) bool {
	t.Helper()
	for _, w := range v.Workloads() {
		if w.Namespace == ns {
			_, d := v.Authorize(mesh.Connection{Peer: w.Identity, Source: netip.MustParseAddr(from), Destination: w, Port: 80})
			return d.Reason != mesh.ReasonNetworkPolicyIngress
		}
	}
	t.Fatalf("no workload in %s", ns)
	return false
}

func TestNetworkPoliciesGoToTheirNodesAlone(t *testing.T) {
	o := startOperator(t, nil)
	first := snapshotOf(t, networkView(t, 1000), 1)
	o.Publish(first)
	n1, n2, n3 := startAgent(t, o, "n1", nil), startAgent(t, o, "n2", nil), startAgent(t, o, "n3", nil)
	for _, a := range []*agentEnd{n1, n2, n3} {
		a.awaitEpoch(t, 1)
	}
	for _, c := range []struct {
		a                *agentEnd
		policies, shards int
	}{{n1, 1, 16}, {n2, 1, 1}, {n3, 0, 0}} {
		network := c.a.store.View().Network()
		if len(network.Policies()) != c.policies || len(network.Shards()) != c.shards {
			t.Errorf("%s is told %d policies and %d shards, want %d and %d", c.a.wire.node, len(network.Policies()), len(network.Shards()), c.policies, c.shards)
		}
	}
	if v := n1.store.View(); !admits(t, v, "ns0", "10.9.3.231") || admits(t, v, "ns0", "10.9.3.232") || !admits(t, v, "ns1", "192.0.2.1") {
		t.Error("n1 does not admit the thousand, or others; or it judges for n2")
	}
	if v := n2.store.View(); !admits(t, v, "ns1", "10.9.0.1") || admits(t, v, "ns1", "10.9.0.2") {
		t.Error("n2 does not admit the one, or others")
	}
	// A pod that comes costs one shard, on the one node that has to know.
	before1, _, _ := n1.wire.counts()
	before2, _, _ := n2.wire.counts()
	next, err := first.Next(networkView(t, 1001), 2)
	if err != nil {
		t.Fatal(err)
	}
	if whole := snapshotOf(t, networkView(t, 1001), 2); !slices.Equal(whole.HashFor("n1"), next.HashFor("n1")) || whole.View().Revision() != next.View().Revision() {
		t.Error("what is taken over from the snapshot before differs from a new one")
	}
	if first.View().Revision() == next.View().Revision() {
		t.Error("another network has the same revision")
	}
	o.Publish(next)
	n1.awaitEpoch(t, 2)
	n2.awaitEpoch(t, 2)
	after1, _, _ := n1.wire.counts()
	after2, _, _ := n2.wire.counts()
	if after1-before1 != 1 || after2 != before2 {
		t.Errorf("one pod more cost %d resources on n1 and %d on n2, want 1 and 0", after1-before1, after2-before2)
	}
	if !admits(t, n1.store.View(), "ns0", "10.9.3.232") {
		t.Error("the new pod is not admitted")
	}
}

// The operator's own last good copy has all of it.
func TestNetworkPoliciesAreSaved(t *testing.T) {
	path := t.TempDir() + "/state"
	s := snapshotOf(t, networkView(t, 300), 5)
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	v, _, err := LoadView(path, publicOf(testKey(1)))
	if err != nil {
		t.Fatal(err)
	}
	if again := snapshotOf(t, v, 5); fmt.Sprintf("%x", again.HashFor("n1")) != fmt.Sprintf("%x", s.HashFor("n1")) {
		t.Error("what is loaded is not what was saved")
	}
}

// An agent of the version before asks for what it knows, and gets a whole set of
// that: its hash is over nothing else.
func TestAgentOfTheVersionBefore(t *testing.T) {
	o := startOperator(t, nil)
	o.Publish(snapshotOf(t, networkView(t, 10), 1))
	stream := raw(t, o, "n1")
	for _, req := range subscribeAll("n1") {
		if k, err := resources.KindOf(req.GetTypeUrl()); err != nil || k.Newer() {
			continue
		}
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	staged := resources.NewStaging(nil)
	for {
		msg, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		k, err := resources.KindOf(msg.GetTypeUrl())
		if err != nil || k.Newer() {
			t.Fatalf("told of %s", msg.GetTypeUrl())
		}
		if k != resources.KindCommit {
			if err := answer(stream, msg, stage(staged, k, msg)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		c, err := resources.DecodeCommit(msg.GetResources()[0].GetResource().GetValue())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, refused := staged.Close(c, "n1", keysOf(1)(), nil); refused != nil {
			t.Fatal(refused.Reason)
		}
		return
	}
}

// olderOperator knows what one of the version before does.
type olderOperator struct{ grpc.ServerStream }

func (s olderOperator) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if url := m.(*discoveryv3.DeltaDiscoveryRequest).GetTypeUrl(); strings.HasSuffix(url, "NetworkPolicy") || strings.HasSuffix(url, "AddressSet") {
		return status.Errorf(codes.InvalidArgument, "unknown resource type %q", url)
	}
	return nil
}

func TestOperatorOfTheVersionBefore(t *testing.T) {
	older := grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, serve grpc.StreamHandler) error {
		return serve(srv, olderOperator{s})
	})
	o := startOperator(t, nil)
	o.Publish(snapshotOf(t, networkView(t, 10), 1))
	dir := t.TempDir()
	a := startAgent(t, o, "n1", lastGoodIn(dir))
	a.awaitEpoch(t, 1)
	if admits(t, a.store.View(), "ns0", "192.0.2.1") {
		t.Fatal("no policy is in force")
	}
	a.stop()
	o.stop()
	// The operator is downgraded: what it does not know is in force no more.
	o = startOperator(t, nil, older)
	o.Publish(snapshotOf(t, networkView(t, 10), 2))
	b := startAgent(t, o, "n1", lastGoodIn(dir))
	b.awaitEpoch(t, 2)
	if b.store.View().Network().Policies() != nil {
		t.Error("policies of an operator that is gone are in force")
	}
	b.stop()
	o.stop()
	// And upgraded again.
	o = startOperator(t, nil)
	o.Publish(snapshotOf(t, networkView(t, 10), 3))
	c := startAgent(t, o, "n1", lastGoodIn(dir))
	c.awaitEpoch(t, 3)
	if admits(t, c.store.View(), "ns0", "192.0.2.1") {
		t.Error("no policy is in force after the upgrade")
	}
}
