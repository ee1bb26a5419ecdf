// Package hosts says who answers at a host: a service of a cluster, by its names or its
// addresses, or a pod. A host outside is nobody's. It is pure.
package hosts

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Objects are those that may answer. They are read only.
type Objects struct {
	Services []corev1.Service
	Pods     []corev1.Pod
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
func (o *Objects) At(host string) (Answer, bool) {
	for range maxAliases {
		a, ok := o.at(strings.TrimSuffix(strings.ToLower(host), "."))
		if !ok || a.Service == nil || a.Service.Spec.Type != corev1.ServiceTypeExternalName {
			return a, ok
		}
		host = a.Service.Spec.ExternalName
	}
	return Answer{}, false
}

func (o *Objects) at(host string) (Answer, bool) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return o.atAddress(addr.Unmap())
	}
	if host == "" {
		return Answer{}, false
	}
	parts := strings.Split(host, ".")
	switch {
	case len(parts) == 2 || len(parts) > 2 && parts[2] == "svc":
		if s := o.service(parts[1], parts[0]); s != nil {
			return Answer{Service: s, Direct: s.Spec.ClusterIP == corev1.ClusterIPNone}, true
		}
	case len(parts) > 2 && parts[2] == "pod": // by its address, with dashes
		for _, between := range []string{".", ":"} {
			if addr, err := netip.ParseAddr(strings.ReplaceAll(parts[0], "-", between)); err == nil {
				return o.atAddress(addr)
			}
		}
	case len(parts) > 3 && parts[3] == "svc": // one of a headless service's pods
		if s := o.service(parts[2], parts[1]); s != nil && s.Spec.ClusterIP == corev1.ClusterIPNone {
			return Answer{Service: s, Direct: true}, true
		}
	}
	i := slices.IndexFunc(o.Services, func(s corev1.Service) bool {
		return slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(at corev1.LoadBalancerIngress) bool { return strings.EqualFold(at.Hostname, host) })
	})
	if i < 0 {
		return Answer{}, false
	}
	return Answer{Service: &o.Services[i]}, true
}

func (o *Objects) service(namespace, name string) *corev1.Service {
	i := slices.IndexFunc(o.Services, func(s corev1.Service) bool { return s.Namespace == namespace && s.Name == name })
	if i < 0 {
		return nil
	}
	return &o.Services[i]
}

func (o *Objects) atAddress(addr netip.Addr) (Answer, bool) {
	for i := range o.Services {
		s := &o.Services[i]
		texts := slices.Concat([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs, s.Spec.ExternalIPs)
		for _, at := range s.Status.LoadBalancer.Ingress {
			texts = append(texts, at.IP)
		}
		if slices.ContainsFunc(texts, func(text string) bool { return is(text, addr) }) {
			return Answer{Service: s}, true
		}
	}
	if p := o.Pod(addr); p != nil {
		return Answer{Pod: p, Direct: true}, true
	}
	return Answer{}, false
}

// Pod is the one with an address of its own; nil when there is none.
func (o *Objects) Pod(addr netip.Addr) *corev1.Pod {
	i := slices.IndexFunc(o.Pods, func(p corev1.Pod) bool {
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		return !p.Spec.HostNetwork && !ended && (is(p.Status.PodIP, addr) || slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return is(ip.IP, addr) }))
	})
	if i < 0 {
		return nil
	}
	return &o.Pods[i]
}

func is(text string, addr netip.Addr) bool {
	at, err := netip.ParseAddr(text)
	return err == nil && at.Unmap() == addr
}
