package wire

import (
	"net"
	"net/netip"
)

// AddrPort is a TCP address as the mesh's configuration has it; zero for others.
func AddrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return Unmap(tcp.AddrPort())
	}
	return netip.AddrPort{}
}

// Unmap makes an IPv4-mapped IPv6 address the IPv4 one.
func Unmap(ap netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()) }
