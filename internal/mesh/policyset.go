package mesh

import (
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/mesh/policy"
)

// Selects reports whether labels have everything that a selector wants, as policies'
// selectors do.
func Selects(selector, labels map[string]string) bool { return policy.Selects(selector, labels) }

// policySet is what the policies say of one workload.
type policySet struct {
	*policy.Set
	network *netpolicy.Rules // of NetworkPolicies; nil when the View has none
}

// policySet returns what the policies of this View say of a workload. It is
// indexed when first asked for; two goroutines may do so at once, and they come to
// the same.
func (v *View) policySet(w *Workload) *policySet {
	if set, ok := v.policySets.Load(w); ok {
		return set.(*policySet)
	}
	set := &policySet{Set: policy.NewSet(keyed.In(w.Namespace, v.compiled), w.Labels)}
	if !v.network.Empty() {
		set.network = v.network.For(w.Namespace, w.Labels)
	}
	v.policySets.Store(w, set)
	return set
}

func (s *policySet) decide(a *policy.Attributes) Decision {
	found := s.LookUp(a.Peer)
	decision := Decision{Verdict: VerdictAllow, Reason: defaultReason(a.Peer.IsZero()), Rule: -1}
	if name, rule, ok := found.First(ActionDeny, a); ok {
		decision = Decision{Verdict: VerdictDeny, Reason: ReasonPolicyDeny, Policy: name, Rule: rule}
	} else if s.Allows() {
		decision = Decision{Verdict: VerdictDeny, Reason: ReasonPolicyNoMatch, Rule: -1}
		if name, rule, ok := found.First(ActionAllow, a); ok {
			decision = Decision{Verdict: VerdictAllow, Reason: ReasonPolicyAllow, Policy: name, Rule: rule}
		}
	}
	if audited := found.Auditing(a); len(audited) > 0 {
		decision.Audited = audited
		if decision.Verdict == VerdictAllow {
			decision.Verdict = VerdictAudit
		}
	}
	return decision
}
