// Package service has what a mesh knows of one service. It decides nothing. A service
// that is part of a View is read only, and safe for concurrent use.
package service

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// ClusterDomain is the DNS domain of service names.
const ClusterDomain = "cluster.local"

// ExternalNamespace is that of endpoints which are in no mesh: no namespace of Kubernetes can
// have this name. Their names are their addresses, and nothing about them is proved.
const ExternalNamespace = "EXTERNAL"

// Service is a name and an address set for a changing set of workloads.
type Service struct {
	keyed.Key
	// Addresses are the virtual addresses; may be empty (headless).
	Addresses []netip.Addr
	// External are addresses that lead to the service at its ports only, and are
	// anybody's otherwise: several services may have one. Whoever makes services gives
	// an address and port to one; of several, the first by name has it. Sorted.
	External []netip.Addr
	Ports    []Port
	// Endpoints names the selected workloads, ready or not, sorted.
	Endpoints []keyed.Key
	// Prefer narrows the candidates to those that are near the client, while
	// there are any.
	Prefer Nearness
	// Sticky sends all connections of one client to the same workload, as long as
	// that is ready and no pause between two of them is longer than StickyFor, in
	// whole seconds; 0 is DefaultSticky.
	Sticky    bool
	StickyFor time.Duration
	// Unready takes the service's workloads for ready, whatever they are.
	Unready bool
	// UDPPorts are the ports over UDP: no more than Port and TargetPort, which all
	// endpoints have. Nothing is routed to them: see package datagram.
	UDPPorts []Port
	// Waypoint is the service whose workloads take the connections to this one's addresses
	// and ports in place of its own, and choose one of those; zero where none does.
	Waypoint keyed.Key
	// Bypass lets connections past a waypoint that does not answer.
	Bypass bool
}

// DefaultSticky is Kubernetes' own default of
// spec.sessionAffinityConfig.clientIP.timeoutSeconds.
const DefaultSticky = 3 * time.Hour

// Nearness says which workloads of a service a client prefers.
type Nearness uint8

// The kinds of nearness. The zero value has no preference.
const (
	AnyDistance Nearness = iota
	// SameZone prefers workloads in the client's zone.
	SameZone
	// SameNode prefers workloads on the client's node, then those in its zone.
	SameNode
	// OnlyNode leaves out workloads on other nodes than the client's: where it has
	// none, the service has none.
	OnlyNode
)

// Hostname returns the name that workloads look the service up by,
// NAME.NAMESPACE.svc.cluster.local.
func (s *Service) Hostname() string { return s.Name + "." + s.Namespace + ".svc." + ClusterDomain }

// Port maps a service's port to the workloads' port.
type Port struct {
	Name             string
	Port, TargetPort uint16
	// AppProtocol is what the service says is spoken at the port (Kubernetes,
	// "appProtocol"), as it is written there; "" for nothing.
	AppProtocol string
	// Only are the endpoints that have this port, when not all of the service's have
	// it; sorted. Agents are told an empty list as none: a port that no endpoint has is
	// that of a name which no workload has.
	Only []keyed.Key
	// Elsewhere has those that have it under other numbers than TargetPort, and are not
	// among Only, which is set then.
	Elsewhere []PortElsewhere
}

// PortElsewhere is the number that a service's port has at some endpoints, sorted.
type PortElsewhere struct {
	TargetPort uint16
	Endpoints  []keyed.Key
}

// String returns {NAME PORT TARGET}, with what is spoken there, if the service says so, and the endpoints that alone have
// the port.
func (p Port) String() string {
	text := fmt.Sprintf("{%s %d %d", p.Name, p.Port, p.TargetPort)
	if p.AppProtocol != "" {
		text += " " + p.AppProtocol
	}
	if p.Only == nil {
		return text + "}"
	}
	text += fmt.Sprintf(" of %v", p.Only)
	for _, e := range p.Elsewhere {
		text += fmt.Sprintf(" %d of %v", e.TargetPort, e.Endpoints)
	}
	return text + "}"
}

