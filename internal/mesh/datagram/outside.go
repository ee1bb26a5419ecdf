package datagram

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// MaxPorts bounds the ports that a mesh.UDPEgress names.
	MaxPorts = 64
	// MaxInside bounds what Inside returns where anything may leave.
	MaxInside = 4096
)

// Outside is the Remote of a Rule to whoever is not in the mesh: to no address that Inside
// returns. Its Port is 0 for every port that is not ClosedPort.
func Outside() netip.Addr { return netip.IPv6Unspecified() }

// ClosedPort reports whether a port outside the mesh is reached over UDP by no setting: 0
// is none, 53 is as DNS is, and those of VXLAN (4789; 8472 before RFC 7348; 4790 with other protocols
// in it, https://datatracker.ietf.org/doc/draft-ietf-nvo3-vxlan-gpe/) and Geneve (6081,
// RFC 8926) carry what the gate does not look at: a node unpacks it and passes it on,
// whoever it claims to be from. The gate has the same list, is_closed_port.
func ClosedPort(port uint16) bool {
	switch port {
	case 0, 53, 4789, 4790, 6081, 8472:
		return true
	}
	return false
}

// CheckEgress returns what is wrong with what is said of a namespace; nil if nothing is.
func CheckEgress(e mesh.UDPEgress) error {
	switch {
	case !e.Allow && len(e.Ports) > 0:
		return fmt.Errorf("%d ports of what is not let out", len(e.Ports))
	case len(e.Ports) > MaxPorts:
		return fmt.Errorf("%d ports, more than %d", len(e.Ports), MaxPorts)
	}
	for _, port := range e.Ports {
		if ClosedPort(port) {
			return fmt.Errorf("port %d is always closed", port)
		}
	}
	return nil
}

// LeavesMesh reports whether anything may leave the mesh over UDP.
func LeavesMesh(s *mesh.Settings) bool {
	for _, e := range s.UDPEgress {
		if e.Allow {
			return true
		}
	}
	return false
}

// egressOf returns what is said of a namespace.
func egressOf(s *mesh.Settings, namespace string) mesh.UDPEgress {
	if e, ok := s.UDPEgress[namespace]; ok {
		return e
	}
	return s.UDPEgress[""]
}

// special are the addresses outside every mesh's ranges to which nothing is let out: links'
// own, loopbacks, groups and what is reserved
// (https://www.iana.org/assignments/iana-ipv4-special-registry, and its twin of IPv6).
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fec0::/10"), netip.MustParsePrefix("ff00::/8"),
}

// translated are the addresses that a gateway takes for the IPv4 ones in their last four
// bytes (RFC 6052, section 2.1): inside where those are.
var translated = netip.MustParsePrefix("64:ff9b::/96")

// translate returns what a gateway takes for a block of IPv4.
func translate(block netip.Prefix) netip.Prefix {
	to, from := translated.Addr().As16(), block.Addr().As4()
	copy(to[12:], from[:])
	return netip.PrefixFrom(netip.AddrFrom16(to), translated.Bits()+block.Bits())
}

// Inside returns what is not outside of the mesh, for its gates: the cluster's ranges, what
// of the mesh lies elsewhere, and what is no single machine's address. It is sorted, and
// has each block once.
func Inside(v *mesh.View) []netip.Prefix {
	all := append(slices.Clone(special), v.Settings().ClusterRanges...)
	add := func(addrs []netip.Addr) {
		for _, addr := range addrs {
			if !v.InCluster(addr) {
				all = append(all, netip.PrefixFrom(addr, addr.BitLen()))
			}
		}
	}
	for _, w := range v.Workloads() {
		add(w.Addresses)
	}
	for _, s := range v.Services() {
		add(s.Addresses)
	}
	for _, block := range all {
		if block.Addr().Is4() {
			all = append(all, translate(block))
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

// IsOutside reports whether an address is outside the mesh, as Inside has it. An external
// address of a service is: who gets what is sent there is not the mesh's to say.
func IsOutside(v *mesh.View, addr netip.Addr) bool {
	addr = addr.Unmap()
	if _, ok := v.WorkloadAt(addr); ok || !addr.IsValid() || addr.Zone() != "" || v.InCluster(addr) {
		return false
	}
	if b := addr.As16(); addr.Is6() && translated.Contains(addr) && !IsOutside(v, netip.AddrFrom4([4]byte(b[12:]))) {
		return false
	}
	_, ok := v.ServiceAt(addr)
	return !ok && !slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// authorizeOutside decides about what a workload opens with an address that is nobody's in
// the mesh. It counts what is inside where all else lets the workload out.
func authorizeOutside(v *mesh.View, source *mesh.Workload, to netip.AddrPort) mesh.Decision {
	switch e := egressOf(v.Settings(), source.Namespace); {
	case !source.Enrolled || !IsOutside(v, to.Addr()) || ClosedPort(to.Port()):
		return refused(mesh.ReasonKernelUDP)
	case v.Revoked(source.Identity):
		return refused(mesh.ReasonIdentityRevoked)
	case !e.Allow || len(e.Ports) > 0 && !slices.Contains(e.Ports, to.Port()):
		return refused(mesh.ReasonEgressDenied)
	case !InsideFits(v):
		return refused(mesh.ReasonKernelUDP)
	}
	return mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonEgressAllowed, Rule: -1}
}

// outsideFits reports whether something may leave the mesh.
func outsideFits(v *mesh.View) bool { return LeavesMesh(v.Settings()) && InsideFits(v) }

// InsideFits reports whether a gate has room for all that is inside, MaxInside blocks: where
// it has not, nothing leaves the mesh. It costs a look at every address of the mesh, and a sort
// of those beyond its ranges where they are many.
func InsideFits(v *mesh.View) bool {
	n := len(special) + len(v.Settings().ClusterRanges)
	count := func(addrs []netip.Addr) {
		for _, addr := range addrs {
			if !v.InCluster(addr) {
				n++
			}
		}
	}
	for _, w := range v.Workloads() {
		count(w.Addresses)
	}
	for _, s := range v.Services() {
		count(s.Addresses)
	}
	return 2*n <= MaxInside || len(Inside(v)) <= MaxInside // each may be there translated, too
}

// outside adds what a workload may open with whoever is not in the mesh.
func (l *list) outside(v *mesh.View, w *mesh.Workload, fits bool) {
	e := egressOf(v.Settings(), w.Namespace)
	if !fits || !w.Enrolled || !e.Allow || v.Revoked(w.Identity) {
		return
	}
	ports := e.Ports
	if len(ports) == 0 {
		ports = []uint16{0}
	}
	for _, port := range ports {
		l.add(Rule{Remote: Outside(), Port: port})
	}
}
