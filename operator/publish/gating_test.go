package publish

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// asked fails whoever asks.
type asked struct{ t *testing.T }

func (a asked) Gated(*mesh.Workload) bool {
	a.t.Error("it is asked who is behind a gate")
	return false
}

func (a asked) Changed() <-chan struct{} { a.Gated(nil); return nil }

// TestGatesCostNothingWithoutUDP: nobody is asked, and nothing is looked through, where nothing is said about UDP.
func TestGatesCostNothingWithoutUDP(t *testing.T) {
	g := newGating(asked{t}, false)
	if g.changed() != nil {
		t.Error("a change of gates is waited for")
	}
	g.all([]mesh.Workload{{Enrolled: true, Gated: true}})
	g.add(&mesh.Change{Workloads: []*mesh.Workload{{Enrolled: true, Gated: true}}}, nil) // a View would be looked through
}
