// Package netpolicy has Kubernetes' NetworkPolicies (networking.k8s.io/v1) in
// compiled form, and judges TCP connections by them. Who the peers of a rule are
// was found out by whoever compiled it: here they are sets of addresses, and a
// label selector is left only for the workloads that a policy is about. It knows
// nothing of identities, and nothing of other policies.
//
// Everything but New is pure; an Index and what comes from it are immutable and
// safe for concurrent use.
package netpolicy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Name names a policy.
type Name struct{ Namespace, Name string }

// String returns "namespace/name".
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders names by namespace, then by name: -1, 0 or +1.
func (n Name) Compare(other Name) int {
	if c := strings.Compare(n.Namespace, other.Namespace); c != 0 {
		return c
	}
	return strings.Compare(n.Name, other.Name)
}

// Policy is one NetworkPolicy.
type Policy struct {
	Name
	// Selector picks workloads of the policy's namespace.
	Selector Selector
	// Ingress and Egress isolate the selected workloads in their direction: only
	// what a rule of some policy admits is let through. Nil does not isolate.
	Ingress, Egress *Direction
}

// Direction is what a policy says of one direction. Without rules it admits
// nothing.
type Direction struct{ Rules []Rule }

// Rule admits a connection when one of Peers and one of Ports match; an empty
// list matches everything.
type Rule struct {
	Peers []Peer
	Ports []Port
	// Number is the rule's place in the list that it was compiled from, from 0:
	// others of that list may admit no TCP at all. It decides nothing, and agents are
	// not told.
	Number int
}

// Peer matches the other end of a connection: the client at ingress, the server
// at egress.
type Peer struct {
	// Set names the addresses that match; one that is not there has none. When
	// it is "", Block without the blocks in Except matches.
	Set    string
	Block  netip.Prefix
	Except []netip.Prefix
}

// Port matches the port that is connected to.
type Port struct {
	// Set names the address and port pairs that match: what a port's name means
	// differs from pod to pod. When it is "", First to Last match.
	Set         string
	First, Last uint16
}

// Validate reports what no compiler may have written.
func (p *Policy) Validate() error {
	var errs []error
	for _, r := range p.Selector {
		if r.Key == "" || r.Operator > DoesNotExist {
			errs = append(errs, fmt.Errorf("selector %q: key or operator is unknown", r.Key))
		}
	}
	for _, d := range []*Direction{p.Ingress, p.Egress} {
		if d == nil {
			continue
		}
		for i := range d.Rules {
			if err := d.Rules[i].validate(); err != nil {
				errs = append(errs, fmt.Errorf("rule %d: %w", i, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (r *Rule) validate() error {
	for _, p := range r.Peers {
		if p.Set != "" {
			continue
		}
		for _, block := range append([]netip.Prefix{p.Block}, p.Except...) {
			if !block.IsValid() || block.Addr().Is4In6() {
				return fmt.Errorf("address block %v is not valid", block)
			}
		}
	}
	for _, p := range r.Ports {
		if p.Set == "" && (p.First == 0 || p.Last < p.First) {
			return fmt.Errorf("ports %d to %d are none", p.First, p.Last)
		}
	}
	return nil
}

// Sets calls f with the name of each set that the policy refers to, each at
// least once.
func (p *Policy) Sets(f func(string)) {
	for _, d := range []*Direction{p.Ingress, p.Egress} {
		if d == nil {
			continue
		}
		for i := range d.Rules {
			for _, peer := range d.Rules[i].Peers {
				if peer.Set != "" {
					f(peer.Set)
				}
			}
			for _, port := range d.Rules[i].Ports {
				if port.Set != "" {
					f(port.Set)
				}
			}
		}
	}
}

// Operator relates a label to values.
type Operator uint8

// The operators, as those of metav1.LabelSelectorOperator.
const (
	In Operator = iota
	NotIn
	Exists
	DoesNotExist
)

// Requirement is what one label must be. A label that is not there is in no
// list of values: NotIn matches it.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string // of In and NotIn
}

// Selector picks the label sets that meet all of its requirements; without any,
// it picks all.
type Selector []Requirement

// Matches reports whether the selector picks a label set.
func (s Selector) Matches(labels map[string]string) bool {
	for i := range s {
		r := &s[i]
		value, has := labels[r.Key]
		var met bool
		switch r.Operator {
		case In:
			met = has && slices.Contains(r.Values, value)
		case NotIn:
			met = !has || !slices.Contains(r.Values, value)
		case Exists:
			met = has
		case DoesNotExist:
			met = !has
		}
		if !met {
			return false
		}
	}
	return true
}