// Having are the endpoints that have a port under any number, sorted, when not all
// have it under the same.
func (p *Port) Having() []keyed.Key {
	if p.Elsewhere == nil {
		return p.Only
	}
	all := slices.Clone(p.Only)
	for i := range p.Elsewhere {
		all = append(all, p.Elsewhere[i].Endpoints...)
	}
	return keyed.SortedKeys(all)
}

// EachExternal calls f for each external address of a service, with each port.
func (s *Service) EachExternal(f func(netip.Addr, uint16)) {
	for _, addr := range s.External {
		for i := range s.Ports {
			f(addr, s.Ports[i].Port)
		}
	}
}

// EachTarget calls f for each number that a port of the service has at one of its endpoints.
func (s *Service) EachTarget(w keyed.Key, f func(port uint16)) {
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Only == nil || keyed.Has(p.Only, w) {
			f(p.TargetPort)
		}
		for j := range p.Elsewhere {
			if keyed.Has(p.Elsewhere[j].Endpoints, w) {
				f(p.Elsewhere[j].TargetPort)
			}
		}
	}
}

// Owns reports whether a workload is an endpoint of the service's own namespace. Others are at
// addresses that somebody wrote down, and may be anybody's: they take connections, but nobody
// is a waypoint by them, or let in on their account.
func (s *Service) Owns(w keyed.Key) bool {
	return w.Namespace == s.Namespace && keyed.Has(s.Endpoints, w)
}

// HasWaypoint reports whether a waypoint that may act for the service is named: one of its own
// namespace.
func (s *Service) HasWaypoint() bool {
	return s.Waypoint != (keyed.Key{}) && s.Waypoint.Namespace == s.Namespace
}

// LeadsTo reports whether a service has an endpoint at one of its ports' numbers there.
func (s *Service) LeadsTo(w keyed.Key, port uint16) bool {
	if !keyed.Has(s.Endpoints, w) {
		return false
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.TargetPort == port && (p.Only == nil || keyed.Has(p.Only, w)) {
			return true
		}
		for j := range p.Elsewhere {
			if p.Elsewhere[j].TargetPort == port && keyed.Has(p.Elsewhere[j].Endpoints, w) {
				return true
			}
		}
	}
	return false
}

// Members are all that a service says of workloads, sorted.
func (s *Service) Members() []keyed.Key {
	all := s.Endpoints
	for i := range s.Ports {
		if own := s.Ports[i].Having(); slices.ContainsFunc(own, func(k keyed.Key) bool { return !keyed.Has(s.Endpoints, k) }) {
			all = append(slices.Clone(all), own...)
		}
	}
	if len(all) > len(s.Endpoints) {
		return keyed.SortedKeys(all)
	}
	return all
}

// CheckPorts says what is wrong with the service's ports.
func (s *Service) CheckPorts() (faults []error) {
	for i, p := range s.Ports {
		if p.Port == 0 || p.TargetPort == 0 {
			faults = append(faults, fmt.Errorf("service %v: port %d to %d: ports begin at 1", s.Key, p.Port, p.TargetPort))
		}
		for _, e := range p.Elsewhere {
			if e.TargetPort == 0 || !keyed.Ascending(e.Endpoints) {
				faults = append(faults, fmt.Errorf("service %v: port %d to %d elsewhere: ports begin at 1, and endpoints are sorted", s.Key, p.Port, e.TargetPort))
			}
		}
		if slices.ContainsFunc(s.Ports[:i], func(q Port) bool { return q.Port == p.Port }) {
			faults = append(faults, fmt.Errorf("service %v: port %d is defined twice", s.Key, p.Port))
		}
	}
	return faults
}

// CountExternal is how many external addresses services have, each with each port.
func CountExternal(services []*Service) (n int) {
	for _, s := range services {
		n += len(s.External) * len(s.Ports)
	}
	return n
}
