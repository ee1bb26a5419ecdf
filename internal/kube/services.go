package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/kube/check"
	"github.com/heddle-mesh/heddle/internal/kube/ports"
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
			Unready: spec.PublishNotReadyAddresses,
		}
		out[i].Sticky, out[i].StickyFor = s.sticky(spec)
	}
	c.externalAddresses(services, out)
	for i, svc := range services {
		s := c.subject("Service", svc.Value, svc.Origin)
		endpoints, enrolled := c.endpoints(s, svc.Value)
		out[i].Endpoints, out[i].Ports = endpoints, s.servicePorts(svc.Value, endpoints, enrolled)
		if c.objs.UDPByIdentity {
			out[i].UDPPorts = ports.UDP(s.Subject, &svc.Value.Spec, c.uncounted(svc.Value, endpoints))
		}
		ports.Fit(s.Subject, &out[i])
	}
	c.compileWaypoints(services, out)
	c.out.Services = out
	slices.SortFunc(c.out.Services, func(a, b mesh.Service) int { return a.Key.Compare(b.Key) })
}

// compileWaypoints says through which waypoints services are reached.
func (c *compiler) compileWaypoints(services []Sourced[corev1.Service], out []mesh.Service) {
	there := make(map[mesh.Key]int, len(out))
	for i := range out {
		there[out[i].Key] = i
	}
	known := func(key mesh.Key) bool { _, ok := there[key]; return ok }
	for i, svc := range services {
		s := c.subject("Service", svc.Value, svc.Origin)
		choice := check.WaypointOf(s.Subject, svc.Value.Labels)
		choice.Check(s.Subject, out[i].Namespace, out[i].Name, known)
		waypoint, bypass := choice.In(c.namespaces[out[i].Namespace].waypoint, out[i].Key)
		if waypoint == (mesh.Key{}) {
			continue
		}
		var front *corev1.Service
		if at, ok := there[waypoint]; ok && at != i {
			front = services[at].Value
		}
		if choice.Front(s.Subject, &out[i], front) {
			out[i].Waypoint, out[i].Bypass = waypoint, bypass
		}
	}
	for _, ns := range c.objs.Namespaces {
		c.namespaces[ns.Value.Name].waypoint.Check(c.subject("Namespace", ns.Value, ns.Origin).Subject, ns.Value.Name, "", known)
	}
}

// uncounted says who may be behind a service, for whoever routes to its address, that is
// not among its endpoints here; "" for nobody.
func (c *compiler) uncounted(svc *corev1.Service, endpoints []mesh.Key) string {
	selected := func(p *Pod) bool { return mesh.Selects(svc.Spec.Selector, p.Labels) }
	switch {
	case len(svc.Spec.Selector) == 0:
		return "its endpoints are written by hand, with ports of their own"
	case len(c.slicesOf(svc)) > 0:
		return "it has endpoints that its selector does not pick, of EndpointSlice " + c.slicesOf(svc)[0].Name
	case len(c.allSlicesOf(svc)) > 0:
		return "EndpointSlice " + c.allSlicesOf(svc)[0].Name + " says that it is of Kubernetes' own controller, and is not like one"
	case slices.ContainsFunc(c.left[svc.Namespace], selected) || slices.ContainsFunc(c.hosts[svc.Namespace], selected):
		return "it selects pods that the mesh does not know by all their addresses"
	case ports.Full(endpoints):
		return "it has more endpoints than agents take"
	}
	return ""
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
			s.Warn("spec.trafficDistribution", "write PreferSameZone or PreferSameNode", "%q is not known, and has no effect", *d)
		}
	}
	if p := spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		near = mesh.OnlyNode
	}
	return near
}

// maxStickySeconds is the API's own bound, one day.
const maxStickySeconds = 86400

