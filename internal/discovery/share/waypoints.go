package share

import (
	"sync"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Waypoints are what a configuration tells those waypoints that asked, of it or of one
// before it, lately, and whose Service is there still. It is safe for concurrent use.
type Waypoints struct {
	sync.Mutex
	byKey map[mesh.Key]*Waypoint
	asked *asked
}

// asked are the waypoints that asked, of any configuration of a line, and how many of them
// came since.
type asked struct {
	sync.Mutex
	keys map[mesh.Key]int
}

// maxUnasked is for how many configurations what a waypoint is told is made that does not ask for
// it any more. One that asks later is told all the same.
const maxUnasked = 256

// NewWaypoints returns those of a configuration that nobody has asked for.
func NewWaypoints() *Waypoints { return newWaypoints(&asked{keys: map[mesh.Key]int{}}) }

func newWaypoints(a *asked) *Waypoints {
	return &Waypoints{byKey: map[mesh.Key]*Waypoint{}, asked: a}
}

// Of returns what a waypoint is told, which is kept from then on. It is always asked of
// one configuration.
func (w *Waypoints) Of(from Source, key mesh.Key) *Waypoint {
	w.Lock()
	defer w.Unlock()
	if w.byKey[key] == nil {
		w.byKey[key] = New(from).Waypoint(key)
	}
	w.asked.note(key)
	return w.byKey[key]
}

// Next returns what the next configuration tells those that asked.
func (w *Waypoints) Next(sp *Spreading, c *Changes) *Waypoints {
	w.Lock()
	defer w.Unlock()
	n := newWaypoints(w.asked)
	for key := range w.asked.still(sp.View) {
		if last := w.byKey[key]; last != nil {
			n.byKey[key] = sp.Next(last, c)
		} else {
			n.byKey[key] = sp.Waypoint(key)
		}
	}
	return n
}

func (a *asked) note(key mesh.Key) {
	a.Lock()
	defer a.Unlock()
	a.keys[key] = 0
}

// still returns those whose Service is there, and that ask still, and forgets the others.
func (a *asked) still(view *mesh.View) map[mesh.Key]bool {
	a.Lock()
	defer a.Unlock()
	keys := map[mesh.Key]bool{}
	for key, since := range a.keys {
		if _, ok := view.Service(key); ok && since < maxUnasked {
			keys[key], a.keys[key] = true, since+1
		} else {
			delete(a.keys, key)
		}
	}
	return keys
}
