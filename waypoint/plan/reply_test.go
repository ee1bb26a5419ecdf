package plan_test

import (
	"slices"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/plan"
)

// TestReasonsOfMesh: all that policy may say is among them, each once.
func TestReasonsOfMesh(t *testing.T) {
	all := plan.Reasons()
	for _, r := range []mesh.Reason{mesh.ReasonNotFederated, mesh.ReasonForeignIdentity, mesh.ReasonAuthorityMismatch, mesh.ReasonReservedPort, mesh.ReasonPolicyDeny, mesh.ReasonTimeout, mesh.ReasonDraining} {
		if !slices.Contains(all, r.String()) {
			t.Errorf("%s is missing", r)
		}
	}
	slices.Sort(all)
	if n := len(all); len(slices.Compact(all)) != n {
		t.Errorf("some are there twice: %v", all)
	}
}
