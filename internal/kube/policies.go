package kube

import (
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/datagrams"
	"github.com/heddle-mesh/heddle/internal/kube/fit"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// compilePolicies comes before the workloads, which are told what is said about UDP.
func (c *compiler) compilePolicies() {
	for _, ap := range sorted(c.objs.AuthorizationPolicies) {
		s := c.subject("AuthorizationPolicy", ap.Value, ap.Origin)
		s.place(ap.Value)
		spec := &ap.Value.Spec
		out := mesh.Policy{
			Key:      mesh.Key{Namespace: ap.Value.Namespace, Name: ap.Value.Name},
			Action:   s.action(spec),
			Selector: s.selector(spec.Selector),
		}
		udp := datagrams.Policy{Selector: out.Selector, Policy: &mesh.Policy{Key: out.Key, Action: out.Action}}
		for i := range spec.Rules {
			before := len(c.found.Problems)
			rule, about := s.rule(fmt.Sprintf("spec.rules[%d]", i), &spec.Rules[i], ap.Value.Namespace, out.Action)
			if len(c.found.Problems) > before { // see CompileEach
				if out.Action != mesh.ActionDeny {
					continue
				}
				rule, about = mesh.Rule{}, mesh.Rule{}
			}
			out.Rules, udp.Rules = append(out.Rules, rule), append(udp.Rules, about)
		}
		if n := fit.Policy(&out); n > fit.MaxBytes {
			s.Problem("spec", "split it into several policies", "comes to %d bytes, more than the %d that agents take", n, fit.MaxBytes)
			if out.Rules, udp.Rules = nil, nil; out.Action == mesh.ActionDeny {
				out.Rules, udp.Rules = []mesh.Rule{{}}, []mesh.Rule{{}}
			}
		}
		if n := fit.Policy(udp.Policy); datagrams.Names(spec) && n > datagrams.MaxBytes {
			s.Problem("spec.rules", "write namespaces, or identities with wildcards, or split it into several policies with narrower selectors",
				"about UDP come to %d bytes, more than the %d that every agent takes for each workload", n, datagrams.MaxBytes)
			if udp.Rules = nil; out.Action == mesh.ActionDeny {
				udp.Rules = []mesh.Rule{{}}
			}
		}
		c.datagrams.Add(udp)
		if !datagrams.Alone(&out, spec) {
			c.out.Policies = append(c.out.Policies, out)
		}
	}
	slices.SortFunc(c.out.Policies, func(a, b mesh.Policy) int { return a.Key.Compare(b.Key) })
}

// warnPolicies comes after the workloads.
func (c *compiler) warnPolicies() {
	for _, ap := range c.objs.AuthorizationPolicies {
		if ap.Value.Spec.Selector != nil {
			c.subject("AuthorizationPolicy", ap.Value, ap.Origin).warnUnselected(ap.Value.Namespace, ap.Value.Spec.Selector.Labels())
		}
	}
}

func (s subject) action(spec *v1alpha1.AuthorizationPolicySpec) mesh.Action {
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
func (s subject) rule(field string, rule *v1alpha1.Rule, namespace string, action mesh.Action) (tcp, udp mesh.Rule) {
	s.NotEmpty(field+".from", rule.From != nil && len(rule.From) == 0)
	s.NotEmpty(field+".to", rule.To != nil && len(rule.To) == 0)
	for i := range rule.From {
		tcp.From = append(tcp.From, s.source(fmt.Sprintf("%s.from[%d]", field, i), &rule.From[i], namespace))
	}
	udp.From = tcp.From
	if len(rule.To) == 0 {
		if action == mesh.ActionAllow {
			return tcp, datagrams.Nothing()
		}
		return tcp, udp
	}
	for i := range rule.To {
		at, to := fmt.Sprintf("%s.to[%d]", field, i), &rule.To[i]
		out := mesh.Destination{Ports: s.Ports(at+".ports", to.Ports), NotPorts: s.Ports(at+".notPorts", to.NotPorts)}
		switch {
		case to.Ports == nil && to.NotPorts == nil && to.Protocol == nil:
			s.Problem(at, "write ports, notPorts or protocol, or leave the entry out", "is empty, and would match every port")
		case to.Protocol == nil || *to.Protocol == v1alpha1.ProtocolTCP:
			tcp.To = append(tcp.To, out)
		case *to.Protocol != v1alpha1.ProtocolUDP:
			s.Problem(at+".protocol", "write TCP or UDP", "%q is not a protocol of policies", string(*to.Protocol))
		case action == mesh.ActionAllow && len(to.Ports) == 0:
			s.Problem(at+".ports", "write the ports over UDP", "is missing: an ALLOW rule about UDP names its ports")
		default:
			udp.To = append(udp.To, out)
		}
	}
	if len(tcp.To) == 0 {
		tcp = datagrams.Nothing()
	}
	if len(udp.To) == 0 {
		udp = datagrams.Nothing()
	}
	return tcp, udp
}

func (s subject) source(field string, from *v1alpha1.Source, namespace string) mesh.Source {
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

func (s subject) identities(field string, texts []string) []mesh.IdentityPattern {
	s.NotEmpty(field, texts != nil && len(texts) == 0)
	var patterns []mesh.IdentityPattern
	for i, text := range texts {
		pattern := mesh.IdentityPattern(text)
		if err := pattern.Validate(); err != nil {
			s.Problem(fmt.Sprintf("%s[%d]", field, i), `write one such as spiffe://example.org/ns/shop/sa/web; "*" stands for a whole segment of the path`, "%v", err)
			continue
		}
		patterns = append(patterns, pattern)
	}
	return patterns
}

func (s subject) serviceAccounts(field string, texts []string, namespace string) []mesh.IdentityPattern {
	s.NotEmpty(field, texts != nil && len(texts) == 0)
	td := s.compiler.out.Settings.TrustDomain
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
		before := len(s.compiler.found.Problems)
		s.DomainLabel(at, ns)
		s.Subdomain(at, "a service account, NAME or NAMESPACE/NAME", account)
		if td.IsZero() || len(s.compiler.found.Problems) > before {
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

func (s subject) namespaces(field string, names []string) []string {
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
func (s subject) knownNamespace(field, name string) {
	if _, known := s.compiler.namespaces[name]; !known {
		s.Warn(field, "compare with the names of the namespaces", "namespace %q is not defined", name)
	}
}