// sticky returns whether the service's clients stay with a workload, and for how long
// after their last connection, see
// https://kubernetes.io/docs/reference/networking/virtual-ips/#session-affinity.
func (s subject) sticky(spec *corev1.ServiceSpec) (bool, time.Duration) {
	if spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return false, 0
	}
	config := spec.SessionAffinityConfig
	if config == nil || config.ClientIP == nil || config.ClientIP.TimeoutSeconds == nil {
		return true, mesh.DefaultSticky
	}
	seconds := *config.ClientIP.TimeoutSeconds
	if seconds < 1 || seconds > maxStickySeconds {
		s.Problem("spec.sessionAffinityConfig.clientIP.timeoutSeconds", fmt.Sprintf("write 1 to %d", maxStickySeconds),
			"%d is no time for which a client stays with a workload", seconds)
		return true, mesh.DefaultSticky
	}
	return true, time.Duration(seconds) * time.Second
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
		s.Warn("spec.type", "", "%s has the effect of ClusterIP: nothing outside the mesh is opened", spec.Type)
	default:
		s.Problem("spec.type", "write ClusterIP", "a service of type %q has no workloads of the mesh", string(spec.Type))
	}
	if len(spec.ExternalIPs) > 0 && !s.compiler.each {
		s.Problem("spec.externalIPs", "take them out", "are not part of a mesh")
	}
}

func (s subject) serviceAddresses(spec *corev1.ServiceSpec) []netip.Addr {
	if isHeadless(spec) {
		if len(spec.ClusterIPs) > 1 || spec.ClusterIP != "" && spec.ClusterIP != corev1.ClusterIPNone {
			s.Problem("spec.clusterIPs", "write None alone, or addresses alone", "has None and addresses")
		}
		return nil
	}
	texts, field := spec.ClusterIPs, "spec.clusterIPs[%d]"
	switch {
	case len(texts) == 0 && spec.ClusterIP == "" && s.compiler.each:
		return nil // about to be given one
	case len(texts) == 0 && spec.ClusterIP == "":
		s.Problem("spec.clusterIP", "write an address inside the mesh's cluster ranges, or None for a headless service", "is missing: nobody hands out addresses here")
		return nil
	case len(texts) == 0:
		texts, field = []string{spec.ClusterIP}, "spec.clusterIP"
	case spec.ClusterIP != "" && spec.ClusterIP != texts[0]:
		s.Problem("spec.clusterIP", "make the two the same, or leave clusterIP out", "is %q, but clusterIPs begins with %q", spec.ClusterIP, texts[0])
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

// servicePorts are the ports, each with those endpoints that have it, when not all do,
// and what stands for it elsewhere.
func (s subject) servicePorts(svc *corev1.Service, endpoints []mesh.Key, enrolled bool) (all []mesh.ServicePort) {
	spec := &svc.Spec
	names, numbers, elsewhere := map[string]bool{}, map[int32]bool{}, 0
	for i, p := range spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		if p.Protocol == corev1.ProtocolUDP && s.compiler.objs.UDPByIdentity {
			continue // see ports.UDP
		}
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			s.Warn(field+".protocol", "", "port %d of protocol %s has no effect: the mesh carries TCP", p.Port, p.Protocol)
			continue
		}
		if len(spec.Ports) > 1 && p.Name == "" {
			s.Problem(field, "write a name", "has no name, which a service with several ports needs")
		}
		if p.Name != "" && names[p.Name] || numbers[p.Port] {
			s.Problem(field, "keep one of them", "port %d %q is given twice, by its name or its number", p.Port, p.Name)
			continue
		}
		names[p.Name], numbers[p.Port] = true, true
		port, ok := s.Port(field+".port", p.Port)
		if out, targetOK := s.target(field+".targetPort", svc, &p, endpoints, enrolled); ok && targetOK {
			if out.Name, out.Port = p.Name, port; p.AppProtocol != nil {
				out.AppProtocol = *p.AppProtocol
			}
			all = append(all, out)
			for _, at := range out.Elsewhere {
				elsewhere += len(at.Endpoints)
			}
		}
	}
	s.tooMuchWritten(svc)
	if elsewhere > ports.MaxElsewhere {
		s.Problem("spec.ports", "let the workloads have one number under a name, or split the service",
			"have %d endpoints under other numbers than most of their workloads have: those get no connections", elsewhere)
		for i := range all {
			all[i].Elsewhere = nil
		}
	}
	if len(spec.Ports) == 0 && !isHeadless(spec) {
		s.Problem("spec.ports", "write at least one port", "is empty")
	}
	return all
}

