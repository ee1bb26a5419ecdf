package discovery

import (
	"maps"
	"slices"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/discovery/share"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// spread returns what each node alone is told by the next snapshot. Only those
// nodes are looked at that a change may concern; of the others it is as before.
func (s *Snapshot) spread(next *Snapshot, c *mesh.Change, sp *share.Spreading) map[string]*resources.List {
	touched := s.touched(next, c)
	if len(touched) == 0 {
		return s.lists
	}
	lists := maps.Clone(s.lists)
	if lists == nil {
		lists = map[string]*resources.List{}
	}
	for node := range touched {
		own := sp.Node(node)
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
