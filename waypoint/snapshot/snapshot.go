// Package snapshot is what a waypoint goes by at one moment: the mesh's View, the
// compiled routes and whose turn it is among their backends. A Store has the current
// Snapshot; whatever feeds the waypoint sets it, and each request takes the one that is
// current when it comes.
//
// It fetches nothing, and carries no request. A Snapshot is immutable but for the turns
// of its Splits, and safe for concurrent use; so is a Store.
package snapshot

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// Snapshot is one consistent configuration of a waypoint.
type Snapshot struct {
	// Revision names what it was made from: that of the feed, not of the View.
	Revision string
	// Waypoint is the Service whose workloads are this waypoint's replicas.
	Waypoint mesh.Key
	// View is never nil; it is not synced before the first Set.
	View *mesh.View
	// Routes are what Table was compiled from: read only.
	Routes []route.Route
	Table  *route.Table
	Splits *route.Splits
	// Left are the services that had this waypoint lately and have it no more, and since when: read
	// only. They may be in View still, with what is said of them now.
	Left map[mesh.Key]time.Time
}

// leftFor is how long it is kept that a service has left: longer than anything goes on for that.
const leftFor = 10 * time.Minute

// Synced reports whether the Snapshot was made from a configuration. Requests that
// come before are to be refused: nobody knows yet what they may do.
func (s *Snapshot) Synced() bool { return s.View.Synced() }

// Store holds the current Snapshot.
type Store struct {
	current atomic.Pointer[state]
	setting sync.Mutex // one Set at a time: turns go on from one to the next
	phase   func() uint64
}

// state ties a Snapshot to the channel that says it is no longer current.
type state struct {
	snapshot *Snapshot
	replaced chan struct{}
}

// NewStore returns a Store of a Snapshot that is not synced. Waypoint is the Service of the
// waypoint that it is for.
func NewStore(waypoint mesh.Key) *Store {
	s := &Store{phase: rand.Uint64}
	table := &route.Table{}
	splits, _ := route.NewSplits(table, nil, s.phase) // of no routes: there is no error
	empty := &Snapshot{Waypoint: waypoint, View: mesh.NewStore().View(), Table: table, Splits: splits}
	s.current.Store(&state{snapshot: empty, replaced: make(chan struct{})})
	return s
}

// Set makes a View and routes the current Snapshot, whole or not at all: what is wrong with
// them is the error, which names the route, the field and the remedy, and the Snapshot
// before stays. Turns of what is as it was go on where they are. Set takes the routes over; the
// caller does not change them afterwards. Routes that are the very slice of the current
// Snapshot are not compiled anew.
func (s *Store) Set(revision string, view *mesh.View, routes []route.Route) error {
	if view == nil {
		return errors.New("set snapshot: no view")
	}
	s.setting.Lock()
	defer s.setting.Unlock()
	old := s.current.Load()
	next := *old.snapshot
	next.Revision, next.View, next.Left = revision, view, old.snapshot.left(view, time.Now())
	if !sameSlice(next.Routes, routes) {
		table, err := route.NewTable(routes)
		if err != nil {
			return fmt.Errorf("set snapshot %q: %w", revision, err)
		}
		splits, err := route.NewSplits(table, next.Splits, s.phase)
		if err != nil {
			return fmt.Errorf("set snapshot %q: %w", revision, err)
		}
		next.Routes, next.Table, next.Splits = slices.Clip(routes), table, splits
	}
	s.current.Store(&state{snapshot: &next, replaced: make(chan struct{})})
	close(old.replaced)
	return nil
}

// left returns the services that have left by the next View, or had before.
func (s *Snapshot) left(next *mesh.View, now time.Time) map[mesh.Key]time.Time {
	has := func(view *mesh.View, key mesh.Key) bool {
		service, ok := view.Service(key)
		return ok && service.Waypoint == s.Waypoint
	}
	left := maps.Clone(s.Left)
	maps.DeleteFunc(left, func(key mesh.Key, since time.Time) bool { return now.Sub(since) > leftFor || has(next, key) })
	for _, service := range s.View.Services() {
		if service.Waypoint == s.Waypoint && !has(next, service.Key) {
			if left == nil {
				left = map[mesh.Key]time.Time{}
			}
			left[service.Key] = now
		}
	}
	return left
}

func sameSlice(a, b []route.Route) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// Load returns the current Snapshot. It is never nil, takes no lock and allocates nothing.
func (s *Store) Load() *Snapshot { return s.current.Load().snapshot }

// Changed returns the current Snapshot together with the channel that is closed when it is
// replaced.
func (s *Store) Changed() (*Snapshot, <-chan struct{}) {
	at := s.current.Load()
	return at.snapshot, at.replaced
}