// tooMuchWritten says of how many ports too much is said by slices.
func (s subject) tooMuchWritten(svc *corev1.Service) {
	if len(svc.Spec.Selector) > 0 {
		return
	}
	if n := s.compiler.bySlices(svc).Refused(); n > 0 {
		s.Problem("spec.ports", "let the slices of a service have the same ports, or let several services have them",
			"%d are not there: what the service's slices say of its ports comes to more than %d endpoints", n, ports.MaxWork)
	}
}

// target returns a port with what it leads to: the number at all endpoints or, in a
// cluster, what stands at each of them for its name.
func (s subject) target(field string, svc *corev1.Service, p *corev1.ServicePort, endpoints []mesh.Key, enrolled bool) (out mesh.ServicePort, ok bool) {
	if !s.compiler.byName(svc, p) {
		out.TargetPort, ok = s.targetPort(field, p, enrolled)
		return out, ok
	}
	numbers, ok := s.compiler.numbers(svc, p, endpoints)
	if !ok {
		return out, false // said of all of them
	}
	if out.TargetPort = numbers.Target(); out.TargetPort == 0 {
		out.TargetPort, ok = s.Port(field, p.Port) // any number: what has no endpoint is known to be a port, and refuses
		if len(endpoints) > 0 {
			out.Only = ports.Some(nil)
		}
		return out, ok
	}
	numbers.Place(&out, endpoints)
	for _, number := range numbers.Numbers() {
		if ownPort(number) && slices.ContainsFunc(numbers.Of(number), s.compiler.isEnrolled) {
			s.Problem(field, "let the workloads listen elsewhere", "port %d is the agent's own in an enrolled workload", number)
			return out, number != out.TargetPort
		}
	}
	return out, true
}

// ownPort reports whether a service cannot lead to a port of enrolled workloads. That of
// waypoints is what their own Services have, though nobody is let through to it by them.
func ownPort(port uint16) bool { return port != mesh.WaypointPort && mesh.ReservedPort(port) }

func (s subject) targetPort(field string, p *corev1.ServicePort, enrolled bool) (uint16, bool) {
	if p.TargetPort.Type == intstr.String {
		s.Problem(field, "write the port's number", "%q is a name, and workloads have no named ports", p.TargetPort.StrVal)
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
	port, ok := s.Port(field, number)
	if ok && enrolled && ownPort(port) {
		s.Problem(field, "let the workloads listen elsewhere", "port %d is the agent's own in an enrolled workload", port)
		return 0, false
	}
	return port, ok
}

// endpoints returns the workloads that a service selects, sorted, and whether
// any of them is enrolled.
func (c *compiler) endpoints(s subject, svc *corev1.Service) (keys []mesh.Key, enrolled bool) {
	if len(svc.Spec.Selector) == 0 && c.each {
		keys, enrolled = c.sliceEndpoints(svc)
		return ports.Few(s.Subject, "spec", "let several services have the endpoints", keys), enrolled
	}
	if len(svc.Spec.Selector) == 0 {
		s.Warn("spec.selector", "write the labels of its workloads", "is empty: the service has no workload")
		return nil, false
	}
	s.Labels("spec.selector", svc.Spec.Selector)
	ports.Beside(s.Subject, &svc.Spec, c.slicesOf(svc), func(e *EndpointSlice) (string, int) { return e.Name, len(e.Endpoints) })
	for _, w := range c.candidates(svc.Namespace, svc.Spec.Selector) {
		if mesh.Selects(svc.Spec.Selector, w.Labels) {
			keys = append(keys, w.Key)
			enrolled = enrolled || w.Enrolled
		}
	}
	keys = mesh.SortedKeys(append(keys, c.hostEndpoints(svc)...))
	keys = ports.Few(s.Subject, "spec.selector", "let several services select the workloads", keys)
	if len(keys) == 0 {
		s.Warn("spec.selector", "compare with the labels of the workloads", "picks no workload of namespace %q", svc.Namespace)
	}
	return keys, enrolled
}
