// Package policies compiles AuthorizationPolicies: each to what it says about TCP, and
// what about UDP, which are apart from there on. It is pure.
package policies

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/check"
	"github.com/heddle-mesh/heddle/internal/kube/fit"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Subject is the policy that is compiled, for problems about it.
type Subject struct {
	check.Subject
	// Found is where its problems go.
	Found       *check.List
	TrustDomain spiffeid.TrustDomain
	// Known reports whether there is a namespace of a name.
	Known func(namespace string) bool
	// Believed reports whether identities of a trust domain are.
	Believed func(spiffeid.TrustDomain) bool
	// UDP lets policies name UDP, see ADR 90. Without it, none says anything about it.
	UDP bool
}

// Compile returns what a policy says about TCP, nil when it is about UDP alone, and what
// about UDP. Selector is its own. A rule that has a problem admits nobody when the policy
// is to ALLOW, and refuses everybody when it is to DENY, over either.
func Compile(s Subject, ap *v1alpha1.AuthorizationPolicy, selector map[string]string) (tcp *mesh.Policy, udp Policy) {
	spec, found := &ap.Spec, len(s.Found.Problems)
	tcp = &mesh.Policy{Key: mesh.Key{Namespace: ap.Namespace, Name: ap.Name}, Action: s.action(spec), Selector: selector}
	udp = Policy{Selector: selector, Policy: &mesh.Policy{Key: tcp.Key, Action: tcp.Action}}
	for i := range spec.Rules {
		before := len(s.Found.Problems)
		rule, datagrams := s.rule(fmt.Sprintf("spec.rules[%d]", i), &spec.Rules[i], ap.Namespace, tcp.Action)
		if len(s.Found.Problems) > before {
			rule, datagrams = nothing(), nothing() // the others keep their numbers
			if tcp.Action == mesh.ActionDeny {
				rule, datagrams = mesh.Rule{}, mesh.Rule{}
				udp.says = true
			}
			tcp.Rules, udp.Rules = append(tcp.Rules, rule), append(udp.Rules, datagrams)
			continue
		}
		tcp.Rules, udp.Rules = append(tcp.Rules, rule), append(udp.Rules, datagrams)
		udp.says = udp.says || about(&spec.Rules[i], tcp.Action)
	}
	understood := len(s.Found.Problems) == found
	var instead []mesh.Rule // of what is too large
	if tcp.Action == mesh.ActionDeny {
		instead = []mesh.Rule{{}}
	}
	if n := fit.Policy(tcp); n > fit.MaxBytes {
		s.Problem("spec", "split it into several policies", "comes to %d bytes, more than the %d that agents take", n, fit.MaxBytes)
		tcp.Rules, udp.Rules, udp.says = instead, instead, true
	}
	if n := fit.Policy(udp.Policy); s.UDP && names(spec) && n > MaxBytes {
		s.Problem("spec.rules", "write namespaces, or identities with wildcards, or split it into several policies with narrower selectors",
			"about UDP come to %d bytes, more than the %d that every agent takes for each workload", n, MaxBytes)
		udp.Rules, udp.says = instead, true
	}
	udp.says = udp.says && s.UDP && len(udp.Rules) > 0
	if s.UDP && alone(spec) && understood {
		tcp = nil // else TCP is closed, as by any policy that cannot be understood
	}
	return tcp, udp
}

func (s Subject) action(spec *v1alpha1.AuthorizationPolicySpec) mesh.Action {
	var action mesh.Action
	switch spec.Action {
	case "", v1alpha1.ActionAllow:
		return mesh.ActionAllow
	case v1alpha1.ActionDeny:
		action = mesh.ActionDeny
	case v1alpha1.ActionAudit:
		action = mesh.ActionAudit
	default:
		s.Problem("spec.action", "write ALLOW, DENY or AUDIT", "%q is not an action", string(spec.Action))
		return mesh.ActionDeny
	}
	if len(spec.Rules) == 0 {
		s.Problem("spec.rules", "to match every connection write rules: [{}]", "is empty: a %s policy without rules never matches", action)
	}
	return action
}

// rule returns what a rule says about TCP, and what about UDP.
func (s Subject) rule(field string, rule *v1alpha1.Rule, namespace string, action mesh.Action) (tcp, udp mesh.Rule) {
	s.NotEmpty(field+".from", rule.From != nil && len(rule.From) == 0)
	s.NotEmpty(field+".to", rule.To != nil && len(rule.To) == 0)
	for i := range rule.From {
		tcp.From = append(tcp.From, s.source(fmt.Sprintf("%s.from[%d]", field, i), &rule.From[i], namespace))
	}
	udp.From = tcp.From
	if len(rule.To) == 0 {
		if action == mesh.ActionAllow {
			return tcp, nothing()
		}
		return tcp, udp
	}
	for i := range rule.To {
		at, to := fmt.Sprintf("%s.to[%d]", field, i), &rule.To[i]
		out := mesh.Destination{Ports: s.Ports(at+".ports", to.Ports), NotPorts: s.Ports(at+".notPorts", to.NotPorts), Requests: s.requests(at, to)}
		switch {
		case to.Ports == nil && to.NotPorts == nil && to.Protocol == nil && !ofRequests(to):
			s.Problem(at, "write ports, notPorts, protocol, hosts, methods, paths or headers, or leave the entry out", "is empty, and would match every port")
		case to.Protocol == nil || *to.Protocol == v1alpha1.ProtocolTCP:
			tcp.To = append(tcp.To, out)
		case !s.UDP && isUDP(to):
			s.Problem(at+".protocol", "start the operator with --udp-by-identity (Helm: operator.udpByIdentity), or take the entry out",
				"is UDP: policies about UDP are off in this mesh")
		case !isUDP(to):
			s.Problem(at+".protocol", "write TCP or UDP", "%q is not a protocol of policies", string(*to.Protocol))
		case action == mesh.ActionAllow && len(to.Ports) == 0:
			s.Problem(at+".ports", "write the ports over UDP", "is missing: an ALLOW rule about UDP names its ports")
		default:
			udp.To = append(udp.To, out)
		}
	}
	if len(tcp.To) == 0 {
		tcp = nothing()
	}
	if len(udp.To) == 0 {
		udp = nothing()
	}
	return tcp, udp
}

