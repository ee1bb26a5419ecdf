package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

func netipCompare(a, b netip.Addr) int { return a.Compare(b) }

// compileServices gives every service its addresses before any gets endpoints:
// endpoints that are written by hand may be anybody's addresses.
func (c *compiler) compileServices() {
	c.indexSlices()
	services := slices.DeleteFunc(sorted(c.objs.Services), func(svc Sourced[corev1.Service]) bool {
		// A name for another name: DNS answers it as it did.
		return c.each && svc.Value.Spec.Type == corev1.ServiceTypeExternalName
	})
	out := make([]mesh.Service, len(services))
	for i, svc := range services {
		s, spec := c.subject("Service", svc.Value, svc.Origin), &svc.Value.Spec
		s.place(svc.Value)
		s.serviceType(spec)
		out[i] = mesh.Service{
			Key:       mesh.Key{Namespace: svc.Value.Namespace, Name: svc.Value.Name},
			Addresses: s.serviceAddresses(spec), Prefer: s.nearness(spec),
			Sticky: spec.SessionAffinity == corev1.ServiceAffinityClientIP,
		}
	}
	for i, svc := range services {
		s := c.subject("Service", svc.Value, svc.Origin)
		endpoints, enrolled := c.endpoints(s, svc.Value)
		ports, others := s.servicePorts(svc.Value, enrolled)
		if len(others) > 0 {
			endpoints = slices.DeleteFunc(endpoints, func(k mesh.Key) bool { return slices.Contains(others, k) })
		}
		out[i].Endpoints, out[i].Ports = endpoints, ports
	}
	c.out.Services = out
	slices.SortFunc(c.out.Services, func(a, b mesh.Service) int { return a.Key.Compare(b.Key) })
}

// nearness returns which workloads a service's clients prefer, see
// https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-distribution.
func (s subject) nearness(spec *corev1.ServiceSpec) mesh.Nearness {
	near := mesh.AnyDistance
	if d := spec.TrafficDistribution; d != nil {
		switch *d {
		case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
			near = mesh.SameZone
		case corev1.ServiceTrafficDistributionPreferSameNode:
			near = mesh.SameNode
		default:
			s.warn("spec.trafficDistribution", "write PreferSameZone or PreferSameNode", "%q is not known, and has no effect", *d)
		}
	}
	if p := spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		s.warn("spec.internalTrafficPolicy", "", "Local is a preference: without a workload on the node, others are used")
		near = mesh.SameNode
	}
	return near
}

// serviceType refuses what would lead traffic elsewhere than it says, and warns
// of what has no effect.
func (s subject) serviceType(spec *corev1.ServiceSpec) {
	switch spec.Type {
	case "", corev1.ServiceTypeClusterIP:
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		if s.compiler.each {
			break // opened by Kubernetes, beside the mesh
		}
		s.warn("spec.type", "", "%s has the effect of ClusterIP: nothing outside the mesh is opened", spec.Type)
	default:
		s.problem("spec.type", "write ClusterIP", "a service of type %q has no workloads of the mesh", string(spec.Type))
	}
	if len(spec.ExternalIPs) > 0 && !s.compiler.each {
		s.problem("spec.externalIPs", "take them out", "are not part of a mesh")
	}
}

