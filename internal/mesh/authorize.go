package mesh

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/policy"
)

// Permit proves that a connection was authorized. Only Authorize makes valid
// ones, so that a function which takes a Permit cannot be called without the
// decision. It may be copied; it says nothing about policy that came later.
type Permit struct {
	peer        spiffeid.ID
	destination *Workload
	port        uint16
	behind      netip.AddrPort
}

// Valid reports whether the Permit came from Authorize. The zero one did not.
func (p Permit) Valid() bool { return p.destination != nil }

// Peer returns the identity that was authorized, zero for plaintext.
func (p Permit) Peer() spiffeid.ID { return p.peer }

// Destination returns the workload that may be connected to.
func (p Permit) Destination() *Workload { return p.destination }

// Port returns the application port that may be connected to.
func (p Permit) Port() uint16 { return p.port }

// Behind returns the address and port of the service that a waypoint may be asked for;
// zero for a connection that is the destination's own.
func (p Permit) Behind() netip.AddrPort { return p.behind }

// Authorize decides whether a connection may reach its destination. The
// destination is looked up by its key, so a Connection that was filled from an
// older View is judged by this one.
//
// What a waypoint is asked for on behalf of a service is judged there, request by request,
// by the policies of the workload that it is for; those that select the waypoint's own
// workload are about its own connections. For the same reason policies are not asked about
// what a waypoint sends on to a workload of such a service, at a port that the service
// leads to: they were, where the client was known.
//
// In order: where either end proves an identity that is revoked it is refused, and so is
// one of a trust domain that is not federated, whatever is asked for; a waypoint that is
// asked for what it is no waypoint of refuses; a probe
// to a declared probe port is let in; plaintext to a STRICT port is refused, and so is
// what else there is to a revoked destination; a client that no NetworkPolicy of an
// isolated destination admits is refused; what goes to or comes from a waypoint, as said,
// is let in; a matching DENY policy refuses; a matching
// ALLOW policy lets in; when ALLOW policies select the workload and none matched, it
// is refused, but for a former waypoint, whose requests were judged there; else it is let in, unless it is of another trust domain, for which an ALLOW
// policy must name it. Among policies that match, the first by key decides,
// and its first matching rule.
//
// What policies say of requests is asked about Connection.Request. Without it what they
// name lets nobody in, and refuses who might send such requests, with ReasonRequestUnseen: a
// connection that is let in may bring any request.
//
// It allocates nothing unless AUDIT policies match.
func (v *View) Authorize(c Connection) (Permit, Decision) {
	w, set, refusal := v.destination(&c)
	if w == nil {
		return Permit{}, refused(refusal)
	}
	plaintext, asked, foreign := c.Peer.IsZero(), c.Behind.IsValid(), v.Foreign(c.Peer)
	switch {
	case !plaintext && (v.Revoked(c.Peer) || v.Revoked(w.Identity)):
		return Permit{}, refused(ReasonIdentityRevoked)
	case foreign && !v.Federated(c.Peer.TrustDomain()):
		return Permit{}, refused(ReasonNotFederated)
	case asked && (plaintext || c.Port != WaypointPort || !w.Enrolled || !c.Former && v.Behind(c.Behind, w.Key) == nil):
		return Permit{}, refused(ReasonAuthorityMismatch)
	case w.Enrolled && ReservedPort(c.Port) && !asked:
		return Permit{}, refused(ReasonReservedPort)
	case plaintext && c.Probe && w.IsProbePort(c.Port):
		return permit(w, &c), Decision{Verdict: VerdictAllow, Reason: ReasonProbe, Rule: -1}
	case plaintext && w.ModeOf(c.Port) == ModeStrict:
		return Permit{}, refused(ReasonStrictPlaintext)
	case v.Revoked(w.Identity):
		return Permit{}, refused(ReasonIdentityRevoked)
	}
	if by, ok := v.admits(w, set, &c); !ok {
		return Permit{}, Decision{Verdict: VerdictDeny, Reason: ReasonNetworkPolicyIngress, Policy: Key(by), Rule: -1}
	}
	switch {
	case asked:
		return permit(w, &c), Decision{Verdict: VerdictAllow, Reason: ReasonWaypoint, Rule: -1}
	case set.Empty() && !foreign:
		return permit(w, &c), Decision{Verdict: VerdictAllow, Reason: defaultReason(plaintext), Rule: -1}
	case !plaintext && v.SentOn(w, c.Peer, c.Port):
		return permit(w, &c), Decision{Verdict: VerdictAllow, Reason: ReasonWaypoint, Rule: -1}
	}
	decision := set.decide(&policy.Attributes{
		Peer:      c.Peer,
		Foreign:   foreign,
		Namespace: NamespaceOf(v.settings.TrustDomain, c.Peer),
		Source:    c.Source.Unmap().WithZone(""),
		Port:      c.Port,
		Request:   c.Request,
		Judged:    c.Former,
	})
	if decision.Verdict == VerdictDeny {
		return Permit{}, decision
	}
	return permit(w, &c), decision
}

// destination returns this View's workload for c and what policies say of it, or the
// reason why there is none.
func (v *View) destination(c *Connection) (*Workload, *policySet, Reason) {
	if !v.synced {
		return nil, nil, ReasonNotSynced
	}
	if c.Destination != nil {
		if w, set := v.current(c.Destination); w != nil {
			return w, set, ReasonUnknown
		}
	}
	return nil, nil, ReasonUnknownDestination
}

// current returns this View's workload for one that may be an older View's, nil where
// there is none, and what policies say of it.
func (v *View) current(w *Workload) (*Workload, *policySet) {
	if set, ok := v.policySets.Load(w); ok {
		return w, set.(*policySet) // it was found before
	}
	if w, ok := v.Workload(w.Key); ok {
		return w, v.policySet(w)
	}
	return nil, nil
}

func permit(w *Workload, c *Connection) Permit {
	return Permit{peer: c.Peer, destination: w, port: c.Port, behind: c.Behind}
}

func refused(reason Reason) Decision {
	return Decision{Verdict: VerdictDeny, Reason: reason, Rule: -1}
}

// defaultReason is why a connection is let in when no ALLOW policy selects its
// destination.
func defaultReason(plaintext bool) Reason {
	if plaintext {
		return ReasonPermissive
	}
	return ReasonNoPolicy
}
