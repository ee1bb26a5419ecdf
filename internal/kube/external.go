package kube

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

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
	// Ready are the addresses of endpoints that take connections.
	Ready []netip.Addr
}

// ExternalNamespace is that of endpoints which are neither pods nor Workloads,
// such as the API server: no namespace of Kubernetes can have this name. Their
// names are their addresses, and nothing about them is proved.
const ExternalNamespace = "EXTERNAL"

// externalKey returns the name of whoever answers at an address: a workload, or
// an external endpoint, which it adds.
func (c *compiler) externalKey(addr netip.Addr) (mesh.Key, bool) {
	if owner, ok := c.addresses[addr]; ok {
		if owner.ref.Kind == "Service" {
			return mesh.Key{}, false // a service in front of a service: nobody would answer
		}
		return mesh.Key{Namespace: owner.ref.Namespace, Name: owner.ref.Name}, true
	}
	if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() || addr.Zone() != "" {
		return mesh.Key{}, false
	}
	key := mesh.Key{Namespace: ExternalNamespace, Name: addr.String()}
	c.external[addr] = key
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
	for _, addr := range slices.SortedFunc(maps.Keys(c.external), netipCompare) {
		c.out.Workloads = append(c.out.Workloads, mesh.Workload{Key: c.external[addr], ServiceAccount: account, Node: account,
			Identity: id, Addresses: []netip.Addr{addr}, Ready: true})
	}
	slices.SortFunc(c.out.Workloads, func(a, b mesh.Workload) int { return a.Key.Compare(b.Key) })
}

// sliceEndpoints returns the endpoints of a service without a selector.
func (c *compiler) sliceEndpoints(svc *corev1.Service) (keys []mesh.Key, enrolled bool) {
	for _, slice := range c.slicesOf(svc) {
		for _, addr := range slice.Ready {
			key, ok := c.externalKey(addr)
			if !ok {
				continue
			}
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, mesh.Key.Compare)
	keys = slices.Compact(keys)
	for _, key := range keys {
		enrolled = enrolled || c.isEnrolled(key)
	}
	return keys, enrolled
}

func (c *compiler) isEnrolled(key mesh.Key) bool {
	i, ok := slices.BinarySearchFunc(c.members[key.Namespace], key, func(w *mesh.Workload, k mesh.Key) int { return w.Key.Compare(k) })
	return ok && c.members[key.Namespace][i].Enrolled
}

// slicesOf returns those slices of a service that agree with the first on its
// ports: the model has one target for each.
func (c *compiler) slicesOf(svc *corev1.Service) []*EndpointSlice {
	all := c.slices[mesh.Key{Namespace: svc.Namespace, Name: svc.Name}]
	return slices.DeleteFunc(slices.Clone(all), func(s *EndpointSlice) bool { return !slices.Equal(s.Ports, all[0].Ports) })
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

// hostEndpoints adds the ready pods in their nodes' networks that a service
// selects, as external endpoints.
func (c *compiler) hostEndpoints(svc *corev1.Service, keys []mesh.Key) []mesh.Key {
	hosts := c.hosts[svc.Namespace]
	for _, p := range hosts {
		if !p.Ready || p.Terminating || !selects(svc.Spec.Selector, p.Labels) {
			continue
		}
		for _, addr := range p.Addresses {
			if key, ok := c.externalKey(addr); ok {
				keys = append(keys, key)
			}
		}
	}
	if len(hosts) > 0 {
		slices.SortFunc(keys, mesh.Key.Compare)
		keys = slices.Compact(keys)
	}
	return keys
}

// namedTarget returns the number that a service's port leads to by its name: as
// most of the service's pods have it, the lower one of two equally frequent.
// Pods that have another number, as in the middle of a rollout, are returned to
// be left out.
func (c *compiler) namedTarget(svc *corev1.Service, p *corev1.ServicePort) (target uint16, others []mesh.Key) {
	if len(svc.Spec.Selector) == 0 {
		for _, s := range c.slicesOf(svc) {
			for _, port := range s.Ports {
				if port.Name == p.Name {
					return port.Port, nil
				}
			}
		}
		return 0, nil
	}
	numbers, votes := map[mesh.Key]uint16{}, map[uint16]int{}
	vote := func(pod *Pod) {
		for _, port := range pod.Ports {
			if port.Name == p.TargetPort.StrVal {
				numbers[pod.Key()] = port.Port
				votes[port.Port]++
			}
		}
	}
	members := c.candidates(svc.Namespace, svc.Spec.Selector)
	for _, w := range members {
		if pod := c.pods[w.Key]; pod != nil && selects(svc.Spec.Selector, w.Labels) {
			vote(pod)
		}
	}
	for _, pod := range c.hosts[svc.Namespace] {
		if selects(svc.Spec.Selector, pod.Labels) {
			vote(pod)
		}
	}
	for number, n := range votes {
		if n > votes[target] || n == votes[target] && number < target {
			target = number
		}
	}
	for _, w := range members {
		if selects(svc.Spec.Selector, w.Labels) && numbers[w.Key] != target {
			others = append(others, w.Key)
		}
	}
	return target, others
}

// byName reports whether a port's number has to be looked up: named ones, and,
// in a cluster, all of services whose endpoints say the ports.
func (c *compiler) byName(svc *corev1.Service, p *corev1.ServicePort) bool {
	return c.each && (p.TargetPort.Type == intstr.String || len(svc.Spec.Selector) == 0)
}
