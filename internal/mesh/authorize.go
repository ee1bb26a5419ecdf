package mesh

import (
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
}

// Valid reports whether the Permit came from Authorize. The zero one did not.
func (p Permit) Valid() bool { return p.destination != nil }

// Peer returns the identity that was authorized, zero for plaintext.
func (p Permit) Peer() spiffeid.ID { return p.peer }

// Destination returns the workload that may be connected to.
func (p Permit) Destination() *Workload { return p.destination }

// Port returns the application port that may be connected to.
func (p Permit) Port() uint16 { return p.port }

// Authorize decides whether a connection may reach its destination. The
// destination is looked up by its key, so a Connection that was filled from an
// older View is judged by this one.
//
// In order: where either end proves an identity that is revoked it is refused; a probe
// to a declared probe port is let in; plaintext to a STRICT port is refused, and so is
// what else there is to a revoked destination; a client that no NetworkPolicy of an
// isolated destination admits is refused; a matching DENY policy refuses; a matching
// ALLOW policy lets in; when ALLOW policies select the workload and none matched, it
// is refused; else it is let in. Among policies that match, the first by key decides,
// and its first matching rule.
//
// It allocates nothing unless AUDIT policies match.
func (v *View) Authorize(c Connection) (Permit, Decision) {
	w, refusal := v.destination(&c)
	if w == nil {
		return Permit{}, refused(refusal)
	}
	plaintext := c.Peer.IsZero()
	switch {
	case !plaintext && (v.Revoked(c.Peer) || v.Revoked(w.Identity)):
		return Permit{}, refused(ReasonIdentityRevoked)
	case w.Enrolled && ReservedPort(c.Port):
		return Permit{}, refused(ReasonReservedPort)
	case plaintext && c.Probe && w.IsProbePort(c.Port):
		return permit(w, &c), Decision{Verdict: VerdictAllow, Reason: ReasonProbe, Rule: -1}
	case plaintext && w.ModeOf(c.Port) == ModeStrict:
		return Permit{}, refused(ReasonStrictPlaintext)
	case v.Revoked(w.Identity):
		return Permit{}, refused(ReasonIdentityRevoked)
	}
	set := v.policySet(w)
	if by, ok := v.admits(w, set, &c); !ok {
		return Permit{}, Decision{Verdict: VerdictDeny, Reason: ReasonNetworkPolicyIngress, Policy: Key(by), Rule: -1}
	}
	if set.Empty() {
		return permit(w, &c), Decision{Verdict: VerdictAllow, Reason: defaultReason(plaintext), Rule: -1}
	}
	decision := set.decide(&policy.Attributes{
		Peer:      c.Peer,
		Namespace: NamespaceOf(v.settings.TrustDomain, c.Peer),
		Source:    c.Source.Unmap().WithZone(""),
		Port:      c.Port,
	})
	if decision.Verdict == VerdictDeny {
		return Permit{}, decision
	}
	return permit(w, &c), decision
}

// destination returns this View's workload for c, or the reason why there is
// none.
func (v *View) destination(c *Connection) (*Workload, Reason) {
	if !v.synced {
		return nil, ReasonNotSynced
	}
	if c.Destination == nil {
		return nil, ReasonUnknownDestination
	}
	w, ok := v.current(c.Destination)
	if !ok {
		return nil, ReasonUnknownDestination
	}
	return w, ReasonUnknown
}

// current returns this View's workload for one that may be an older View's.
func (v *View) current(w *Workload) (*Workload, bool) {
	if _, ok := v.policySets.Load(w); ok {
		return w, true // it was found before
	}
	return v.Workload(w.Key)
}

func permit(w *Workload, c *Connection) Permit {
	return Permit{peer: c.Peer, destination: w, port: c.Port}
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
