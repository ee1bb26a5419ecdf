// Package hosts says who answers at a host: a service of a cluster, by its names or its
// addresses, or a pod; and who is behind a service that has no selector. A host outside is
// nobody's. It is pure.
package hosts

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Objects are those that may answer. They are read only, and not looked at again after New.
type Objects struct {
	Services []corev1.Service
	Pods     []corev1.Pod
	Slices   []discoveryv1.EndpointSlice
}

// Hosts knows who answers.
type Hosts struct {
	services map[mesh.Key]*corev1.Service
	fronts   map[netip.Addr]*corev1.Service
	names    map[string]*corev1.Service // of load balancers, by lower case
	pods     map[netip.Addr]*corev1.Pod // by addresses that are their own
	slices   map[mesh.Key][]*discoveryv1.EndpointSlice
}

// New returns what objects say.
func New(o *Objects) *Hosts {
	h := &Hosts{map[mesh.Key]*corev1.Service{}, map[netip.Addr]*corev1.Service{}, map[string]*corev1.Service{}, map[netip.Addr]*corev1.Pod{}, map[mesh.Key][]*discoveryv1.EndpointSlice{}}
	for i := range o.Services {
		h.add(&o.Services[i])
	}
	for i := range o.Pods {
		p := &o.Pods[i]
		if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue // others have their addresses, too
		}
		texts := []string{p.Status.PodIP}
		for _, ip := range p.Status.PodIPs {
			texts = append(texts, ip.IP)
		}
		note(h.pods, p, texts)
	}
	for i := range o.Slices {
		s := &o.Slices[i]
		key := mesh.Key{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		h.slices[key] = append(h.slices[key], s)
	}
	return h
}

func (h *Hosts) add(s *corev1.Service) {
	h.services[mesh.Key{Namespace: s.Namespace, Name: s.Name}] = s
	texts := slices.Concat([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs, s.Spec.ExternalIPs)
	for _, at := range s.Status.LoadBalancer.Ingress {
		texts = append(texts, at.IP)
		if at.Hostname != "" {
			h.names[strings.ToLower(at.Hostname)] = s
		}
	}
	note(h.fronts, s, texts)
}

// note has an object be found by addresses; the first of two stays.
func note[T any](all map[netip.Addr]*T, object *T, texts []string) {
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil && all[addr.Unmap()] == nil {
			all[addr.Unmap()] = object
		}
	}
}

// Answer is who does: a service, or else a pod by itself.
type Answer struct {
	Service *corev1.Service
	Pod     *corev1.Pod
	// Direct is set where a port that is asked for is the pods' own: that of a pod, and of a
	// headless service, whose names are its pods' addresses.
	Direct bool
}

// maxAliases bounds the services of type ExternalName that lead to each other.
const maxAliases = 4

// At is who answers at a host, which is a name (Kubernetes DNS-Based Service Discovery, 1.1.0;
// of any cluster domain) or an address; false when it is nobody's here.
func (h *Hosts) At(host string) (Answer, bool) {
	for range maxAliases {
		a, ok := h.at(strings.TrimSuffix(strings.ToLower(host), "."))
		if !ok || a.Service == nil || a.Service.Spec.Type != corev1.ServiceTypeExternalName {
			return a, ok
		}
		host = a.Service.Spec.ExternalName
	}
	return Answer{}, false
}

func (h *Hosts) at(host string) (Answer, bool) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return h.atAddress(addr.Unmap())
	}
	parts := strings.Split(host, ".")
	switch {
	case len(parts) == 2 || len(parts) > 2 && parts[2] == "svc":
		if s := h.services[mesh.Key{Namespace: parts[1], Name: parts[0]}]; s != nil {
			return Answer{Service: s, Direct: s.Spec.ClusterIP == corev1.ClusterIPNone}, true
		}
	case len(parts) > 2 && parts[2] == "pod": // by its address, with dashes
		for _, between := range []string{".", ":"} {
			if addr, err := netip.ParseAddr(strings.ReplaceAll(parts[0], "-", between)); err == nil {
				return h.atAddress(addr)
			}
		}
	case len(parts) > 3 && parts[3] == "svc": // one of a headless service's pods
		if s := h.services[mesh.Key{Namespace: parts[2], Name: parts[1]}]; s != nil && s.Spec.ClusterIP == corev1.ClusterIPNone {
			return Answer{Service: s, Direct: true}, true
		}
	}
	s := h.names[host]
	return Answer{Service: s}, s != nil
}

func (h *Hosts) atAddress(addr netip.Addr) (Answer, bool) {
	if s := h.fronts[addr]; s != nil {
		return Answer{Service: s}, true
	}
	p := h.pods[addr]
	return Answer{Pod: p, Direct: p != nil}, p != nil
}

// Service is the one of a name; nil when there is none.
func (h *Hosts) Service(key mesh.Key) *corev1.Service { return h.services[key] }

// Endpoint is a pod behind a service.
type Endpoint struct {
	Pod   *corev1.Pod
	ports []discoveryv1.EndpointPort
}

// Port is the number of the TCP port to which one of the service's leads by its name, which
// may be ""; 0 when none does.
func (e *Endpoint) Port(name string) int32 {
	for _, p := range e.ports {
		named := p.Name == nil && name == "" || p.Name != nil && *p.Name == name
		if named && p.Port != nil && (p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP) {
			return *p.Port
		}
	}
	return 0
}

// Behind are the pods whose addresses the EndpointSlices of a service have, of any namespace
// and whether they are ready or not. Those of a service with a selector are written by
// Kubernetes, and say nothing that the selector does not.
func (h *Hosts) Behind(s *corev1.Service) (all []Endpoint) {
	for _, slice := range h.slices[mesh.Key{Namespace: s.Namespace, Name: s.Name}] {
		for j := range slice.Endpoints {
			for _, text := range slice.Endpoints[j].Addresses {
				addr, err := netip.ParseAddr(text)
				if err != nil {
					continue // a name
				}
				if p := h.pods[addr.Unmap()]; p != nil {
					all = append(all, Endpoint{p, slice.Ports})
				}
			}
		}
	}
	return all
}
