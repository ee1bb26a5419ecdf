package kube

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/kube/policies"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// compilePolicies comes before the workloads, which are told what is said about UDP.
func (c *compiler) compilePolicies() {
	for _, ap := range sorted(c.objs.AuthorizationPolicies) {
		s := c.subject("AuthorizationPolicy", ap.Value, ap.Origin)
		s.place(ap.Value)
		about := policies.Subject{Subject: s.Subject, Found: &c.found, TrustDomain: c.out.Settings.TrustDomain, Known: c.known, Believed: c.settings.Believes, UDP: c.objs.UDPByIdentity}
		tcp, udp := policies.Compile(about, ap.Value, s.selector(ap.Value.Spec.Selector))
		c.datagrams.Add(udp)
		if tcp != nil {
			c.out.Policies = append(c.out.Policies, *tcp)
		}
	}
	slices.SortFunc(c.out.Policies, func(a, b mesh.Policy) int { return a.Key.Compare(b.Key) })
}

func (c *compiler) known(namespace string) bool { _, known := c.namespaces[namespace]; return known }

// warnPolicies comes after the workloads.
func (c *compiler) warnPolicies() {
	for _, ap := range c.objs.AuthorizationPolicies {
		if n := c.datagrams.Beyond(ap.Value.Namespace); n > 0 && policies.OpensUDP(ap.Value) {
			c.subject("AuthorizationPolicy", ap.Value, ap.Origin).Problem("spec.rules", "write namespaces, or identities with wildcards, or narrower selectors",
				"come, with the namespace's other policies about UDP, to more than the %d bytes that agents take of its workloads: no datagrams pass to %d of them", policies.MaxNamespace, n)
		}
		c.subject("AuthorizationPolicy", ap.Value, ap.Origin).warnUnselected(ap.Value.Namespace, ap.Value.Spec.Selector)
	}
}

// seeRequests comes after the services, and looks for who sees what policies say of requests.
func (c *compiler) seeRequests() {
	byNamespace := map[string][]*mesh.Service{}
	for _, ap := range sorted(c.objs.AuthorizationPolicies) {
		key := mesh.Key{Namespace: ap.Value.Namespace, Name: ap.Value.Name}
		i, ok := slices.BinarySearchFunc(c.out.Policies, key, func(p mesh.Policy, k mesh.Key) int { return p.Key.Compare(k) })
		if !ok || !c.out.Policies[i].AboutRequests() {
			continue
		}
		p := &c.out.Policies[i]
		if _, made := byNamespace[p.Namespace]; !made {
			byNamespace[p.Namespace] = nil
			for j := range c.out.Services {
				if c.out.Services[j].Namespace == p.Namespace {
					byNamespace[p.Namespace] = append(byNamespace[p.Namespace], &c.out.Services[j])
				}
			}
		}
		selected := slices.DeleteFunc(slices.Clone(c.members[p.Namespace]), func(w *mesh.Workload) bool { return !p.Selects(w.Namespace, w.Labels) })
		policies.Unseen(policies.Subject{Subject: c.subject("AuthorizationPolicy", ap.Value, ap.Origin).Subject, Found: &c.found}, ap.Value, selected, byNamespace[p.Namespace], c.objs.Relayed)
	}
}
