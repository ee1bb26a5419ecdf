package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// maxExternal bounds the external addresses of a service, which all agents are told.
const maxExternal = 64

// proxyNameLabel gives a service to another proxy than the cluster's own
// (https://kubernetes.io/docs/reference/labels-annotations-taints/#servicekubernetesioservice-proxy-name).
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// externalAddresses returns where besides its own addresses a service is reached from
// inside the cluster, at its ports, as kube-proxy has it: its external IPs, and what its
// load balancer has, unless the connections are to pass that one (ipMode Proxy,
// https://kubernetes.io/docs/concepts/services-networking/service/#load-balancer-ip-mode)
// or not all of the mesh may use it. A service without an address of the family has none.
func (s subject) externalAddresses(svc *corev1.Service, own []netip.Addr) (addrs []netip.Addr) {
	if _, elsewhere := svc.Labels[proxyNameLabel]; elsewhere || !s.compiler.each || len(own) == 0 {
		return nil
	}
	add := func(field, text string) {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			s.Problem(field, "write one such as 192.0.2.3 or 2001:db8::3", "%q is not an IP address", text)
			return
		}
		addr = addr.Unmap()
		family := func(of netip.Addr) bool { return of.Is4() == addr.Is4() }
		if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || !slices.ContainsFunc(own, family) || slices.Contains(addrs, addr) || slices.Contains(own, addr) {
			return
		}
		if first, taken := s.compiler.addresses[addr]; taken {
			s.Conflict(field, "give the service an address that no workload and no other service has", "address %s is that of %s, and does not lead to this service", addr, first)
			return
		}
		addrs = append(addrs, addr)
	}
	for i, text := range svc.Spec.ExternalIPs {
		add(fmt.Sprintf("spec.externalIPs[%d]", i), text)
	}
	for i, at := range svc.Status.LoadBalancer.Ingress {
		if at.IP != "" && (at.IPMode == nil || *at.IPMode == corev1.LoadBalancerIPModeVIP) && s.allMayUse(svc.Spec.LoadBalancerSourceRanges) {
			add(fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), at.IP)
		}
	}
	if len(addrs) > maxExternal {
		s.Problem("spec.externalIPs", "let several services have the addresses", "with the load balancer's, are %d: the first %d lead to the service", len(addrs), maxExternal)
		addrs = addrs[:maxExternal]
	}
	slices.SortFunc(addrs, netipCompare)
	return addrs
}

// allMayUse reports whether a load balancer's source ranges have room for the whole mesh.
// Where they have not, kube-proxy looks at each connection's source, and goes on doing so.
func (s subject) allMayUse(sources []string) bool {
	within := func(block netip.Prefix) bool {
		return slices.ContainsFunc(sources, func(text string) bool {
			source, err := netip.ParsePrefix(strings.TrimSpace(text))
			return err == nil && source.Bits() <= block.Bits() && source.Contains(block.Addr())
		})
	}
	return len(sources) == 0 || !slices.ContainsFunc(s.compiler.out.Settings.ClusterRanges, func(block netip.Prefix) bool { return !within(block) })
}
