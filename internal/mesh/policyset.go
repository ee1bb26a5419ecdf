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

// AboutRequests reports whether policies that select a workload are about requests, so that
// who carries these has to say what they are for to have them let in.
func (v *View) AboutRequests(w *Workload) bool {
	_, set := v.current(w)
	return set != nil && set.AboutRequests()
}

func (s *policySet) decide(a *policy.Attributes) Decision {
	found := s.LookUp(a.Peer, a.Source)
	decision := Decision{Verdict: VerdictAllow, Reason: defaultReason(a.Peer.IsZero()), Rule: -1}
	if name, rule, seen := found.First(ActionDeny, a); seen != policy.No {
		decision = denied(ReasonPolicyDeny, name, rule, seen)
	} else if s.Allows() || a.Foreign {
		decision = s.allow(&found, a)
	}
	if audited := found.Auditing(a); len(audited) > 0 {
		decision.Audited = audited
		if decision.Verdict == VerdictAllow {
			decision.Verdict = VerdictAudit
		}
	}
	return decision
}

// allow decides where an ALLOW policy has to.
func (s *policySet) allow(found *policy.Buckets, a *policy.Attributes) Decision {
	if name, rule, seen := found.First(ActionAllow, a); seen == policy.Yes {
		return Decision{Verdict: VerdictAllow, Reason: ReasonPolicyAllow, Policy: name, Rule: rule}
	}
	if a.Judged && !a.Foreign {
		return Decision{Verdict: VerdictAllow, Reason: ReasonWaypoint, Rule: -1}
	}
	if s.AboutRequests() && a.Request == nil {
		if name, rule, seen := found.FirstUnseen(a); seen == policy.Unseen {
			return denied(ReasonPolicyNoMatch, name, rule, seen)
		}
	}
	if a.Foreign {
		return refused(ReasonForeignIdentity)
	}
	return refused(ReasonPolicyNoMatch)
}

// denied is what a rule refuses: for a reason, or since nobody knows the request.
func denied(reason Reason, name Key, rule int, seen policy.Seen) Decision {
	if seen == policy.Unseen {
		reason = ReasonRequestUnseen
	}
	return Decision{Verdict: VerdictDeny, Reason: reason, Policy: name, Rule: rule}
}
