// Package enforcers says which nodes and which waypoints are to enforce an object of the
// configuration, whose status counts on how many of these it is live. It knows what is
// served, not what anybody has applied.
//
// What it returns is the caller's, but for what a Senders does. Its functions may be called
// from any goroutine.
package enforcers

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// All returns the nodes that have an enrolled workload.
func All(v *mesh.View) map[string]bool {
	return nodesWith(v.Workloads(), func(*mesh.Workload) bool { return true })
}

// OfWorkload returns the node of one, if it is enrolled.
func OfWorkload(v *mesh.View, key mesh.Key) map[string]bool {
	return nodesWith(keyed.In(key.Namespace, v.Workloads()), func(w *mesh.Workload) bool { return w.Key == key })
}

// Selected returns the nodes of the enrolled workloads of a namespace with such labels.
func Selected(v *mesh.View, namespace string, labels map[string]string) map[string]bool {
	p := mesh.Policy{Key: mesh.Key{Namespace: namespace}, Selector: labels}
	return nodesWith(keyed.In(namespace, v.Workloads()), func(w *mesh.Workload) bool { return p.Selects(w.Namespace, w.Labels) })
}

// Isolating returns the nodes of the enrolled workloads that a NetworkPolicy picks.
func Isolating(v *mesh.View, namespace, policy string) map[string]bool {
	name := netpolicy.Name{Namespace: namespace, Name: policy}
	all := v.Network().Policies()
	i, found := slices.BinarySearchFunc(all, name, func(p *netpolicy.Policy, name netpolicy.Name) int { return p.Name.Compare(name) })
	return nodesWith(keyed.In(namespace, v.Workloads()), func(w *mesh.Workload) bool { return found && all[i].Selector.Matches(w.Labels) })
}

// nodesWith returns the nodes of the enrolled workloads that match.
func nodesWith(workloads []*mesh.Workload, match func(*mesh.Workload) bool) map[string]bool {
	nodes := map[string]bool{}
	for _, w := range workloads {
		if w.Enrolled && !nodes[w.Node] && match(w) {
			nodes[w.Node] = true
		}
	}
	return nodes
}

// Waypoints returns the waypoints of services that lead to the enrolled workloads of a policy
// about requests; none of another.
func Waypoints(v *mesh.View, policy mesh.Key) map[mesh.Key]bool {
	waypoints := map[mesh.Key]bool{}
	p := keyed.Find(v.Policies(), policy)
	if p == nil || !p.AboutRequests() {
		return waypoints
	}
	for _, w := range keyed.In(policy.Namespace, v.Workloads()) {
		if w.Enrolled && p.Selects(w.Namespace, w.Labels) && !v.IsWaypoint(w) { // who uses a waypoint is judged by the policies of those behind it
			v.AnyWaypoint(w, func(_, waypoint *mesh.Service) bool {
				waypoints[waypoint.Key] = true
				return false
			})
		}
	}
	return waypoints
}

// Senders has, of one View at a time, the nodes whose gates let datagrams out by a policy: to
// find them costs a look at every workload. Its zero value has none yet; it belongs to one
// goroutine.
type Senders struct {
	view  *mesh.View
	nodes map[mesh.Key]map[string]bool
}

// Of returns the nodes of whom a policy about UDP lets in, which nobody changes afterwards.
func (s *Senders) Of(v *mesh.View, policy mesh.Key) map[string]bool {
	if s.view != v {
		s.view, s.nodes = v, map[mesh.Key]map[string]bool{}
	}
	nodes, known := s.nodes[policy]
	if !known {
		nodes = datagram.SenderNodes(v, policy)
		s.nodes[policy] = nodes
	}
	return nodes
}
