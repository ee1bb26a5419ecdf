package discovery

import (
	"maps"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// spread returns what each node alone is told by the next snapshot. Only those
// nodes are looked at that a change may concern; of the others it is as before.
func (s *Snapshot) spread(next *Snapshot, c *mesh.Change) map[string]*resources.List {
	touched := s.touched(next, c)
	if len(touched) == 0 {
		return s.lists
	}
	lists := maps.Clone(s.lists)
	if lists == nil {
		lists = map[string]*resources.List{}
	}
	sp := spreading{snapshot: next, policies: map[string]selectors[*mesh.Policy]{}, network: map[string]selectors[*netpolicy.Policy]{}}
	for node := range touched {
		own := sp.own(node)
		switch was := lists[node]; {
		case len(own) == 0:
			delete(lists, node)
		case was == nil || !slices.Equal(was.All(), own):
			lists[node] = resources.NewList(own)
		}
	}
	return lists
}

// touched returns the nodes that may be told something else than before.
func (s *Snapshot) touched(next *Snapshot, c *mesh.Change) map[string]bool {
	touched := map[string]bool{}
	all := s.view.Network() != next.view.Network() || len(c.Policies)+len(c.GonePolicies) > manyPolicies
	if all {
		for _, w := range next.view.Workloads() {
			touched[w.Node] = true
		}
	}
	at := func(view *mesh.View, key mesh.Key) {
		if w, ok := view.Workload(key); ok {
			touched[w.Node] = true
		}
	}
	for _, w := range c.Workloads {
		at(s.view, w.Key)
		touched[w.Node] = true
	}
	for _, key := range c.GoneWorkloads {
		at(s.view, key)
	}
	if all {
		return touched
	}
	policy := func(p *mesh.Policy) {
		for _, w := range keyed.In(p.Namespace, next.view.Workloads()) {
			if !touched[w.Node] && p.Selects(w.Namespace, w.Labels) {
				touched[w.Node] = true
			}
		}
	}
	keys := slices.Clone(c.GonePolicies)
	for _, p := range c.Policies {
		policy(p)
		keys = append(keys, p.Key)
	}
	for _, key := range keys {
		if was := keyed.Find(s.view.Policies(), key); was != nil {
			policy(was)
		}
	}
	return touched
}

// manyPolicies is from where looking at every node is less than looking for those
// that policies are about.
const manyPolicies = 32

// spreading finds what nodes are told; what it needs of a namespace is made once.
type spreading struct {
	snapshot *Snapshot
	policies map[string]selectors[*mesh.Policy]
	network  map[string]selectors[*netpolicy.Policy]
}

// selectors are the policies of a namespace by a label, and one of its values, that
// they select by: few have to be looked at for each workload. Those that select by
// no such label are under "".
type selectors[P any] map[string]map[string][]P

func (s selectors[P]) add(label string, values []string, p P) {
	if s[label] == nil {
		s[label] = map[string][]P{}
	}
	for _, value := range values {
		s[label][value] = append(s[label][value], p)
	}
}

// of calls f with those that may select a workload.
func (s selectors[P]) of(w *mesh.Workload, f func(P)) {
	for label, byValue := range s {
		for _, p := range byValue[w.Labels[label]] {
			f(p)
		}
	}
}

func (sp *spreading) policiesOf(namespace string) selectors[*mesh.Policy] {
	found, known := sp.policies[namespace]
	if !known {
		found = selectors[*mesh.Policy]{}
		for _, p := range keyed.In(namespace, sp.snapshot.view.Policies()) {
			label := firstLabel(p)
			found.add(label, []string{p.Selector[label]}, p)
		}
		sp.policies[namespace] = found
	}
	return found
}

// firstLabel is one of those that a policy selects by; "" when it selects all.
func firstLabel(p *mesh.Policy) string {
	first := ""
	for label := range p.Selector {
		if first == "" || label < first {
			first = label
		}
	}
	return first
}

func (sp *spreading) networkOf(namespace string) selectors[*netpolicy.Policy] {
	found, known := sp.network[namespace]
	if !known {
		found = selectors[*netpolicy.Policy]{}
		policies := sp.snapshot.view.Network().Policies()
		first, _ := slices.BinarySearchFunc(policies, namespace, func(p *netpolicy.Policy, namespace string) int { return strings.Compare(p.Namespace, namespace) })
		for _, p := range policies[first:] {
			if p.Namespace != namespace {
				break
			}
			label, values := "", []string{""}
			if i := slices.IndexFunc(p.Selector, func(r netpolicy.Requirement) bool { return r.Operator == netpolicy.In }); i >= 0 {
				label, values = p.Selector[i].Key, slices.Compact(slices.Sorted(slices.Values(p.Selector[i].Values)))
			}
			found.add(label, values, p)
		}
		sp.network[namespace] = found
	}
	return found
}

// own returns what a node alone is told, sorted: its workloads, the policies that
// select them, and the NetworkPolicies that select enrolled ones, as what the mesh does
// not carry is judged by whoever does, with the sets that these refer to.
func (sp *spreading) own(node string) []*resources.Resource {
	found := map[*resources.Resource]bool{}
	note := func(k resources.Kind, key mesh.Key) {
		if r := sp.snapshot.rest.Find(k, key.String()); r != nil {
			found[r] = true
		}
	}
	network := map[*netpolicy.Policy]bool{}
	for _, w := range sp.snapshot.view.OnNode(node) {
		note(resources.KindWorkload, w.Key)
		sp.policiesOf(w.Namespace).of(w, func(p *mesh.Policy) {
			if p.Selects(w.Namespace, w.Labels) {
				note(resources.KindPolicy, p.Key)
			}
		})
		if !w.Enrolled {
			continue
		}
		sp.networkOf(w.Namespace).of(w, func(p *netpolicy.Policy) {
			if p.Selector.Matches(w.Labels) {
				network[p] = true
			}
		})
	}
	for p := range network {
		note(resources.KindNetworkPolicy, mesh.Key(p.Name))
		p.Sets(func(set string) { sp.shards(set, note) })
	}
	own := slices.Collect(maps.Keys(found))
	resources.Sort(own)
	return own
}

// shards notes those of a set.
func (sp *spreading) shards(set string, note func(resources.Kind, mesh.Key)) {
	shards := sp.snapshot.view.Network().Shards()
	first, _ := slices.BinarySearchFunc(shards, set, func(s *netpolicy.Shard, set string) int { return strings.Compare(s.Set, set) })
	for _, s := range shards[first:] {
		if s.Set != set {
			return
		}
		note(resources.KindAddressSet, resources.ShardKey(s))
	}
}