func (s subject) serviceAddresses(spec *corev1.ServiceSpec) []netip.Addr {
	if isHeadless(spec) {
		if len(spec.ClusterIPs) > 1 || spec.ClusterIP != "" && spec.ClusterIP != corev1.ClusterIPNone {
			s.problem("spec.clusterIPs", "write None alone, or addresses alone", "has None and addresses")
		}
		return nil
	}
	texts, field := spec.ClusterIPs, "spec.clusterIPs[%d]"
	switch {
	case len(texts) == 0 && spec.ClusterIP == "" && s.compiler.each:
		return nil // about to be given one
	case len(texts) == 0 && spec.ClusterIP == "":
		s.problem("spec.clusterIP", "write an address inside the mesh's cluster ranges, or None for a headless service", "is missing: nobody hands out addresses here")
		return nil
	case len(texts) == 0:
		texts, field = []string{spec.ClusterIP}, "spec.clusterIP"
	case spec.ClusterIP != "" && spec.ClusterIP != texts[0]:
		s.problem("spec.clusterIP", "make the two the same, or leave clusterIP out", "is %q, but clusterIPs begins with %q", spec.ClusterIP, texts[0])
	}
	var addrs []netip.Addr
	for i, text := range texts {
		at := field
		if field != "spec.clusterIP" {
			at = fmt.Sprintf(field, i)
		}
		if addr, ok := s.claimAddress(at, text); ok {
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, netipCompare)
	return addrs
}

// servicePorts also returns the workloads that have another port under a port's
// name than the service leads to.
func (s subject) servicePorts(svc *corev1.Service, enrolled bool) (ports []mesh.ServicePort, others []mesh.Key) {
	spec := &svc.Spec
	names, numbers := map[string]bool{}, map[int32]bool{}
	for i, p := range spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			s.warn(field+".protocol", "", "port %d of protocol %s has no effect: the mesh carries TCP", p.Port, p.Protocol)
			continue
		}
		if len(spec.Ports) > 1 && p.Name == "" {
			s.problem(field, "write a name", "has no name, which a service with several ports needs")
		}
		if p.Name != "" && names[p.Name] || numbers[p.Port] {
			s.problem(field, "keep one of them", "port %d %q is given twice, by its name or its number", p.Port, p.Name)
			continue
		}
		names[p.Name], numbers[p.Port] = true, true
		port, ok := s.port(field+".port", p.Port)
		target, targetOK, differing := s.target(field+".targetPort", svc, &p, enrolled)
		others = append(others, differing...)
		if ok && targetOK {
			ports = append(ports, mesh.ServicePort{Name: p.Name, Port: port, TargetPort: target})
		}
	}
	if len(spec.Ports) == 0 && !isHeadless(spec) {
		s.problem("spec.ports", "write at least one port", "is empty")
	}
	return ports, others
}

// target returns the workloads' port, by its number or, in a cluster, by its name.
func (s subject) target(field string, svc *corev1.Service, p *corev1.ServicePort, enrolled bool) (uint16, bool, []mesh.Key) {
	if !s.compiler.byName(svc, p) {
		port, ok := s.targetPort(field, p, enrolled)
		return port, ok, nil
	}
	port, others := s.compiler.namedTarget(svc, p)
	if port == 0 {
		return 0, false, nil // no workload has it: there is nobody to connect to
	}
	if enrolled && mesh.ReservedPort(port) {
		s.problem(field, "let the workloads listen elsewhere", "port %d is the agent's own in an enrolled workload", port)
		return 0, false, nil
	}
	return port, true, others
}

func (s subject) targetPort(field string, p *corev1.ServicePort, enrolled bool) (uint16, bool) {
	if p.TargetPort.Type == intstr.String {
		s.problem(field, "write the port's number", "%q is a name, and workloads have no named ports", p.TargetPort.StrVal)
		return 0, false
	}
	number := p.TargetPort.IntVal
	if p.TargetPort == (intstr.IntOrString{}) {
		number = p.Port // left out
		field = field[:len(field)-len("targetPort")] + "port"
		if number < 1 || number > 65535 {
			return 0, false // reported as the port
		}
	}
	port, ok := s.port(field, number)
	if ok && enrolled && mesh.ReservedPort(port) {
		s.problem(field, "let the workloads listen elsewhere", "port %d is the agent's own in an enrolled workload", port)
		return 0, false
	}
	return port, ok
}

// maxEndpoints keeps a service, encoded, within one message to an agent.
const maxEndpoints = 3000

// endpoints returns the workloads that a service selects, sorted, and whether
// any of them is enrolled.
func (c *compiler) endpoints(s subject, svc *corev1.Service) (keys []mesh.Key, enrolled bool) {
	if len(svc.Spec.Selector) == 0 && c.each {
		return c.sliceEndpoints(svc)
	}
	if len(svc.Spec.Selector) == 0 {
		s.warn("spec.selector", "write the labels of its workloads", "is empty: the service has no workload")
		return nil, false
	}
	s.labels("spec.selector", svc.Spec.Selector)
	for _, w := range c.candidates(svc.Namespace, svc.Spec.Selector) {
		if selects(svc.Spec.Selector, w.Labels) {
			keys = append(keys, w.Key)
			enrolled = enrolled || w.Enrolled
		}
	}
	if keys = c.hostEndpoints(svc, keys); len(keys) > maxEndpoints {
		s.problem("spec.selector", "let several services select the workloads", "picks %d workloads: the first %d get connections", len(keys), maxEndpoints)
		keys = keys[:maxEndpoints]
	}
	if len(keys) == 0 {
		s.warn("spec.selector", "compare with the labels of the workloads", "picks no workload of namespace %q", svc.Namespace)
	}
	return keys, enrolled
}
