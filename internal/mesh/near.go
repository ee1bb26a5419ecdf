package mesh

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
		if on := s.near.ByNode[src.Node]; len(on) > 0 || s.service.Prefer == OnlyNode {
			candidates = on
		} else if in := s.near.ByZone[src.Zone]; len(in) > 0 {
			candidates = in
		}
	}
	return candidates
}
