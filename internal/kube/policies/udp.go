package policies

import (
	"slices"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/fit"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// MaxBytes bounds what one policy that names UDP says about it, by the measure of package
	// fit: every agent is told it with each workload that the policy selects.
	MaxBytes = 32 << 10
	// MaxWorkload bounds what all policies say about UDP of a workload.
	MaxWorkload = 4 * MaxBytes
)

// nothing is a rule that matches nothing, and keeps the place of one in flows, which name
// rules by their number: that of a rule which is about the other protocol alone.
func nothing() mesh.Rule {
	return mesh.Rule{To: []mesh.Destination{{Ports: []uint16{1}, NotPorts: []uint16{1}}}}
}

func isNothing(r *mesh.Rule) bool {
	return len(r.To) == 1 && slices.Equal(r.To[0].Ports, []uint16{1}) && slices.Equal(r.To[0].NotPorts, []uint16{1})
}

// Policy is what one policy says about UDP.
type Policy struct {
	*mesh.Policy
	// Selector is that of the policy; Policy has none.
	Selector map[string]string
}

// says reports whether it says anything.
func (p *Policy) says() bool {
	return slices.ContainsFunc(p.Rules, func(r mesh.Rule) bool { return !isNothing(&r) })
}

// UDP is what policies of a mesh say about UDP, by namespace.
type UDP map[string][]Policy

// Add adds one, unless it says nothing.
func (all UDP) Add(p Policy) {
	if p.says() {
		all[p.Namespace] = append(all[p.Namespace], p)
	}
}

// Of returns what is said about UDP of a workload, sorted by key; nothing when no ALLOW
// policy is among it, as nothing is let in then, or when it comes to more than
// MaxWorkload, of which ok is false.
func (all UDP) Of(namespace string, labels map[string]string) (said []*mesh.Policy, ok bool) {
	opens, size := false, 0
	for _, p := range all[namespace] {
		selector := mesh.Policy{Key: p.Key, Selector: p.Selector}
		if selector.Selects(namespace, labels) {
			said, opens, size = append(said, p.Policy), opens || p.Action == mesh.ActionAllow, size+fit.Policy(p.Policy)
		}
	}
	if !opens || size > MaxWorkload {
		return nil, !opens
	}
	slices.SortFunc(said, func(a, b *mesh.Policy) int { return a.Key.Compare(b.Key) })
	return said, true
}

// alone reports whether a policy is about UDP alone: then it says nothing about TCP,
// which a policy to ALLOW without a rule that matches would close. Tcp is what it would
// say about that.
func alone(tcp *mesh.Policy, spec *v1alpha1.AuthorizationPolicySpec) bool {
	if len(tcp.Rules) == 0 || len(tcp.Rules) != len(spec.Rules) {
		return false // refused in part: TCP is closed, as for any that cannot be understood
	}
	return !slices.ContainsFunc(tcp.Rules, func(r mesh.Rule) bool { return !isNothing(&r) })
}

// OpensUDP reports whether a policy lets datagrams in.
func OpensUDP(p *v1alpha1.AuthorizationPolicy) bool {
	return p != nil && (p.Spec.Action == "" || p.Spec.Action == v1alpha1.ActionAllow) && names(&p.Spec)
}

// names reports whether a policy names UDP: others may be about it for having no to.
func names(spec *v1alpha1.AuthorizationPolicySpec) bool {
	return slices.ContainsFunc(spec.Rules, func(r v1alpha1.Rule) bool {
		return slices.ContainsFunc(r.To, func(to v1alpha1.Destination) bool { return to.Protocol != nil && *to.Protocol == v1alpha1.ProtocolUDP })
	})
}
