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
	// shardsOf has the shards by their set.
	shardsOf map[string][]*resources.Resource
}

func (s *Snapshot) encodeNetwork(last *Snapshot) (err error) {
	now, before := s.view.Network(), last.view.Network()
	s.network.policies, err = encodeAll(now.Policies(), before.Policies(), last.network.policies,
		func(p *netpolicy.Policy) mesh.Key { return mesh.Key(p.Name) },
		func(a, b *netpolicy.Policy) bool { return reflect.DeepEqual(a, b) }, alone(resources.EncodeNetworkPolicy))
	if err != nil {
		return err
	}
	s.network.shards, err = encodeAll(now.Shards(), before.Shards(), last.network.shards, resources.ShardKey,
		func(a, b *netpolicy.Shard) bool { return a.Count == b.Count && slices.Equal(a.Members, b.Members) }, alone(resources.EncodeAddressSet))
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
	spread := spreading{members: map[string][]*mesh.Workload{}, groups: map[[2]string]map[string][]*mesh.Workload{}}
	for _, w := range s.view.Workloads() {
		if w.Enrolled {
			spread.members[w.Namespace] = append(spread.members[w.Namespace], w)
		}
	}
	for i, p := range policies {
		told := map[string]bool{}
		for _, w := range spread.candidates(p) {
			if !told[w.Node] && p.Selector.Matches(w.Labels) {
				told[w.Node] = true
				s.network.byNode[w.Node] = append(s.network.byNode[w.Node], i)
			}
		}
	}
	s.network.shardsOf = map[string][]*resources.Resource{}
	for i, shard := range s.view.Network().Shards() {
		s.network.shardsOf[shard.Set] = append(s.network.shardsOf[shard.Set], s.network.shards[i])
	}
}

// spreading has the enrolled workloads by namespace, and by namespace and label,
// then the label's value.
type spreading struct {
	members map[string][]*mesh.Workload
	groups  map[[2]string]map[string][]*mesh.Workload
}

// candidates returns those that a policy may select: where it wants a label to
// have one of some values, few have to be looked at.
func (s *spreading) candidates(p *netpolicy.Policy) []*mesh.Workload {
	for _, r := range p.Selector {
		if r.Operator != netpolicy.In {
			continue
		}
		at := [2]string{p.Namespace, r.Key}
		if s.groups[at] == nil {
			s.groups[at] = map[string][]*mesh.Workload{}
			for _, w := range s.members[p.Namespace] {
				s.groups[at][w.Labels[r.Key]] = append(s.groups[at][w.Labels[r.Key]], w)
			}
		}
		var found []*mesh.Workload
		for _, value := range r.Values {
			found = append(found, s.groups[at][value]...)
		}
		return found
	}
	return s.members[p.Namespace]
}

// of returns what a node is told: its policies, and the sets that they refer to.
func (n *encodedNetwork) of(view *mesh.View, node string) []*resources.Resource {
	var all []*resources.Resource
	told := map[string]bool{}
	for _, i := range n.byNode[node] {
		all = append(all, n.policies[i])
		view.Network().Policies()[i].Sets(func(set string) {
			if !told[set] {
				told[set] = true
				all = append(all, n.shardsOf[set]...)
			}
		})
	}
	return all
}
