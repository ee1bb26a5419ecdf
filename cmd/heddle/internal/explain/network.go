package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// The directions of a NetworkPolicy.
const (
	egress  = "egress"
	ingress = "ingress"
)

// NetworkPolicy is what one that isolates an end says of the connection.
type NetworkPolicy struct {
	// Policy is NAMESPACE/NAME. Direction is "egress" for one that isolates the
	// source, "ingress" for one that isolates the destination.
	Policy    string `json:"policy"`
	Direction string `json:"direction"`
	// Verdict is "allow" or "deny". Rule is the first that admits the connection, its
	// place in spec.egress or spec.ingress, from 0.
	Verdict string `json:"verdict"`
	Rule    *int   `json:"rule,omitempty"`
	// Rules say of each rule why it does not, when none does.
	Rules []NetworkRule `json:"rules,omitempty"`
}

// NetworkRule is a rule that does not admit the connection.
type NetworkRule struct {
	Rule int    `json:"rule"`
	Why  string `json:"why"`
}

// String is "ingress shop/db[0]", or without a rule that admits "ingress shop/db".
func (p *NetworkPolicy) String() string {
	if p.Rule != nil {
		return fmt.Sprintf("%s %s[%d]", p.Direction, p.Policy, *p.Rule)
	}
	return p.Direction + " " + p.Policy
}

// leave asks the source's NetworkPolicies about a connection out of the mesh.
func (a *Answer) leave(m *Model, src *mesh.Workload, to netip.AddrPort) {
	a.NetworkPolicies = m.judge(egress, src, to.Addr(), to)
	if decision, ok := m.Leaves(src, to); !ok {
		a.Verdict, a.Reason, a.Notes = "deny", decision.Reason.String(), nil
	}
}

// judge asks the NetworkPolicies that isolate a workload; the other end is at an
// address. Nothing keeps a workload from itself.
func (m *Model) judge(direction string, w *mesh.Workload, other netip.Addr, server netip.AddrPort) []NetworkPolicy {
	other = other.Unmap()
	if w.HasAddress(other) {
		return nil
	}
	server = netip.AddrPortFrom(server.Addr().Unmap(), server.Port())
	var all []NetworkPolicy
	for _, j := range m.Network().Judge(w.Namespace, w.Labels, direction == ingress, other, server) {
		p := NetworkPolicy{Policy: j.Policy.Name.String(), Direction: direction, Verdict: "deny"}
		if number, ok := j.Admits(); ok {
			p.Verdict, p.Rule = "allow", &number
		} else {
			p.Rules = m.why(direction, &j, other, server.Port())
		}
		all = append(all, p)
	}
	return all
}

// why says of each rule of the object why it does not admit the connection.
func (m *Model) why(direction string, j *netpolicy.Judgement, other netip.Addr, port uint16) []NetworkRule {
	object, ok := m.networkPolicies[mesh.Key(j.Policy.Name)]
	if !ok {
		return nil
	}
	var ports [][]networkingv1.NetworkPolicyPort
	if direction == ingress {
		for i := range object.Spec.Ingress {
			ports = append(ports, object.Spec.Ingress[i].Ports)
		}
	} else {
		for i := range object.Spec.Egress {
			ports = append(ports, object.Spec.Egress[i].Ports)
		}
	}
	var all []NetworkRule
	for number := range ports {
		why := ""
		if i := slices.IndexFunc(j.Rules, func(r netpolicy.RuleJudgement) bool { return r.Number == number }); i >= 0 {
			why = misses(&j.Rules[i], other, port)
		} else {
			why = m.leftOut(j.Policy.Name, fmt.Sprintf("spec.%s[%d]", direction, number), ports[number])
		}
		if others := otherThanTCP(ports[number]); len(others) > 0 && len(others) < len(ports[number]) {
			why += fmt.Sprintf("; its ports of %s do not count, as connections are TCP", strings.Join(slices.Compact(others), " and "))
		}
		all = append(all, NetworkRule{number, why})
	}
	return all
}

// misses says which part of a rule does not match.
func misses(r *netpolicy.RuleJudgement, other netip.Addr, port uint16) string {
	var parts []string
	switch {
	case r.Except.IsValid():
		parts = append(parts, fmt.Sprintf("%s is in the exception %s of its ipBlock", other, r.Except))
	case !r.Peer:
		parts = append(parts, fmt.Sprintf("%s is not among its peers", other))
	}
	if !r.Port {
		parts = append(parts, fmt.Sprintf("port %d is not among its ports", port))
	}
	return strings.Join(parts, ", and ")
}

// otherThanTCP are the protocols, sorted, of the ports that are not TCP's.
func otherThanTCP(ports []networkingv1.NetworkPolicyPort) []string {
	var all []string
	for i := range ports {
		if p := ports[i].Protocol; p != nil && *p != corev1.ProtocolTCP {
			all = append(all, string(*p))
		}
	}
	slices.Sort(all)
	return all
}

// leftOut says why a rule admits no connection at all.
func (m *Model) leftOut(policy netpolicy.Name, field string, ports []networkingv1.NetworkPolicyPort) string {
	if others := otherThanTCP(ports); len(ports) > 0 && len(others) == len(ports) {
		return fmt.Sprintf("it is for %s only, and connections are TCP", strings.Join(slices.Compact(others), " and "))
	}
	for _, p := range m.refused {
		if p.Ref.Kind == "NetworkPolicy" && p.Ref.Namespace == policy.Namespace && p.Ref.Name == policy.Name &&
			(p.Field == "spec.podSelector" || strings.HasPrefix(p.Field, field) || strings.HasPrefix(field, p.Field)) {
			return "it is refused: " + p.Field + ": " + p.Text
		}
	}
	return "it admits no TCP"
}

// isolated says what the NetworkPolicies of a direction that refuse a connection
// want of it. outside says that the other end may be the node itself.
func isolated(direction string, policies []NetworkPolicy, outside bool) []string {
	var notes []string
	for i := range policies {
		p := &policies[i]
		if p.Direction != direction {
			continue
		}
		note := fmt.Sprintf("NetworkPolicy %s isolates the %s, and has no %s rule", p.Policy, map[string]string{egress: "source", ingress: "destination"}[direction], direction)
		for i, r := range p.Rules {
			if i == 0 {
				note += " that admits it"
			}
			note += fmt.Sprintf("; %s[%d]: %s", direction, r.Rule, r.Why)
		}
		notes = append(notes, note)
	}
	notes = append(notes, "a rule that admits it, in any NetworkPolicy that selects the same pods, lets it through")
	if outside {
		notes = append(notes, "a pod's own node is let through whatever NetworkPolicies say: this is for everybody else")
	}
	return notes
}
