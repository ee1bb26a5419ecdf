package kernel

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// servicesLink has the addresses of services, where kube-proxy balances by IPVS:
// who connects to them does not connect to the node.
const servicesLink = "kube-ipvs0"

// OnNode reports whether an address is the node's own, by the routes of the
// caller's network namespace. It asks the kernel each time.
func OnNode(addr netip.Addr) bool {
	ip := addr.Unmap().AsSlice()
	if ip == nil {
		return false
	}
	routes, err := netlink.RouteGet(ip)
	if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
		return false // an error is of an address that nothing leads to
	}
	link, err := netlink.LinkByName(servicesLink)
	if err != nil {
		return true // as on most nodes, there is none
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if a.IP.Equal(ip) {
			return false
		}
	}
	return true
}
