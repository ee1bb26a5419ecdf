package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/kube/check"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// MaxOutside is how many of the addresses that a service has outside are looked at: those
// of its load balancer, then its external IPs.
const MaxOutside = 256

// All agents are told of external addresses, and look each of them up with each port.
const (
	maxExternal      = 64   // addresses of a service
	maxExternalPorts = 1024 // of a service: its addresses times its ports
	maxSharing       = 64   // services of an address
)

// proxyNameLabel gives a service to another proxy than the cluster's own
// (https://kubernetes.io/docs/reference/labels-annotations-taints/#servicekubernetesioservice-proxy-name).
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// externalAddresses finds where besides its own addresses each service is reached from
// inside the cluster, at its ports, as kube-proxy has it: what its load balancer has, and
// its external IPs. A service without an address of the family has none.
//
// An address and port is one service's. What load balancers have been given comes first:
// who may write a Service may write any external IP. Then the older service has it, whatever
// its name. The others lose the address at all their ports, so that none has half of it.
func (c *compiler) externalAddresses(services []Sourced[corev1.Service], out []mesh.Service) {
	if !c.each {
		return
	}
	taken := &claims{map[netip.AddrPort]owner{}, map[netip.Addr]int{}}
	var all []*claimant
	for i, svc := range services {
		_, elsewhere := svc.Value.Labels[proxyNameLabel]
		if n := len(svc.Value.Spec.ExternalIPs) + len(svc.Value.Status.LoadBalancer.Ingress); n > 0 && !elsewhere && len(out[i].Addresses) > 0 {
			all = append(all, newClaimant(c.subject("Service", svc.Value, svc.Origin), svc.Value, &out[i], taken))
		}
	}
	for _, s := range all {
		s.balanced()
	}
	for _, s := range all {
		s.externalIPs()
		slices.SortFunc(s.out.External, netipCompare)
	}
}

// claims are the external addresses that services have.
type claims struct {
	at      map[netip.AddrPort]owner
	sharing map[netip.Addr]int
}

// claimant is a service whose external addresses are being found.
type claimant struct {
	subject
	svc   *corev1.Service
	out   *mesh.Service
	taken *claims
	ports []uint16
	most  int          // of addresses
	tried []netip.Addr // had or not
	said  map[string]bool
	open  map[bool]bool // see isOpen
}

func newClaimant(s subject, svc *corev1.Service, out *mesh.Service, taken *claims) *claimant {
	cl := &claimant{subject: s, svc: svc, out: out, taken: taken, most: maxExternal, said: map[string]bool{}, open: map[bool]bool{}}
	for _, p := range svc.Spec.Ports {
		if (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) && p.Port >= 1 && p.Port <= 65535 {
			cl.ports = append(cl.ports, uint16(p.Port))
		}
	}
	cl.most = min(cl.most, maxExternalPorts/max(1, len(cl.ports)))
	return cl
}

// balanced claims what the load balancer has, unless connections are to pass that one
// (ipMode Proxy, https://kubernetes.io/docs/concepts/services-networking/service/#load-balancer-ip-mode)
// or not all of the mesh may use it.
func (s *claimant) balanced() {
	for i, at := range s.svc.Status.LoadBalancer.Ingress {
		if i == MaxOutside {
			s.tooMany(MaxOutside)
			return
		}
		if at.IP != "" && (at.IPMode == nil || *at.IPMode == corev1.LoadBalancerIPModeVIP) && !s.claimOutside(fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), at.IP, true) {
			return
		}
	}
}

func (s *claimant) externalIPs() {
	for i, text := range s.svc.Spec.ExternalIPs {
		if i+len(s.svc.Status.LoadBalancer.Ingress) >= MaxOutside {
			s.tooMany(MaxOutside)
			return
		}
		if !s.claimOutside(fmt.Sprintf("spec.externalIPs[%d]", i), text, false) {
			return
		}
	}
}

// claimOutside claims one address. It returns false when no more are looked at.
func (s *claimant) claimOutside(field, text string, balanced bool) bool {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		if s.first("text") {
			s.Problem(field, "write one such as 192.0.2.3 or 2001:db8::3", "%q is not an IP address", text)
		}
		return true
	}
	addr = addr.Unmap()
	family := func(of netip.Addr) bool { return of.Is4() == addr.Is4() }
	if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || !slices.ContainsFunc(s.out.Addresses, family) || slices.Contains(s.out.Addresses, addr) ||
		slices.Contains(s.tried, addr) || balanced && !s.isOpen(addr.Is4()) {
		return true
	}
	if len(s.tried) == s.most {
		s.tooMany(s.most)
		return false
	}
	s.tried = append(s.tried, addr)
	if s.has(field, addr) {
		s.out.External = append(s.out.External, addr)
	}
	return true
}

// has makes an address the service's, at all its ports, or says why it is not.
func (s *claimant) has(field string, addr netip.Addr) bool {
	ranges := s.compiler.out.Settings.ClusterRanges
	if slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		if s.first("range") {
			s.Problem(field, "give the service an address outside spec.clusterRanges of the Mesh", "address %s is inside the mesh's cluster ranges (%s), and does not lead to this service", addr, list(ranges))
		}
		return false
	}
	if first, taken := s.compiler.addresses[addr]; taken {
		s.conflict(field, "address %s is that of %s, and does not lead to this service", addr, first)
		return false
	}
	if n := s.taken.sharing[addr]; n >= maxSharing {
		s.conflict(field, "address %s leads to %d other services, and not to this one", addr, n)
		return false
	}
	for _, port := range s.ports {
		if first, taken := s.taken.at[netip.AddrPortFrom(addr, port)]; taken {
			s.conflict(field, "port %d of address %s leads to %s, and the address does not lead to this service", port, addr, first)
			return false
		}
	}
	for _, port := range s.ports {
		s.taken.at[netip.AddrPortFrom(addr, port)] = s.owner()
	}
	s.taken.sharing[addr]++
	return true
}

// conflict is said of one address of a service: it is one thing to look into.
func (s *claimant) conflict(field, format string, args ...any) {
	if s.first("conflict") {
		s.Conflict(field, "give the service an address that no workload has, and no other service at the same port", format, args...)
	}
}

func (s *claimant) tooMany(looked int) {
	if s.first("many") {
		s.Problem("spec.externalIPs", "let several services have the addresses, or the ports", "with the load balancer's, are %d, at %d ports: only the first %d are looked at",
			len(s.svc.Spec.ExternalIPs)+len(s.svc.Status.LoadBalancer.Ingress), len(s.ports), looked)
	}
}

// first reports whether a thing has not been said of the service yet.
func (s *claimant) first(what string) bool {
	first := !s.said[what]
	s.said[what] = true
	return first
}

// isOpen reports whether all of the mesh may use the load balancer's addresses of a family.
// It finds out once: the source ranges may be many.
func (s *claimant) isOpen(is4 bool) bool {
	open, known := s.open[is4]
	if !known {
		open = check.AllMayUse(s.svc.Spec.LoadBalancerSourceRanges, s.compiler.out.Settings.ClusterRanges, is4)
		s.open[is4] = open
	}
	return open
}
