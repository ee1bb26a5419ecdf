package share

import (
	"slices"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// Waypoints are what a configuration tells those waypoints that asked, of it or of one
// before it, lately, and whose Service is there still. It is safe for concurrent use.
type Waypoints struct {
	sync.Mutex
	// Grace is for how long a waypoint is told of a service that it is the waypoint of no more. It
	// is told until the first configuration after that.
	Grace time.Duration
	byKey map[mesh.Key]*Waypoint
	asked *asked
	left  []departure
}

// Grace is longer than waypoints go on for a service that they are the waypoint of no more.
const Grace = 40 * time.Second

// departure is a service that has another waypoint than it had, or none.
type departure struct {
	from, service mesh.Key
	until         time.Time
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
func NewWaypoints() *Waypoints {
	return &Waypoints{Grace: Grace, byKey: map[mesh.Key]*Waypoint{}, asked: &asked{keys: map[mesh.Key]int{}}}
}

// Of returns what a waypoint is told, which is kept from then on. It is always asked of
// one configuration.
func (w *Waypoints) Of(from Source, key mesh.Key) *Waypoint {
	w.Lock()
	defer w.Unlock()
	if w.byKey[key] == nil {
		w.byKey[key] = New(from).Waypoint(key, w.leftFrom(key)...)
	}
	w.asked.note(key)
	return w.byKey[key]
}

// Next returns what the next configuration tells those that asked.
func (w *Waypoints) Next(sp *Spreading, c *Changes) *Waypoints {
	w.Lock()
	defer w.Unlock()
	n := &Waypoints{Grace: w.Grace, byKey: map[mesh.Key]*Waypoint{}, asked: w.asked, left: w.departures(sp.View, c, time.Now())}
	for key := range w.asked.still(sp.View) {
		if last := w.byKey[key]; last != nil {
			n.byKey[key] = sp.Next(last, c, n.leftFrom(key)...)
		} else {
			n.byKey[key] = sp.Waypoint(key, n.leftFrom(key)...)
		}
	}
	return n
}

// leftFrom returns the services that a waypoint is told of still, sorted.
func (w *Waypoints) leftFrom(waypoint mesh.Key) (services []mesh.Key) {
	for _, d := range w.left {
		if d.from == waypoint {
			services = append(services, d.service)
		}
	}
	return keyed.SortedKeys(services)
}

// departures returns those after a change, without those that are over, or have been taken back.
// They are noted of all waypoints, so that one that asks another replica is told the same.
func (w *Waypoints) departures(view *mesh.View, c *Changes, now time.Time) []departure {
	left := slices.DeleteFunc(slices.Clone(w.left), func(d departure) bool {
		s, ok := view.Service(d.service)
		return !ok || s.Waypoint == d.from || !now.Before(d.until)
	})
	for _, s := range c.Services {
		was, ok := c.Was.Service(s.Key)
		if ok && was.HasWaypoint() && was.Waypoint != s.Waypoint && w.Grace > 0 {
			left = append(left, departure{was.Waypoint, s.Key, now.Add(w.Grace)})
		}
	}
	return left
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
