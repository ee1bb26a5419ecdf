package workload

import "net/netip"

// ForClient picks one of a service's workloads for a client by rendezvous hashing: it gives the
// client another one only when that goes, or when a new one is its own. Addr is unmapped. It
// returns nil when there is none.
func ForClient(addr netip.Addr, among []*Workload) (pick *Workload) {
	best := uint64(0)
	for _, w := range among {
		if score := mix(addr, w.Addresses[0]); pick == nil || score >= best {
			best, pick = score, w
		}
	}
	return pick
}

// mix is FNV-1a over both addresses, with a finalizer: FNV alone is weak in the
// high bits of short inputs, which a comparison looks at first.
func mix(a, b netip.Addr) uint64 {
	hash := uint64(14695981039346656037)
	for _, addr := range [...][16]byte{a.As16(), b.As16()} {
		for _, octet := range addr {
			hash = (hash ^ uint64(octet)) * 1099511628211
		}
	}
	hash = (hash ^ hash>>33) * 0xff51afd7ed558ccd
	return hash ^ hash>>33
}
