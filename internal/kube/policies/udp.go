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
	// MaxNamespace bounds what they say of all workloads of a namespace, each by itself:
	// all of it is told to every agent.
	MaxNamespace = 1 << 20
)

// nothing is a rule that matches nothing, and keeps the place of one in flows, which name
// rules by their number: that of a rule which is about the other protocol alone. Others
// may be written so, too.
func nothing() mesh.Rule {
	return mesh.Rule{To: []mesh.Destination{{Ports: []uint16{1}, NotPorts: []uint16{1}}}}
}

// Policy is what one policy says about UDP.
type Policy struct {
	*mesh.Policy
	// Selector is that of the policy; Policy has none.
	Selector map[string]string
	says     bool // anything
}

// UDP is what policies of a mesh say about UDP. Nothing said is its zero value.
type UDP struct {
	policies map[string][]Policy // by namespace
	told     map[string]int      // bytes, by namespace
	all      map[string]int      // that would be told if there were no MaxNamespace
	beyond   map[string]int      // workloads that nothing is said of for MaxNamespace
}

// Add adds one, unless it says nothing.
func (all *UDP) Add(p Policy) {
	if !p.says {
		return
	}
	if all.policies == nil {
		*all = UDP{map[string][]Policy{}, map[string]int{}, map[string]int{}, map[string]int{}}
	}
	all.policies[p.Namespace] = append(all.policies[p.Namespace], p)
}

// Beyond returns of how many workloads of a namespace nothing was said, since all would
// come to more than MaxNamespace.
func (all *UDP) Beyond(namespace string) int { return all.beyond[namespace] }

// Bytes returns, by namespace, how much would be said of all workloads that Of was asked
// about if MaxNamespace did not bound it: where that is more, what is said of one depends on
// the others.
func (all *UDP) Bytes() map[string]int { return all.all }

// Of returns what is said about UDP of a workload, sorted by key; nothing when no ALLOW
// policy is among it, as nothing is let in then, or when it comes to more than
// MaxWorkload, of which ok is false, or to more than MaxNamespace with what was said of
// others before.
func (all *UDP) Of(namespace string, labels map[string]string) (said []*mesh.Policy, ok bool) {
	opens, size := false, 0
	for _, p := range all.policies[namespace] {
		selector := mesh.Policy{Key: p.Key, Selector: p.Selector}
		if selector.Selects(namespace, labels) {
			said, opens, size = append(said, p.Policy), opens || p.Action == mesh.ActionAllow, size+fit.Policy(p.Policy)
		}
	}
	if !opens || size > MaxWorkload {
		return nil, !opens
	}
	all.all[namespace] += size
	if all.told[namespace]+size > MaxNamespace {
		all.beyond[namespace]++
		return nil, true
	}
	all.told[namespace] += size
	slices.SortFunc(said, func(a, b *mesh.Policy) int { return a.Key.Compare(b.Key) })
	return said, true
}

// alone reports whether a policy is about UDP alone, as it is written: then it says
// nothing about TCP, which a policy to ALLOW without a rule that matches would close.
func alone(spec *v1alpha1.AuthorizationPolicySpec) bool {
	return len(spec.Rules) > 0 && !slices.ContainsFunc(spec.Rules, func(r v1alpha1.Rule) bool {
		return len(r.To) == 0 || slices.ContainsFunc(r.To, func(to v1alpha1.Destination) bool { return !isUDP(&to) })
	})
}

func isUDP(to *v1alpha1.Destination) bool {
	return to.Protocol != nil && *to.Protocol == v1alpha1.ProtocolUDP
}

// about reports whether a rule says anything about UDP.
func about(rule *v1alpha1.Rule, action mesh.Action) bool {
	if len(rule.To) == 0 {
		return action != mesh.ActionAllow
	}
	return slices.ContainsFunc(rule.To, func(to v1alpha1.Destination) bool { return isUDP(&to) })
}

// OpensUDP reports whether a policy lets datagrams in.
func OpensUDP(p *v1alpha1.AuthorizationPolicy) bool {
	return p != nil && (p.Spec.Action == "" || p.Spec.Action == v1alpha1.ActionAllow) && names(&p.Spec)
}

// names reports whether a policy names UDP: others may be about it for having no to.
func names(spec *v1alpha1.AuthorizationPolicySpec) bool {
	return slices.ContainsFunc(spec.Rules, func(r v1alpha1.Rule) bool {
		return slices.ContainsFunc(r.To, func(to v1alpha1.Destination) bool { return isUDP(&to) })
	})
}
