package kube

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/kube/ports"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// EndpointSlice has the endpoints of a service that were written by hand, or by
// somebody's controller: Kubernetes' own slices say nothing that pods and
// selectors do not say sooner. It must not be changed.
type EndpointSlice struct {
	Namespace, Name string
	// Service is in the same namespace.
	Service string
	Ports   []NamedPort
	// Endpoints are those that take connections, each address by itself.
	Endpoints []Endpoint
	// Claims is set of one that says it is of Kubernetes' own controller, and is not like
	// one: whoever routes to the service may believe it until that controller takes it away.
	// It has neither ports nor endpoints here, and is nothing but a reason for caution.
	Claims bool
}

// Endpoint is who answers at an address. Node and Zone are "" where nobody has said.
type Endpoint struct {
	Addr       netip.Addr
	Node, Zone string
	// Leaving endpoints end, and take connections while no other does.
	Leaving bool
}

// ExternalNamespace is that of endpoints which are neither pods nor Workloads,
// such as the API server.
const ExternalNamespace = mesh.ExternalNamespace

// external is an endpoint of that namespace.
type external struct {
	key mesh.Key
	// node is the node in whose network it is, zone where that is, as far as they are known.
	node, zone string
	// ready is set when anybody says that it is.
	ready bool
}

// externalKey returns the name of whoever answers at an address: a workload, or
// an external endpoint, which it adds.
func (c *compiler) externalKey(e Endpoint) (mesh.Key, bool) {
	addr := e.Addr
	if owner, ok := c.addresses[addr]; ok {
		if owner.ref.Kind == "Service" || owner.ref.Kind == "Mesh" {
			return mesh.Key{}, false // a service in front of a service, or of another trust domain's workload: nobody would answer
		}
		return mesh.Key{Namespace: owner.ref.Namespace, Name: owner.ref.Name}, true
	}
	if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() || addr.Zone() != "" {
		return mesh.Key{}, false
	}
	key := mesh.Key{Namespace: ExternalNamespace, Name: addr.String()}
	before := c.external[addr]
	c.external[addr] = external{key, cmp.Or(e.Node, before.node), cmp.Or(e.Zone, before.zone), before.ready || !e.Leaving}
	return key, true
}

// addExternal adds the external endpoints that services have.
func (c *compiler) addExternal() {
	if len(c.external) == 0 {
		return
	}
	const account = "none"
	id, err := mesh.IdentityFor(c.out.Settings.TrustDomain, ExternalNamespace, account)
	if err != nil {
		return // without a trust domain: said already
	}
	c.out.Workloads = slices.Clone(c.out.Workloads) // policies are compared with members of the list as it was
	for _, addr := range slices.SortedFunc(maps.Keys(c.external), netipCompare) {
		at := c.external[addr]
		c.out.Workloads = append(c.out.Workloads, mesh.Workload{Key: at.key, ServiceAccount: account, Node: cmp.Or(at.node, account),
			Zone: cmp.Or(at.zone, c.objs.Zones[at.node]), Identity: id, Addresses: []netip.Addr{addr}, Ready: at.ready, Leaving: !at.ready})
	}
	slices.SortFunc(c.out.Workloads, func(a, b mesh.Workload) int { return a.Key.Compare(b.Key) })
}

// sliceEndpoints returns the endpoints of a service without a selector.
func (c *compiler) sliceEndpoints(svc *corev1.Service) (keys []mesh.Key, enrolled bool) {
	for _, slice := range c.slicesOf(svc) {
		keys = append(keys, c.sliceKeys(slice)...)
	}
	keys = mesh.SortedKeys(keys)
	for _, key := range keys {
		enrolled = enrolled || c.isEnrolled(key)
	}
	return keys, enrolled
}

func (c *compiler) isEnrolled(key mesh.Key) bool {
	i, ok := slices.BinarySearchFunc(c.members[key.Namespace], key, func(w *mesh.Workload, k mesh.Key) int { return w.Key.Compare(k) })
	return ok && c.members[key.Namespace][i].Enrolled
}

// sliceKeys returns the endpoints of a slice, sorted.
func (c *compiler) sliceKeys(slice *EndpointSlice) []mesh.Key {
	keys := make([]mesh.Key, 0, len(slice.Endpoints))
	for _, e := range slice.Endpoints {
		if key, ok := c.externalKey(e); ok {
			keys = append(keys, key)
		}
	}
	return mesh.SortedKeys(keys)
}

