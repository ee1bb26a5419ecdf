// Package policy has AuthorizationPolicies in compiled form, for TCP or for UDP, and
// finds those of a workload that match one. Who decides in which order is up to
// package mesh. All of it is pure; a Set is immutable and safe for concurrent use.
package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/pattern"
	"github.com/heddle-mesh/heddle/internal/mesh/request"
)

// Action is what a matching policy does.
type Action uint8

// The actions. DENY is evaluated before ALLOW; AUDIT never decides.
const (
	Allow Action = iota
	Deny
	Audit
)

// String returns "ALLOW", "DENY" or "AUDIT".
func (a Action) String() string {
	switch a {
	case Deny:
		return "DENY"
	case Audit:
		return "AUDIT"
	default:
		return "ALLOW"
	}
}

// Policy is an authorization policy in compiled form.
type Policy struct {
	keyed.Key
	Action Action
	// Selector picks workloads of the policy's namespace by label equality;
	// empty selects all of them.
	Selector map[string]string
	// Rules match when any one of them matches. An ALLOW policy without rules
	// admits nothing: it is the default deny.
	Rules []Rule
}

// Rule matches a connection when its From and its To both match; an empty list
// matches everything.
type Rule struct {
	From []Source
	To   []Destination
}

// Source matches when every non-empty field matches. Identities and namespaces
// are those that mutual TLS proved: a plaintext connection has none of them,
// and an identity of another trust domain, or of another form than IdentityFor
// gives, has no namespace.
//
// What is not proved never lets anybody in: without an identity (a namespace),
// NotIdentities (NotNamespaces) matches in DENY and AUDIT policies and does not
// match in ALLOW policies. Otherwise "everyone but web" would admit web as soon
// as it speaks plaintext. And an identity of another trust domain is let in by what names
// it only, in Identities: not by an ALLOW rule for everybody, or for an address.
type Source struct {
	Identities, NotIdentities []pattern.Pattern
	Namespaces, NotNamespaces []string
	IPBlocks, NotIPBlocks     []netip.Prefix
}

// Destination matches when every non-empty field matches.
//
// Of a connection that no request is known of, one with Requests is not known to match: it
// does not in ALLOW policies, and does in DENY and AUDIT policies.
type Destination struct {
	Ports, NotPorts []uint16
	// Requests says which requests of a connection; nil for all, and for what is no HTTP.
	Requests *RequestMatch
}

// What policies look at of requests; see package request.
type (
	Request       = request.Request
	RequestHeader = request.Header
	RequestMatch  = request.Match
)

// Selects reports whether the policy is for workloads of a namespace with such
// labels: of its own namespace, with the labels of its selector.
func (p *Policy) Selects(namespace string, labels map[string]string) bool {
	return p.Namespace == namespace && Selects(p.Selector, labels)
}

// Ports returns the ports that its rules name, in their order.
func (p *Policy) Ports() (ports []uint16) {
	for i := range p.Rules {
		for j := range p.Rules[i].To {
			ports = append(ports, p.Rules[i].To[j].Ports...)
		}
	}
	return ports
}

// AboutRequests reports whether any of its rules wants to know of requests.
func (p *Policy) AboutRequests() bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return slices.ContainsFunc(r.To, func(d Destination) bool { return d.Requests != nil })
	})
}

// Validate reports what is wrong with a policy, but for its name.
func (p *Policy) Validate() error {
	var errs []error
	if p.Action > Audit {
		errs = append(errs, fmt.Errorf("action %d is unknown", p.Action))
	}
	for i, rule := range p.Rules {
		for j, from := range rule.From {
			if err := from.validate(); err != nil {
				errs = append(errs, fmt.Errorf("rule %d, source %d: %w", i, j, err))
			}
		}
		for j, to := range rule.To {
			if slices.Contains(to.Ports, 0) || slices.Contains(to.NotPorts, 0) {
				errs = append(errs, fmt.Errorf("rule %d, destination %d: ports begin at 1", i, j))
			}
			if to.Requests == nil {
				continue
			}
			if err := to.Requests.Validate(); err != nil {
				errs = append(errs, fmt.Errorf("rule %d, destination %d: %w", i, j, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Source) validate() error {
	var errs []error
	for _, list := range [][]pattern.Pattern{s.Identities, s.NotIdentities} {
		for _, p := range list {
			errs = append(errs, p.Validate())
		}
	}
	for _, list := range [][]netip.Prefix{s.IPBlocks, s.NotIPBlocks} {
		for _, block := range list {
			errs = append(errs, CheckBlock(block))
		}
	}
	for _, list := range [][]string{s.Namespaces, s.NotNamespaces} {
		if slices.Contains(list, "") {
			errs = append(errs, errors.New("a namespace is empty"))
		}
	}
	return errors.Join(errs...)
}

// CheckBlock refuses what no unmapped address could be in.
func CheckBlock(block netip.Prefix) error {
	switch {
	case !block.IsValid():
		return fmt.Errorf("address block %v is invalid", block)
	case block.Addr().Is4In6():
		return fmt.Errorf("address block %v is an IPv4 block written as IPv6: write it as IPv4", block)
	}
	return nil
}
