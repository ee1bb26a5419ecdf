package datagram

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/policy"
)

// SenderNodes returns the nodes of the workloads that a policy lets send datagrams to those that
// it selects, as their gates do not let them out before they have its rules; nil of one that
// lets nobody in over UDP. What other policies refuse has no say. It costs all workloads.
func SenderNodes(v *mesh.View, name mesh.Key) map[string]bool {
	p := aboutUDP(v, name)
	if p == nil || p.Action != mesh.ActionAllow {
		return nil
	}
	nodes, set, ports := map[string]bool{}, policy.NewSet([]*policy.Compiled{policy.Compile(p)}, nil), p.Ports()
	for _, w := range v.Workloads() {
		if !nodes[w.Node] && behindGate(w) && admits(v, set, w, ports) {
			nodes[w.Node] = true
		}
	}
	return nodes
}

// aboutUDP returns what a policy says about UDP; nil when that is nothing, or it selects nobody.
func aboutUDP(v *mesh.View, name mesh.Key) *mesh.Policy {
	for _, r := range keyed.In(name.Namespace, v.Receivers()) {
		if i := slices.IndexFunc(r.Workload.Datagrams, func(p *mesh.Policy) bool { return p.Key == name }); i >= 0 && behindGate(r.Workload) {
			return r.Workload.Datagrams[i]
		}
	}
	return nil
}

// admits reports whether a set lets a workload in from any of its addresses, at any of the ports.
func admits(v *mesh.View, set *policy.Set, w *mesh.Workload, ports []uint16) bool {
	a := policy.Attributes{Peer: w.Identity, Namespace: mesh.NamespaceOf(v.Settings().TrustDomain, w.Identity)}
	for _, a.Source = range w.Addresses {
		found := set.LookUp(a.Peer, a.Source)
		for _, a.Port = range ports {
			if _, _, seen := found.First(mesh.ActionAllow, &a); seen != policy.No {
				return true
			}
		}
	}
	return false
}
