// Package grandfather judges connections that were open before their pod was enrolled, and
// that no agent carries, when the configuration changes: which of them must end that might go
// on by the configuration before. It ends none itself, and knows nothing of gates.
//
// Nobody has proved who is at the other end: it is taken for the workload that has the
// address, by the identity of which it is judged when that is enrolled, and else as one that
// proves none. All that decides is the evaluator (internal/mesh).
package grandfather

import (
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Connection is one, by its end in an enrolled pod.
type Connection struct {
	Pod           mesh.Key
	Local, Remote netip.AddrPort
	// Inbound says that the other end opened it, as far as is known.
	Inbound bool
}

// Refusal is why a connection must end.
type Refusal struct {
	// Reason is ReasonPolicyChanged, ReasonIdentityRevoked or ReasonUnenrolled.
	Reason mesh.Reason
	// By is what the evaluator says of it now.
	By mesh.Decision
}

// Refused reports whether the View of now refuses a connection that the one before did not.
// What that refused as well goes on, since it was let live in spite of it, and so does what
// only differs in who is known to be at the other end, unless that workload has left the
// mesh. Both ends are judged where they are: of a pod's policies its own node knows. It may
// be called at once by several goroutines.
func Refused(before, now *mesh.View, c Connection, onNode wire.OnNode) (Refusal, bool) {
	own, had := before.Workload(c.Pod)
	is, has := now.Workload(c.Pod)
	if !had || !has || !own.Enrolled || !is.Enrolled {
		return Refusal{}, false
	}
	p := pair{before: side{before, own}, now: side{now, is}, c: c, onNode: onNode}
	other := p.otherEnd()
	decide := p.outbound
	if c.Inbound {
		decide = p.inbound
	}
	by, refused := decide(other)
	switch {
	case !refused:
		return Refusal{}, false
	case by.Reason == mesh.ReasonIdentityRevoked:
		return Refusal{mesh.ReasonIdentityRevoked, by}, true
	case other.left:
		return Refusal{mesh.ReasonUnenrolled, by}, true
	}
	return Refusal{mesh.ReasonPolicyChanged, by}, true
}

// side is a View, and what it says of the connection's pod.
type side struct {
	view *mesh.View
	pod  *mesh.Workload
}

// pair judges one connection by two Views.
type pair struct {
	before, now side
	c           Connection
	onNode      wire.OnNode
}

// end is who is at the other end; an identity is zero of who has none.
type end struct {
	was, is spiffeid.ID
	left    bool // the mesh; else was and is are the same
}

// otherEnd says who is known to have the other end's address. A pod that is deleted leaves
// the View before its processes end: it is who it was.
func (p *pair) otherEnd() end {
	was, had := p.before.view.WorkloadAt(p.c.Remote.Addr())
	is, has := p.now.view.WorkloadAt(p.c.Remote.Addr())
	switch {
	case !has && had:
		return end{was: identity(was), is: identity(was)}
	case has && had && was.Key == is.Key && was.Enrolled && !is.Enrolled:
		return end{was: identity(was), left: true}
	case has:
		return end{was: identity(is), is: identity(is)}
	}
	return end{}
}

func identity(w *mesh.Workload) spiffeid.ID {
	if !w.Enrolled {
		return spiffeid.ID{}
	}
	return w.Identity
}

// inbound asks the pod's own policies about who is at the other end, and whether plaintext
// may come in at the port any longer, which an identity hides.
func (p *pair) inbound(other end) (mesh.Decision, bool) {
	if _, ok := p.authorize(p.before, other.was); !ok {
		return mesh.Decision{}, false
	}
	if by, ok := p.authorize(p.now, other.is); !ok {
		return by, true
	}
	was, _ := p.authorize(p.before, spiffeid.ID{})
	by, _ := p.authorize(p.now, spiffeid.ID{})
	return by, by.Reason == mesh.ReasonStrictPlaintext && was.Reason != mesh.ReasonStrictPlaintext
}

func (p *pair) authorize(s side, peer spiffeid.ID) (mesh.Decision, bool) {
	permit, decision := wire.Authorize(s.view, mesh.Connection{
		Peer: peer, Source: p.c.Remote.Addr(), Destination: s.pod, Port: p.c.Local.Port(),
	}, p.onNode)
	return decision, permit.Valid()
}

// outbound asks whether the pod may reach the other end.
func (p *pair) outbound(other end) (mesh.Decision, bool) {
	route := p.now.view.Past(p.now.pod, p.c.Remote)
	to, away := p.destinations(&route), outside(&route)
	if _, ok := p.mayReach(p.before, other.was, to, away && !other.left); !ok {
		return mesh.Decision{}, false
	}
	by, ok := p.mayReach(p.now, other.is, to, away)
	return by, !ok
}

// mayReach asks the deny-list, NetworkPolicies, and of who goes away from the mesh whether it
// may leave that.
func (p *pair) mayReach(s side, peer spiffeid.ID, to []netip.AddrPort, away bool) (by mesh.Decision, ok bool) {
	if s.view.Revoked(peer) {
		return refused(mesh.ReasonIdentityRevoked), false
	}
	if by, ok = p.leaves(s, to); !ok || !away {
		return by, ok
	}
	if why := s.view.Egress(s.pod); why != mesh.ReasonEgressAllowed {
		return refused(why), false
	}
	return mesh.Decision{}, true
}

func refused(why mesh.Reason) mesh.Decision {
	return mesh.Decision{Verdict: mesh.VerdictDeny, Reason: why, Rule: -1}
}

// outside reports whether nobody of the mesh is where a route leads.
func outside(r *mesh.Route) bool {
	switch r.Kind {
	case mesh.RouteWorkload:
		return !slices.ContainsFunc(r.Candidates, func(w *mesh.Workload) bool { return w.Enrolled })
	case mesh.RouteEgress:
		return true
	}
	return r.Reason == mesh.ReasonEgressDenied || r.Reason == mesh.ReasonIdentityRevoked
}

// destinations are where the connection may have ended up: at a service's address, at any of
// its workloads, which the cluster's network has chosen.
func (p *pair) destinations(r *mesh.Route) []netip.AddrPort {
	if r.Service == nil {
		return []netip.AddrPort{p.c.Remote}
	}
	var all []netip.AddrPort
	for _, w := range r.Candidates {
		for _, addr := range w.Addresses {
			if addr.Is4() == p.c.Remote.Addr().Is4() {
				all = append(all, netip.AddrPortFrom(addr, r.PortOf(w)))
			}
		}
	}
	return all
}

// leaves reports whether NetworkPolicies let the pod reach one of the destinations.
func (p *pair) leaves(s side, to []netip.AddrPort) (by mesh.Decision, ok bool) {
	for _, addr := range to {
		if by, ok = wire.Leaves(s.view, s.pod, addr, p.onNode); ok {
			return by, true
		}
	}
	return by, len(to) == 0
}
