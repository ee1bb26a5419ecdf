package mesh

import (
	"errors"
	"sync/atomic"
)

// Store holds the current View. It is level-triggered: readers learn that there
// is a newer View, never what changed in it. One writer replaces the View; any
// number of readers take it, without locks.
type Store struct {
	current atomic.Pointer[storeState]
}

// storeState ties a View to the channel that says it is no longer current.
type storeState struct {
	view     *View
	replaced chan struct{}
}

// NewStore returns a Store that holds an empty View that is not synced.
func NewStore() *Store {
	s := &Store{}
	s.current.Store(&storeState{view: emptyView(), replaced: make(chan struct{})})
	return s
}

// Replace makes v the current View and wakes everyone who waits on a channel
// from Changed or Snapshot. It panics when v is nil.
func (s *Store) Replace(v *View) {
	if v == nil {
		panic(errors.New("mesh: Store.Replace of a nil View"))
	}
	old := s.current.Swap(&storeState{view: v, replaced: make(chan struct{})})
	close(old.replaced)
}

// View returns the current View. It is never nil: before the first Replace it
// is empty and not synced.
func (s *Store) View() *View { return s.current.Load().view }

// Changed returns a channel that is closed at the next Replace. Take it before
// View, so that no change is missed between the two; or use Snapshot.
func (s *Store) Changed() <-chan struct{} { return s.current.Load().replaced }

// Snapshot returns the current View together with the channel that is closed
// when it is replaced.
func (s *Store) Snapshot() (*View, <-chan struct{}) {
	state := s.current.Load()
	return state.view, state.replaced
}
