package enroll

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// mostLeft bounds how many pods that have left are told of before all were looked at; those
// that left first are forgotten first.
const mostLeft = 1024

// gating is what is known of all pods' gates; the lock of Reconciler.pods holds it.
type gating struct {
	// assigned is set when the workers are those of a configuration that the operator has
	// confirmed, and of all of its pods, seen when each of these had been looked at.
	assigned, seen bool
	// kept are those that each Prune was told to keep, nil before the first: no others have a
	// gate of an earlier agent from then on.
	kept map[mesh.Key]bool
	// left are pods whose workers are gone, in that order; none once seen is set.
	left []mesh.Key
}

// Gated returns what is known of the pods' gates, sorted by key, and a channel that is closed
// when that may be different. When it is complete, each of these pods is behind its gate, and
// no other is: from when each pod of a configuration that the operator has confirmed was
// looked at once. Before that, an earlier agent may have enrolled more, and those whose Gated
// is nil were looked at, and are not behind their gates, whatever it said of them.
func (r *Reconciler) Gated() (pods []Status, complete bool, changed <-chan struct{}) {
	r.pods.Lock()
	defer r.pods.Unlock()
	all := r.statusLocked()
	g := &r.pods.gating
	if g.assigned && !g.seen {
		g.seen = !slices.ContainsFunc(all, func(s Status) bool { return !s.looked })
	}
	if g.seen {
		g.left = nil
	}
	for _, s := range all {
		if s.Gated != nil || !g.seen && (s.looked || slices.Contains(g.left, s.Key)) {
			pods = append(pods, s)
		}
	}
	for _, key := range g.left {
		if r.pods.workers[key] == nil {
			pods = append(pods, Status{Key: key})
		}
	}
	slices.SortFunc(pods, func(a, b Status) int { return a.Key.Compare(b.Key) })
	return pods, g.seen, r.pods.changed
}

// keepLocked notes, before it is done, that all but these are taken out of the mesh.
func (g *gating) keepLocked(keep []mesh.Key) {
	kept := map[mesh.Key]bool{}
	for _, key := range keep {
		kept[key] = g.kept == nil || g.kept[key]
	}
	g.kept = kept
}

// leftLocked notes that a pod has left, in case an earlier agent said that it is behind its
// gate.
func (g *gating) leftLocked(key mesh.Key) {
	if g.seen {
		return
	}
	g.left = append(slices.DeleteFunc(g.left, func(k mesh.Key) bool { return k == key }), key)
	if len(g.left) > mostLeft {
		g.left = g.left[1:]
	}
}

// setAssigned notes that the workers are those of a configuration that is confirmed.
func (r *Reconciler) setAssigned() {
	r.pods.Lock()
	before := r.pods.gating.assigned
	r.pods.gating.assigned = true
	r.pods.Unlock()
	if !before {
		r.announce()
	}
}
