package discovery

import (
	"reflect"
	"slices"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// encodedNetwork is a View's NetworkPolicies, encoded.
type encodedNetwork struct {
	// policies and shards run parallel to the index's lists.
	policies, shards []*resources.Resource
	// byNode has the policies, by their place in the list, that select enrolled
	// workloads of a node.
	byNode map[string][]int
}

func (s *Snapshot) encodeNetwork(last *Snapshot) (err error) {
	now, before := s.view.Network(), last.view.Network()
	s.network.policies, err = encodeAll(now.Policies(), before.Policies(), last.network.policies,
		func(p *netpolicy.Policy) mesh.Key { return mesh.Key(p.Name) },
		func(a, b *netpolicy.Policy) bool { return reflect.DeepEqual(a, b) }, resources.EncodeNetworkPolicy)
	if err != nil {
		return err
	}
	s.network.shards, err = encodeAll(now.Shards(), before.Shards(), last.network.shards, resources.ShardKey,
		func(a, b *netpolicy.Shard) bool { return a.Count == b.Count && slices.Equal(a.Members, b.Members) }, resources.EncodeAddressSet)
	return err
}

// spreadNetwork gives every NetworkPolicy to the nodes that it selects enrolled
// workloads on: what the mesh does not carry is judged by whoever does.
func (s *Snapshot) spreadNetwork() {
	policies := s.view.Network().Policies()
	if len(policies) == 0 {
		return
	}
	s.network.byNode = map[string][]int{}
	members := map[string][]*mesh.Workload{}
	for _, w := range s.view.Workloads() {
		if w.Enrolled {
			members[w.Namespace] = append(members[w.Namespace], w)
		}
	}
	for i, p := range policies {
		told := map[string]bool{}
		for _, w := range members[p.Namespace] {
			if !told[w.Node] && p.Selector.Matches(w.Labels) {
				told[w.Node] = true
				s.network.byNode[w.Node] = append(s.network.byNode[w.Node], i)
			}
		}
	}
}

// of returns what a node is told: its policies, and the sets that they refer to.
func (n *encodedNetwork) of(view *mesh.View, node string) []*resources.Resource {
	var all []*resources.Resource
	wanted := map[string]bool{}
	for _, i := range n.byNode[node] {
		all = append(all, n.policies[i])
		view.Network().Policies()[i].Sets(func(set string) { wanted[set] = true })
	}
	if len(wanted) == 0 {
		return all
	}
	for i, shard := range view.Network().Shards() {
		if wanted[shard.Set] {
			all = append(all, n.shards[i])
		}
	}
	return all
}