// bySlices returns what the slices of a service without a selector say of its ports: each
// has the ports of its endpoints. It is made once for all ports of the service.
func (c *compiler) bySlices(svc *corev1.Service) *ports.Slices {
	if c.written.svc == svc {
		return c.written.Slices
	}
	all := &ports.Slices{}
	for _, slice := range c.slicesOf(svc) {
		numbers := make(map[string]uint16, len(slice.Ports))
		for _, port := range slice.Ports {
			if _, twice := numbers[port.Name]; !twice {
				numbers[port.Name] = port.Port
			}
		}
		all.Add(c.sliceKeys(slice), numbers)
	}
	c.written.svc, c.written.Slices = svc, all
	return all
}

// slicesOf are a service's slices, by their names, without those that claim to be others.
func (c *compiler) slicesOf(svc *corev1.Service) []*EndpointSlice {
	all := c.allSlicesOf(svc)
	claims := func(s *EndpointSlice) bool { return s.Claims }
	if slices.ContainsFunc(all, claims) {
		all = slices.DeleteFunc(slices.Clone(all), claims)
	}
	return all
}

func (c *compiler) allSlicesOf(svc *corev1.Service) []*EndpointSlice {
	return c.slices[mesh.Key{Namespace: svc.Namespace, Name: svc.Name}]
}

func (c *compiler) indexSlices() {
	sorted := slices.SortedFunc(slices.Values(c.objs.Slices), func(a, b *EndpointSlice) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, s := range sorted {
		key := mesh.Key{Namespace: s.Namespace, Name: s.Service}
		c.slices[key] = append(c.slices[key], s)
	}
}

// numbers returns the numbers that a port has at a service's endpoints, as these or
// their slices say. A pod without the name has none: the port does not lead to it. It
// returns false when the slices say too much.
func (c *compiler) numbers(svc *corev1.Service, p *corev1.ServicePort, endpoints []mesh.Key) (numbers ports.ByNumber, ok bool) {
	if len(svc.Spec.Selector) == 0 {
		return c.bySlices(svc).Numbers(p.Name)
	}
	add := func(pod *Pod, keys ...mesh.Key) {
		// The first of a name, as the endpoints of Kubernetes have it.
		if i := slices.IndexFunc(pod.Ports, func(port NamedPort) bool { return port.Name == p.TargetPort.StrVal }); i >= 0 {
			numbers.Add(pod.Ports[i].Port, keys...)
		}
	}
	for _, key := range endpoints {
		if pod := c.pods[key]; pod != nil {
			add(pod, key)
		}
	}
	for _, pod := range c.hosts[svc.Namespace] {
		if mesh.Selects(svc.Spec.Selector, pod.Labels) {
			add(pod, c.hostKeys(svc, pod)...)
		}
	}
	return numbers, true
}

// byName reports whether a port's number has to be looked up: named ones, and,
// in a cluster, all of services whose endpoints say the ports.
func (c *compiler) byName(svc *corev1.Service, p *corev1.ServicePort) bool {
	return c.each && (p.TargetPort.Type == intstr.String || len(svc.Spec.Selector) == 0)
}

// hostEndpoints returns the pods in their nodes' networks that a service selects, as
// external endpoints: those that are ready, or all where it publishes all.
func (c *compiler) hostEndpoints(svc *corev1.Service) (keys []mesh.Key) {
	for _, p := range c.hosts[svc.Namespace] {
		keys = append(keys, c.hostKeys(svc, p)...)
	}
	return keys
}

// hostKeys is hostEndpoints of one pod.
func (c *compiler) hostKeys(svc *corev1.Service, p *Pod) (keys []mesh.Key) {
	takes := p.Ready && !p.Terminating || svc.Spec.PublishNotReadyAddresses
	if !takes || p.Finished || !mesh.Selects(svc.Spec.Selector, p.Labels) {
		return nil
	}
	for _, addr := range p.Addresses {
		if key, ok := c.externalKey(Endpoint{Addr: addr, Node: p.Node}); ok {
			keys = append(keys, key)
		}
	}
	return keys
}
