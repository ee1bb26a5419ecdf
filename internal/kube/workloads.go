package kube

import (
	"fmt"
	"path"
	"slices"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/check"
	"github.com/heddle-mesh/heddle/internal/kube/policies"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// compilePeerAuthentications returns them by namespace, oldest first.
func (c *compiler) compilePeerAuthentications() map[string][]check.Authentication {
	byNamespace := map[string][]check.Authentication{}
	for _, pa := range sorted(c.objs.PeerAuthentications) {
		s := c.subject("PeerAuthentication", pa.Value, pa.Origin)
		s.place(pa.Value)
		spec := &pa.Value.Spec
		a := check.Authentication{Selector: s.selector(spec.Selector), Ports: map[uint16]check.Statement{}}
		if spec.Mode == "" && len(spec.PortModes) == 0 {
			s.Problem("spec", "write mode: STRICT or mode: PERMISSIVE", "says nothing: it has neither mode nor portModes")
		}
		if spec.Mode != "" {
			a.Mode = &check.Statement{From: s.Subject, Field: "spec.mode", Mode: s.Mode("spec.mode", spec.Mode, mesh.ModeStrict)}
		}
		for i, pm := range spec.PortModes {
			field := fmt.Sprintf("spec.portModes[%d]", i)
			port, ok := s.Port(field+".port", int32(pm.Port))
			if !ok {
				continue
			}
			if _, twice := a.Ports[port]; twice {
				s.Problem(field+".port", "keep one of them", "port %d is given twice", port)
				continue
			}
			if pm.Mode == "" {
				s.Problem(field, "write mode: STRICT or mode: PERMISSIVE", "has no mode")
			}
			a.Ports[port] = check.Statement{From: s.Subject, Field: field + ".mode", Mode: s.Mode(field+".mode", pm.Mode, mesh.ModeStrict)}
		}
		byNamespace[pa.Value.Namespace] = append(byNamespace[pa.Value.Namespace], a)
	}
	return byNamespace
}

// warnUnselected warns of a selector that picks no workload: a misspelt label
// looks just like that. In a folder it warns of what nobody enforces, too; in a cluster
// the object's status says on how many nodes it is live.
func (s subject) warnUnselected(namespace string, selector *v1alpha1.Selector) {
	field, labels, picked := "spec", map[string]string(nil), false
	if selector != nil {
		field, labels = "spec.selector.matchLabels", selector.Labels()
	}
	for _, w := range s.compiler.candidates(namespace, labels) {
		if mesh.Selects(labels, w.Labels) {
			if w.Enrolled || s.compiler.each {
				return
			}
			picked = true
		}
	}
	switch {
	case picked:
		s.Warn(field, "enroll them, by the label "+v1alpha1.LabelMesh+": enabled", "picks workloads of namespace %q, none of which is in the mesh: nobody enforces it", namespace)
	case selector != nil:
		s.Warn(field, "compare with the labels of the workloads", "picks no workload of namespace %q", namespace)
	}
}

func (c *compiler) compileWorkloads(authentications map[string][]check.Authentication) {
	for _, w := range sorted(c.objs.Workloads) {
		s := c.subject("Workload", w.Value, w.Origin)
		if c.pods[mesh.Key{Namespace: w.Value.Namespace, Name: w.Value.Name}] != nil {
			s.Conflict("metadata.name", "rename it", "a pod of the same namespace has this name")
			continue
		}
		before := len(c.found.Problems)
		s.place(w.Value)
		if s.labelsFit(w.Value.Labels) {
			s.Labels("metadata.labels", w.Value.Labels)
		}
		spec := &w.Value.Spec
		out := mesh.Workload{
			Key:            mesh.Key{Namespace: w.Value.Namespace, Name: w.Value.Name},
			ServiceAccount: spec.ServiceAccount,
			Node:           spec.Node,
			Labels:         w.Value.Labels,
			Ready:          spec.Ready == nil || *spec.Ready,
		}
		if out.ServiceAccount == "" {
			out.ServiceAccount = "default"
		}
		enrolled, given := s.enrolled(w.Value.Labels)
		out.Enrolled = enrolled || !given && c.namespaces[w.Value.Namespace].enrolled
		out.Mode, out.PortModes = check.Resolve(authentications[w.Value.Namespace], w.Value.Labels, c.settings.Mode)
		out.DNS = c.settings.DNS.Of(w.Value.Namespace)
		s.addDatagrams(&out)
		s.workloadSpec(&out, spec)
		if c.each && len(c.found.Problems) > before {
			continue
		}
		c.out.Workloads = append(c.out.Workloads, out)
	}
	slices.SortFunc(c.out.Workloads, func(a, b mesh.Workload) int { return a.Key.Compare(b.Key) })
	for i := range c.out.Workloads {
		w := &c.out.Workloads[i]
		c.members[w.Namespace] = append(c.members[w.Namespace], w)
	}
	for _, pa := range c.objs.PeerAuthentications {
		c.subject("PeerAuthentication", pa.Value, pa.Origin).warnUnselected(pa.Value.Namespace, pa.Value.Spec.Selector)
	}
}

// addDatagrams adds what policies say about UDP. A workload is taken to be behind its gate
// where it is to be: an operator, who hears from agents whether it is, says otherwise.
func (s subject) addDatagrams(out *mesh.Workload) {
	if !out.Enrolled {
		return
	}
	out.Gated = s.compiler.objs.UDPByIdentity
	said, ok := s.compiler.datagrams.Of(out.Namespace, out.Labels)
	if !ok {
		s.Warn("metadata.labels", "let fewer policies about UDP select it, or shorter ones", "are selected by policies that say more about UDP than the %d bytes that agents take: no datagrams pass", policies.MaxWorkload)
	}
	out.Datagrams = said
}

func (s subject) workloadSpec(out *mesh.Workload, spec *v1alpha1.WorkloadSpec) {
	if out.Node == "" {
		s.Problem("spec.node", "write the name that the node's agent was started with", "is missing")
	} else {
		s.Subdomain("spec.node", "a node's name", out.Node)
	}
	s.Subdomain("spec.serviceAccount", "a service account's name", out.ServiceAccount)
	if td := s.compiler.out.Settings.TrustDomain; !td.IsZero() {
		// An error is about a name that has been reported already.
		if id, err := mesh.IdentityFor(td, out.Namespace, out.ServiceAccount); err == nil {
			out.Identity = id
		}
	}
	if len(spec.Addresses) == 0 {
		s.Problem("spec.addresses", "write at least one, such as [10.244.1.3]", "is empty")
	}
	for i, text := range spec.Addresses {
		if addr, ok := s.claimAddress(fmt.Sprintf("spec.addresses[%d]", i), text); ok {
			out.Addresses = append(out.Addresses, addr)
		}
	}
	slices.SortFunc(out.Addresses, netipCompare)
	out.ProbePorts = s.Ports("spec.probePorts", spec.ProbePorts)
	for i, port := range spec.ProbePorts {
		if port > 0 && port <= 65535 && mesh.ReservedPort(uint16(port)) {
			s.Problem(fmt.Sprintf("spec.probePorts[%d]", i), "let the process listen elsewhere", "port %d is the agent's own in an enrolled workload", port)
		}
	}
	s.networkNamespace(out, spec.NetworkNamespace)
}

// networkNamespace checks the path by which the agent finds the workload. Paths
// of workloads that are not enrolled are checked too, and not passed on.
func (s subject) networkNamespace(out *mesh.Workload, netns string) {
	const field = "spec.networkNamespace"
	switch {
	case netns == "" && out.Enrolled:
		s.Problem(field, "write its path, such as /run/netns/"+out.Name+", or label the workload "+v1alpha1.LabelMesh+": disabled",
			"is missing: the workload is enrolled")
		return
	case netns == "":
		return
	case !path.IsAbs(netns) || path.Clean(netns) != netns:
		s.Problem(field, "write an absolute path such as /run/netns/"+out.Name, "%q is not a plain absolute path", netns)
		return
	}
	key := out.Node + " " + netns
	if first, taken := s.compiler.netns[key]; taken {
		s.Conflict(field, "give every workload a network namespace of its own", "%s on node %s is used twice: it is also that of %s", netns, out.Node, first)
		return
	}
	s.compiler.netns[key] = s.owner()
	if out.Enrolled {
		out.NetNS = netns
	}
}
