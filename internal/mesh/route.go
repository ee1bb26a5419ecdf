package mesh

import (
	"net/netip"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// ReservedPort reports whether port is one that the agent itself listens on
// inside an enrolled workload's network namespace, or that of waypoints.
func ReservedPort(port uint16) bool {
	switch port {
	case OutboundPort, InboundPort, TunnelPort, DNSPort, WaypointPort:
		return true
	}
	return false
}

// Route decides where a connection of src to dst goes. A nil src is a client of
// no namespace, to whom the mesh's default egress applies. The Candidates of
// the result belong to the View and are shared: read only. Route does not
// allocate.
//
// What is dialled at a service that has a waypoint goes to that, whoever is ready of the
// service's own, but for what waypoints dial themselves. While nobody is ready of it, it
// is refused, or goes to the service's own where Bypass says so.
//
// What is dialled at a declared workload of another trust domain goes to that (ForeignAt).
//
// A workload may dial itself, directly or through a service: it is a candidate
// like any other. The agent's own ports are refused, since a connection to them
// would run in circles.
func (v *View) Route(src *Workload, dst netip.AddrPort) Route {
	addr := dst.Addr().Unmap()
	if !v.synced {
		return Route{Kind: RouteHold, Port: dst.Port(), Reason: ReasonNotSynced}
	}
	if there := v.foreign[addr]; there != nil { // first, so that nobody else is taken for it
		return routeDirect(there, dst.Port())
	}
	if service := externalAt(v.external, addr, dst.Port()); service != nil {
		return v.toService(service, src, dst.Port(), true)
	}
	if owner := workloadAt(v.owners, addr); owner != nil {
		return routeDirect(owner, dst.Port())
	}
	if service := serviceAt(v.virtual, addr); service != nil {
		return v.toService(service, src, dst.Port(), false)
	}
	if v.InCluster(addr) {
		return Route{Kind: RouteHold, Port: dst.Port(), Reason: ReasonUnknownDestination}
	}
	if why := v.Egress(src); why != ReasonEgressAllowed {
		return Route{Kind: RouteReject, Port: dst.Port(), Reason: why}
	}
	return Route{Kind: RouteEgress, Port: dst.Port(), Reason: ReasonEgressAllowed}
}

// Egress returns ReasonEgressAllowed when connections of src may leave the mesh, which they do
// in plaintext, or else why not: nobody is asked there whether its identity is revoked. A nil src
// is a client of no namespace. It does not allocate.
func (v *View) Egress(src *Workload) Reason {
	if src == nil {
		src = &Workload{}
	}
	mode, said := v.settings.EgressNamespaces[src.Namespace]
	switch {
	case src.Enrolled && v.Revoked(src.Identity):
		return ReasonIdentityRevoked
	case said && mode == EgressDeny, !said && v.settings.Egress == EgressDeny:
		return ReasonEgressDenied
	}
	return ReasonEgressAllowed
}

// RouteTo is Route for a port of a service that is named, whether it has an address or not. The
// error that there is no such service is ReasonUnknownDestination.
func (v *View) RouteTo(src *Workload, service Key, port uint16) Route {
	if !v.synced {
		return Route{Kind: RouteHold, Port: port, Reason: ReasonNotSynced}
	}
	if entry := v.entry(service); entry != nil {
		return entry.route(src, port, false)
	}
	return Route{Kind: RouteReject, Port: port, Reason: ReasonUnknownDestination}
}

// routeDirect routes to a list of one.
func routeDirect(owner []*Workload, port uint16) Route {
	if owner[0].Enrolled && ReservedPort(port) {
		return Route{Kind: RouteReject, Port: port, Reason: ReasonReservedPort}
	}
	return Route{Kind: RouteWorkload, Candidates: owner, Port: port}
}

// route leads to a port, dialled at an external address or not: there, a client in the
// cluster is not kept to its own node
// (https://kubernetes.io/docs/reference/networking/virtual-ips/#external-traffic-policy).
func (s *serviceEntry) route(src *Workload, port uint16, external bool) Route {
	i, ok := s.portIndex(port)
	if !ok {
		return Route{Kind: RouteReject, Service: s.service, Port: port, Reason: ReasonServicePortUndefined}
	}
	if s.own != nil && s.own[i] != nil {
		s = s.own[i]
	}
	target, elsewhere := s.service.Ports[i].TargetPort, s.service.Ports[i].Elsewhere
	candidates := s.ready
	if len(candidates) == 0 {
		return Route{Kind: RouteReject, Service: s.service, Port: target, Reason: ReasonNoEndpoint}
	}
	reserved := elsewhere == nil && ReservedPort(target)
	if reserved {
		if candidates = s.readyPlain; len(candidates) == 0 {
			return Route{Kind: RouteReject, Service: s.service, Port: target, Reason: ReasonReservedPort}
		}
	}
	if external && s.service.Prefer == OnlyNode {
		src = nil
	}
	if candidates = s.narrow(src, reserved, candidates); len(candidates) == 0 {
		return Route{Kind: RouteReject, Service: s.service, Port: target, Reason: ReasonNoEndpoint}
	}
	return Route{Kind: RouteWorkload, Service: s.service, Candidates: candidates, Port: target, elsewhere: elsewhere}
}

// PortOf returns the application port at one of the candidates: pods may have
// different numbers under the name that a service's port leads to.
func (r *Route) PortOf(w *Workload) uint16 {
	for i := range r.elsewhere {
		if keyed.Has(r.elsewhere[i].Endpoints, w.Key) {
			return r.elsewhere[i].TargetPort
		}
	}
	return r.Port
}

func (s *serviceEntry) portIndex(port uint16) (int, bool) {
	for i := range s.service.Ports {
		if s.service.Ports[i].Port == port {
			return i, true
		}
	}
	return 0, false
}

// InCluster reports whether an address lies in the mesh's cluster ranges, whoever has it.
func (v *View) InCluster(addr netip.Addr) bool {
	addr = addr.WithZone("") // a prefix contains no address that has a zone
	for _, block := range v.settings.ClusterRanges {
		if block.Contains(addr) {
			return true
		}
	}
	return false
}

// vacant reports whether nobody at all takes connections to a service: neither its own
// workloads nor its waypoint's.
func (v *View) vacant(s *serviceEntry, client *Workload, port uint16, external bool) bool {
	return s.route(client, port, external).Reason == ReasonNoEndpoint && v.through(s, client).Kind == RouteReject
}

// Vacant returns the addresses and ports of services at which Route refuses every
// workload of a node with ReasonNoEndpoint, in the order of the services.
func (v *View) Vacant(node string) []netip.AddrPort {
	var all []netip.AddrPort
	client := &Workload{Node: node}
	for _, s := range v.entries {
		if len(s.ready) > 0 && s.own == nil && s.service.Prefer != OnlyNode {
			continue
		}
		for _, port := range s.service.Ports {
			if v.vacant(s, client, port.Port, false) {
				for _, addr := range s.service.Addresses {
					all = append(all, netip.AddrPortFrom(addr, port.Port))
				}
			}
			if len(s.service.External) == 0 || !v.vacant(s, client, port.Port, true) {
				continue
			}
			for _, addr := range s.service.External {
				if externalAt(v.external, addr, port.Port) == s {
					all = append(all, netip.AddrPortFrom(addr, port.Port))
				}
			}
		}
	}
	return all
}
