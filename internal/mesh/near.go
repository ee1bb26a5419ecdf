package mesh

import "net/netip"

// nearEntry has a service's ready workloads by where they are.
type nearEntry struct {
	byNode, byZone map[string][]*Workload
}

// nearness indexes ready workloads; by node only where that is preferred.
func nearness(ready []*Workload, prefer Nearness) *nearEntry {
	n := &nearEntry{byZone: map[string][]*Workload{}}
	if prefer == SameNode {
		n.byNode = map[string][]*Workload{}
	}
	for _, w := range ready {
		if w.Zone != "" {
			n.byZone[w.Zone] = append(n.byZone[w.Zone], w)
		}
		if prefer == SameNode {
			n.byNode[w.Node] = append(n.byNode[w.Node], w)
		}
	}
	return n
}

// narrow leaves those candidates that the service wants for a client: near ones
// while there are any, and one of them when it is sticky. A client of no
// namespace has no place. Candidates is not empty, and is what is left when
// nothing narrows it. A reserved port is for plain candidates only, and those
// are not indexed by place.
func (s *serviceEntry) narrow(src *Workload, port uint16, candidates []*Workload) []*Workload {
	if src == nil {
		return candidates
	}
	if s.near != nil && !ReservedPort(port) {
		if on := s.near.byNode[src.Node]; len(on) > 0 {
			candidates = on
		} else if in := s.near.byZone[src.Zone]; len(in) > 0 {
			candidates = in
		}
	}
	if !s.service.Sticky || len(src.Addresses) == 0 {
		return candidates
	}
	i := stick(src.Addresses[0], candidates)
	return candidates[i : i+1]
}

// stick picks by rendezvous hashing: a client moves only when the workload that
// it is with goes, or when a new one is its own.
func stick(client netip.Addr, candidates []*Workload) int {
	best, at := uint64(0), 0
	for i, w := range candidates {
		if score := mix(client, w.Addresses[0]); score >= best {
			best, at = score, i
		}
	}
	return at
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
