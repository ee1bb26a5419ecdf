package publish

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Gates says which workloads are behind their gates, as the agents of their nodes have said;
// *gated.Ledger does.
type Gates interface {
	Gated(*mesh.Workload) bool
	// Changed returns a channel that is closed when Gated may answer otherwise.
	Changed() <-chan struct{}
}

// gating makes workloads be behind their gates where Gates says so, and nowhere else. It
// belongs to the goroutine that publishes.
type gating struct{ Gates }

// newGating asks nobody where nothing is said about UDP, whatever gates is: also a Ledger that is nil.
func newGating(gates Gates, udp bool) gating {
	if !udp {
		gates = nil
	}
	return gating{gates}
}

// changed is Changed, and never ready where nobody is asked.
func (g gating) changed() <-chan struct{} {
	if g.Gates == nil {
		return nil
	}
	return g.Changed()
}

func (g gating) is(w *mesh.Workload) bool { return g.Gates != nil && w.Enrolled && g.Gated(w) }

// all sets what was compiled. Where nothing may be said about UDP, none has been said to be
// behind its gate.
func (g gating) all(workloads []mesh.Workload) {
	for i := range workloads {
		workloads[i].Gated = workloads[i].Gated && g.is(&workloads[i])
	}
}

// add sets what is different in a View, and adds those workloads to it of which something
// else is said now.
func (g gating) add(change *mesh.Change, view *mesh.View) {
	if g.Gates == nil {
		return
	}
	concerned := map[mesh.Key]bool{}
	for _, w := range change.Workloads {
		w.Gated, concerned[w.Key] = w.Gated && g.is(w), true
	}
	for _, key := range change.GoneWorkloads {
		concerned[key] = true
	}
	for _, w := range view.Workloads() {
		if is := g.is(w); is != w.Gated && !concerned[w.Key] {
			now := *w
			now.Gated = is
			change.Workloads = append(change.Workloads, &now)
		}
	}
}

// gatedMark begins what names a folder's gates in its revisions.
const gatedMark = "-gates-"

// nameGates returns a folder's revision with a name for who is behind gates; one that has
// another already is given this one.
func nameGates(revision string, workloads []*mesh.Workload) string {
	revision, _, _ = strings.Cut(revision, gatedMark)
	h, some := sha256.New(), false
	for _, w := range workloads {
		if w.Gated {
			some = true
			fmt.Fprintf(h, "%v %q %q %v\n", w.Key, w.UID, w.NetNS, w.Addresses) // a hash takes everything
		}
	}
	if !some {
		return revision
	}
	return revision + gatedMark + hex.EncodeToString(h.Sum(nil)[:4]) // tells revisions apart, as their digest does
}
