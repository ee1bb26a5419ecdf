package kube

import (
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/fit"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

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
		if out.Selector != nil {
			s.warnUnselected(out.Namespace, out.Selector)
		}
		for i := range spec.Rules {
			before := len(c.found.Problems)
			rule := s.rule(fmt.Sprintf("spec.rules[%d]", i), &spec.Rules[i], ap.Value.Namespace)
			if len(c.found.Problems) > before { // see CompileEach
				if out.Action != mesh.ActionDeny {
					continue
				}
				rule = mesh.Rule{}
			}
			out.Rules = append(out.Rules, rule)
		}
		if n := fit.Policy(&out); n > fit.MaxBytes {
			s.Problem("spec", "split it into several policies", "comes to %d bytes, more than the %d that agents take", n, fit.MaxBytes)
			if out.Rules = nil; out.Action == mesh.ActionDeny {
				out.Rules = []mesh.Rule{{}}
			}
		}
		c.out.Policies = append(c.out.Policies, out)
	}
	slices.SortFunc(c.out.Policies, func(a, b mesh.Policy) int { return a.Key.Compare(b.Key) })
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

func (s subject) rule(field string, rule *v1alpha1.Rule, namespace string) mesh.Rule {
	s.NotEmpty(field+".from", rule.From != nil && len(rule.From) == 0)
	s.NotEmpty(field+".to", rule.To != nil && len(rule.To) == 0)
	var out mesh.Rule
	for i := range rule.From {
		out.From = append(out.From, s.source(fmt.Sprintf("%s.from[%d]", field, i), &rule.From[i], namespace))
	}
	for i := range rule.To {
		at, to := fmt.Sprintf("%s.to[%d]", field, i), &rule.To[i]
		if to.Ports == nil && to.NotPorts == nil {
			s.Problem(at, "write ports or notPorts, or leave the entry out", "is empty, and would match every port")
		}
		out.To = append(out.To, mesh.Destination{
			Ports:    s.Ports(at+".ports", to.Ports),
			NotPorts: s.Ports(at+".notPorts", to.NotPorts),
		})
	}
	return out
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
