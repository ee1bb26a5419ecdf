package podnet

import (
	"net"
	"net/netip"
)

// OriginalDst returns where the peer of a connection that one of the agent's
// listeners accepted wanted to go. Redirection rewrites nothing, so that it is
// the connection's own local address.
func OriginalDst(c net.Conn) netip.AddrPort { return addrPort(c.LocalAddr()) }

// Client returns the true address of the peer of an accepted connection.
func Client(c net.Conn) netip.AddrPort { return addrPort(c.RemoteAddr()) }

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