func (s Subject) source(field string, from *v1alpha1.Source, namespace string) mesh.Source {
	if from.Identities == nil && from.NotIdentities == nil && from.ServiceAccounts == nil && from.Namespaces == nil &&
		from.NotNamespaces == nil && from.IPBlocks == nil && from.NotIPBlocks == nil {
		s.Problem(field, "say who connects; for everyone, leave from out", "is empty, and would match everyone")
	}
	out := mesh.Source{
		Identities:    s.identities(field+".identities", from.Identities),
		NotIdentities: s.identities(field+".notIdentities", from.NotIdentities),
		Namespaces:    s.namespaces(field+".namespaces", from.Namespaces),
		NotNamespaces: s.namespaces(field+".notNamespaces", from.NotNamespaces),
		IPBlocks:      s.Blocks(field+".ipBlocks", from.IPBlocks),
		NotIPBlocks:   s.Blocks(field+".notIpBlocks", from.NotIPBlocks),
	}
	accounts := s.serviceAccounts(field+".serviceAccounts", from.ServiceAccounts, namespace)
	if from.ServiceAccounts != nil && from.Identities != nil {
		s.Problem(field+".serviceAccounts", "write two sources, which match either", "cannot stand beside identities")
	}
	out.Identities = append(out.Identities, accounts...)
	return out
}

func (s Subject) identities(field string, texts []string) []mesh.IdentityPattern {
	s.NotEmpty(field, texts != nil && len(texts) == 0)
	var patterns []mesh.IdentityPattern
	for i, text := range texts {
		pattern := mesh.IdentityPattern(text)
		if err := pattern.Validate(); err != nil {
			s.Problem(fmt.Sprintf("%s[%d]", field, i), `write one such as spiffe://example.org/ns/shop/sa/web; "*" stands for a whole segment of the path`, "%v", err)
			continue
		}
		s.anybodys(fmt.Sprintf("%s[%d]", field, i), pattern)
		patterns = append(patterns, pattern)
	}
	return patterns
}

// anybodys warns of identities that nobody here can have.
func (s Subject) anybodys(field string, p mesh.IdentityPattern) {
	name, path, _ := strings.Cut(strings.TrimPrefix(string(p), "spiffe://"), "/")
	td, err := spiffeid.TrustDomainFromString(name)
	switch {
	case err != nil || s.TrustDomain.IsZero():
	case td == s.TrustDomain:
		rest, of := strings.CutPrefix(path, "ns/")
		if namespace, _, _ := strings.Cut(rest, "/"); of && namespace != "*" {
			s.knownNamespace(field, namespace)
		}
	case !s.Believed(td):
		s.Warn(field, fmt.Sprintf("write spiffe://%s/..., or add the trust domain to spec.federation of the Mesh", s.TrustDomain.Name()),
			"trust domain %q is neither the mesh's nor federated with it: nobody has such an identity here", name)
	}
}

func (s Subject) serviceAccounts(field string, texts []string, namespace string) []mesh.IdentityPattern {
	s.NotEmpty(field, texts != nil && len(texts) == 0)
	td := s.TrustDomain
	var patterns []mesh.IdentityPattern
	for i, text := range texts {
		ns, account, qualified := strings.Cut(text, "/")
		if !qualified {
			ns, account = namespace, text
		}
		at := fmt.Sprintf("%s[%d]", field, i)
		if strings.Contains(text, "*") {
			s.Problem(at, "write an identity with a wildcard into identities", "%q has a wildcard, which service accounts do not take", text)
			continue
		}
		before := len(s.Found.Problems)
		s.DomainLabel(at, ns)
		s.Subdomain(at, "a service account, NAME or NAMESPACE/NAME", account)
		if td.IsZero() || len(s.Found.Problems) > before {
			continue
		}
		id, err := mesh.IdentityFor(td, ns, account)
		if err != nil {
			s.Problem(at, "", "%v", err)
			continue
		}
		if qualified {
			s.knownNamespace(at, ns)
		}
		patterns = append(patterns, mesh.IdentityPattern(id.String()))
	}
	return patterns
}

func (s Subject) namespaces(field string, names []string) []string {
	s.NotEmpty(field, names != nil && len(names) == 0)
	for i, name := range names {
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case name == "":
			s.Problem(at, "write the name of a namespace", "is empty")
		case strings.Contains(name, "*"):
			s.Problem(at, "write the namespaces out, or an identity with a wildcard", "%q has a wildcard, which namespaces do not take", name)
		default:
			s.knownNamespace(at, name)
		}
	}
	return names
}

// knownNamespace warns of a namespace that nobody can be in.
func (s Subject) knownNamespace(field, name string) {
	if !s.Known(name) {
		s.Warn(field, "compare with the names of the namespaces", "namespace %q is not defined", name)
	}
}
