package plan

import "github.com/heddle-mesh/heddle/internal/mesh"

// Revoked reports whether a decision, by another View than that which allowed it, ends what is
// under way, and why: what is refused, but for a workload that has left the View. That is not
// policy's to end: it drains.
func Revoked(d mesh.Decision) (why string, over bool) {
	switch {
	case d.Verdict != mesh.VerdictDeny, d.Reason == mesh.ReasonUnknownDestination, d.Reason == mesh.ReasonNotSynced:
		return "", false
	case d.Reason == mesh.ReasonIdentityRevoked:
		return d.Reason.String(), true
	}
	return mesh.ReasonPolicyChanged.String(), true
}
