package mesh

import "maps"

// nearEntry has a service's ready workloads by where they are.
type nearEntry struct {
	byNode, byZone map[string][]*Workload
}

// nearness indexes ready workloads; by node only where that matters. Where nothing
// but the client's node does, a node without ready ones has those of its own that leave.
func nearness(ready, leaving []*Workload, prefer Nearness) *nearEntry {
	n := &nearEntry{byZone: map[string][]*Workload{}}
	if prefer != SameZone {
		n.byNode = map[string][]*Workload{}
	}
	for _, w := range ready {
		if w.Zone != "" {
			n.byZone[w.Zone] = append(n.byZone[w.Zone], w)
		}
		if prefer != SameZone {
			n.byNode[w.Node] = append(n.byNode[w.Node], w)
		}
	}
	if prefer != OnlyNode {
		return n
	}
	last := map[string][]*Workload{}
	for _, w := range leaving {
		if len(n.byNode[w.Node]) == 0 {
			last[w.Node] = append(last[w.Node], w)
		}
	}
	maps.Copy(n.byNode, last)
	return n
}

// narrow leaves those candidates that the service wants for a client: near ones
// while there are any. A client of no namespace has no place. Candidates is not empty, and is what is left when
// nothing narrows it; nobody is left where only the client's node counts, and has
// none. A reserved port is for plain candidates only, and those are not indexed by
// place.
func (s *serviceEntry) narrow(src *Workload, reserved bool, candidates []*Workload) []*Workload {
	if src == nil {
		return candidates
	}
	if s.near != nil && !reserved {
		if on := s.near.byNode[src.Node]; len(on) > 0 || s.service.Prefer == OnlyNode {
			candidates = on
		} else if in := s.near.byZone[src.Zone]; len(in) > 0 {
			candidates = in
		}
	}
	return candidates
}
