package kube

import (
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/policies"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// statement is what one PeerAuthentication says about one place: a workload's
// port, or all ports that nothing is said about.
type statement struct {
	from  subject
	field string
	mode  mesh.Mode
}

// authentication is one PeerAuthentication.
type authentication struct {
	selector map[string]string // nil for the whole namespace
	mode     *statement
	ports    map[uint16]statement
}

// compilePeerAuthentications returns them by namespace, oldest first.
func (c *compiler) compilePeerAuthentications() map[string][]authentication {
	byNamespace := map[string][]authentication{}
	for _, pa := range sorted(c.objs.PeerAuthentications) {
		s := c.subject("PeerAuthentication", pa.Value, pa.Origin)
		s.place(pa.Value)
		spec := &pa.Value.Spec
		a := authentication{selector: s.selector(spec.Selector), ports: map[uint16]statement{}}
		if spec.Mode == "" && len(spec.PortModes) == 0 {
			s.Problem("spec", "write mode: STRICT or mode: PERMISSIVE", "says nothing: it has neither mode nor portModes")
		}
		if spec.Mode != "" {
			a.mode = &statement{s, "spec.mode", s.Mode("spec.mode", spec.Mode, mesh.ModeStrict)}
		}
		for i, pm := range spec.PortModes {
			field := fmt.Sprintf("spec.portModes[%d]", i)
			port, ok := s.Port(field+".port", int32(pm.Port))
			if !ok {
				continue
			}
			if _, twice := a.ports[port]; twice {
				s.Problem(field+".port", "keep one of them", "port %d is given twice", port)
				continue
			}
			if pm.Mode == "" {
				s.Problem(field, "write mode: STRICT or mode: PERMISSIVE", "has no mode")
			}
			a.ports[port] = statement{s, field + ".mode", s.Mode(field+".mode", pm.Mode, mesh.ModeStrict)}
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

// resolve returns a workload's modes: the most specific statements, and among
// equally specific ones the first. Statements that lose against an equally
// specific one of another mind are warned of.
func resolve(all []authentication, labels map[string]string, unset mesh.Mode) (mesh.Mode, map[uint16]mesh.Mode) {
	if len(all) == 0 {
		return unset, nil
	}
	var mode *statement
	ports := map[uint16]statement{}
	for _, selected := range []bool{true, false} { // objects with a selector first
		var level authentication
		level.ports = map[uint16]statement{}
		for _, a := range all {
			if (a.selector != nil) != selected || !mesh.Selects(a.selector, labels) {
				continue
			}
			if a.mode != nil {
				if level.mode == nil {
					level.mode = a.mode
				} else {
					a.mode.loses(*level.mode)
				}
			}
			for _, port := range slices.Sorted(maps.Keys(a.ports)) {
				if first, said := level.ports[port]; said {
					a.ports[port].loses(first)
				} else {
					level.ports[port] = a.ports[port]
				}
			}
		}
		if mode == nil {
			mode = level.mode
		}
		for port, said := range level.ports {
			if _, above := ports[port]; !above {
				ports[port] = said
			}
		}
	}
	var modes map[uint16]mesh.Mode
	for port, said := range ports {
		if modes == nil {
			modes = map[uint16]mesh.Mode{}
		}
		modes[port] = said.mode
	}
	if mode == nil {
		return unset, modes
	}
	return mode.mode, modes
}

// loses warns that another, equally specific statement holds instead.
func (st statement) loses(to statement) {
	if st.mode == to.mode {
		return
	}
	warning := st.from.Make(st.field, "take one of the two out, or give one a narrower selector",
		"has no effect on workloads for which %s says %s: of two equally specific ones the older holds, then the one whose name comes first",
		to.from.owner(), to.mode)
	text := warning.Error()
	if st.from.compiler.lost[text] {
		return // for another workload
	}
	st.from.compiler.lost[text] = true
	st.from.compiler.found.Warnings = append(st.from.compiler.found.Warnings, warning)
}

func (c *compiler) compileWorkloads(authentications map[string][]authentication) {
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
		out.Mode, out.PortModes = resolve(authentications[w.Value.Namespace], w.Value.Labels, c.settings.Mode)
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
