package workload

import (
	"net/netip"
	"slices"
)

// PlainAddresses returns addresses as a View has them: unmapped and sorted.
func PlainAddresses(addrs []netip.Addr) []netip.Addr {
	unmapped := make([]netip.Addr, len(addrs))
	for i, addr := range addrs {
		unmapped[i] = addr.Unmap()
	}
	slices.SortFunc(unmapped, netip.Addr.Compare)
	return unmapped
}

// Plain reports whether PlainAddresses would change nothing. What other Views
// share must not be written to.
func Plain(addrs []netip.Addr) bool {
	return !slices.ContainsFunc(addrs, netip.Addr.Is4In6) && slices.IsSortedFunc(addrs, netip.Addr.Compare)
}
