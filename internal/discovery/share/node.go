// Package share says which resources of a configuration each one is told who follows it: a
// node what is beside what all nodes are told, a waypoint all that it needs, and nothing else.
//
// It encodes nothing that all are told, and sends nothing. A Spreading belongs to one
// goroutine; Routes and Waypoints are immutable.
package share

import (
	"maps"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// Source is a configuration, encoded.
type Source struct {
	View   *mesh.View
	Routes *Routes
	// Shared is what every node is told, Rest what only some are.
	Shared, Rest *resources.Shared
}

// Spreading finds what nodes and waypoints are told; what it needs of a namespace is made once.
type Spreading struct {
	Source
	policies map[string]selectors[*mesh.Policy]
	network  map[string]selectors[*netpolicy.Policy]
}

// New returns a Spreading of a configuration.
func New(from Source) *Spreading {
	return &Spreading{Source: from, policies: map[string]selectors[*mesh.Policy]{}, network: map[string]selectors[*netpolicy.Policy]{}}
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

func (sp *Spreading) policiesOf(namespace string) selectors[*mesh.Policy] {
	found, known := sp.policies[namespace]
	if !known {
		found = selectors[*mesh.Policy]{}
		for _, p := range keyed.In(namespace, sp.View.Policies()) {
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

func (sp *Spreading) networkOf(namespace string) selectors[*netpolicy.Policy] {
	found, known := sp.network[namespace]
	if !known {
		found = selectors[*netpolicy.Policy]{}
		policies := sp.View.Network().Policies()
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

// Node returns what a node alone is told, sorted: its workloads, the policies that
// select them, and the NetworkPolicies that select enrolled ones, as what the mesh does
// not carry is judged by whoever does, with the sets that these refer to.
func (sp *Spreading) Node(node string) []*resources.Resource {
	found := map[*resources.Resource]bool{}
	note := func(k resources.Kind, key mesh.Key) {
		if r := sp.Rest.Find(k, key.String()); r != nil {
			found[r] = true
		}
	}
	network := map[*netpolicy.Policy]bool{}
	for _, w := range sp.View.OnNode(node) {
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
func (sp *Spreading) shards(set string, note func(resources.Kind, mesh.Key)) {
	shards := sp.View.Network().Shards()
	first, _ := slices.BinarySearchFunc(shards, set, func(s *netpolicy.Shard, set string) int { return strings.Compare(s.Set, set) })
	for _, s := range shards[first:] {
		if s.Set != set {
			return
		}
		note(resources.KindAddressSet, resources.ShardKey(s))
	}
}
