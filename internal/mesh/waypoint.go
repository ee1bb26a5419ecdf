package mesh

import (
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/index"
)

// behind is how many services have a waypoint: one or more.
type behind struct {
	waypoint Key
	services int
}

// countBehind counts a service that has, or no longer has, a waypoint.
func (b *viewBuilder) countBehind(s *Service, more int) {
	if !s.HasWaypoint() {
		return
	}
	waypoint := s.Waypoint
	hash := index.OfTexts(waypoint.Namespace, waypoint.Name)
	n := behind{waypoint, more}
	for _, was := range b.behind.Bucket(hash) {
		if was.waypoint == waypoint {
			n.services += was.services
		}
	}
	b.behind.Remove(hash, func(b behind) bool { return b.waypoint == waypoint })
	if n.services > 0 {
		b.behind.Add(hash, n)
	}
}

// toService leads to a service, through its waypoint when it has one.
func (v *View) toService(s *serviceEntry, src *Workload, port uint16, external bool) Route {
	direct := s.route(src, port, external)
	if s.service.Waypoint == (Key{}) || direct.Reason == ReasonServicePortUndefined || v.IsWaypoint(src) {
		return direct
	}
	through := v.through(s, src)
	if through.Kind == RouteReject && s.service.Bypass {
		return direct
	}
	return through
}

// through leads to a service's waypoint.
func (v *View) through(s *serviceEntry, src *Workload) Route {
	refused := Route{Kind: RouteReject, Service: s.service, Port: WaypointPort, Reason: ReasonNoEndpoint}
	w := v.entry(s.service.Waypoint)
	if w == nil || !s.service.HasWaypoint() {
		return refused
	}
	refused.Waypoint = w.service
	candidates := w.hops
	if len(candidates) > 0 {
		candidates = w.narrow(src, len(w.hops) < len(w.ready), candidates)
	}
	if len(candidates) == 0 {
		return refused
	}
	return Route{Kind: RouteWorkload, Service: s.service, Waypoint: w.service, Candidates: candidates, Port: WaypointPort}
}

// Past is Route past the waypoint of the service that has the dialled address, which did
// not answer; it is called where Route.Service lets connections past it.
func (v *View) Past(src *Workload, dst netip.AddrPort) Route {
	s, external := v.serviceFor(dst)
	if s == nil {
		return v.Route(src, dst)
	}
	return s.route(src, dst.Port(), external)
}

// serviceFor returns the service to which an address and port lead, and whether the
// address is an external one; nil when there is none.
func (v *View) serviceFor(dst netip.AddrPort) (s *serviceEntry, external bool) {
	addr := dst.Addr().Unmap()
	if v.foreign[addr] != nil {
		return nil, false
	}
	if s := externalAt(v.external, addr, dst.Port()); s != nil {
		return s, true
	}
	if workloadAt(v.owners, addr) != nil {
		return nil, false
	}
	return serviceAt(v.virtual, addr), false
}

// Behind returns the service at an address and port when a workload is one of its
// waypoint's; nil when it is not.
func (v *View) Behind(dst netip.AddrPort, waypoint Key) *Service {
	s, _ := v.serviceFor(dst)
	if s == nil || !s.service.HasWaypoint() {
		return nil
	}
	if _, ok := s.portIndex(dst.Port()); !ok {
		return nil
	}
	if w := v.entry(s.service.Waypoint); w == nil || !w.service.Owns(waypoint) {
		return nil
	}
	return s.service
}

// IsWaypoint reports whether a workload is one of a service that is a waypoint of others.
func (v *View) IsWaypoint(w *Workload) bool {
	if w == nil {
		return false
	}
	for _, name := range v.endpoints.Bucket(index.OfTexts(w.Namespace, w.Name)) {
		s := v.entry(*name)
		if s == nil || !s.service.Owns(w.Key) {
			continue
		}
		for _, b := range v.behind.Bucket(index.OfTexts(name.Namespace, name.Name)) {
			if b.waypoint == *name {
				return true
			}
		}
	}
	return false
}

// AnyWaypoint calls f for each service with a waypoint that leads to a workload, all three
// of one namespace: who may write a service there decides about nobody else's workloads. It
// ends when f returns true, and returns that.
func (v *View) AnyWaypoint(w *Workload, f func(s, waypoint *Service) bool) bool {
	for _, name := range v.endpoints.Bucket(index.OfTexts(w.Namespace, w.Name)) {
		s := v.entry(*name)
		if s == nil || !s.service.HasWaypoint() || w.Namespace != s.service.Namespace || !s.service.Owns(w.Key) {
			continue
		}
		if waypoint := v.entry(s.service.Waypoint); waypoint != nil && f(s.service, waypoint.service) {
			return true
		}
	}
	return false
}

// SentOn reports whether a client is, by its identity, of the waypoint of a service that
// leads to a workload at a port. By its address it may be too new to be known.
func (v *View) SentOn(w *Workload, client spiffeid.ID, port uint16) bool {
	if v.behind.Empty() || NamespaceOf(v.settings.TrustDomain, client) != w.Namespace {
		return false // a waypoint's workloads are of its own namespace
	}
	return v.AnyWaypoint(w, func(s, waypoint *Service) bool {
		return s.LeadsTo(w.Key, port) && slices.ContainsFunc(waypoint.Endpoints, func(key Key) bool {
			from, ok := v.Workload(key)
			return ok && from.Enrolled && from.Identity == client
		})
	})
}

// Sent is one thing that SentOn says yes of.
type Sent struct {
	To     Key
	Client spiffeid.ID
	Port   uint16
}

// Sent returns all that SentOn says yes of, of a node's workloads.
func (v *View) Sent(node string) map[Sent]bool {
	all := map[Sent]bool{}
	for _, w := range v.OnNode(node) {
		v.AnyWaypoint(w, func(s, waypoint *Service) bool {
			last := spiffeid.ID{} // of most waypoints, all workloads have the same
			for _, key := range waypoint.Endpoints {
				from, ok := v.Workload(key)
				if !ok || !from.Enrolled || from.Identity == last || NamespaceOf(v.settings.TrustDomain, from.Identity) != w.Namespace {
					continue
				}
				last = from.Identity
				s.EachTarget(w.Key, func(port uint16) { all[Sent{w.Key, last, port}] = true })
			}
			return false
		})
	}
	return all
}

// MaySendOn reports whether a client of which SentOn says no may be a waypoint of the
// workload's services to a View that comes: its workload is one of a Service of the
// namespace that leads to WaypointPort, or is not known yet.
func (v *View) MaySendOn(w *Workload, client spiffeid.ID, source netip.Addr) bool {
	if client.IsZero() || NamespaceOf(v.settings.TrustDomain, client) != w.Namespace {
		return false
	}
	from, known := v.WorkloadAt(source)
	if !known || from.Identity != client {
		return true
	}
	for _, name := range v.endpoints.Bucket(index.OfTexts(from.Namespace, from.Name)) {
		if s := v.entry(*name); s != nil && s.service.Owns(from.Key) && s.service.LeadsTo(from.Key, WaypointPort) {
			return true
		}
	}
	return false
}
