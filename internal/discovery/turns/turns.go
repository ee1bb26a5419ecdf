// Package turns bounds how many do something at a time, in the order in which they
// come, and how many of these are of one name. Who waits is woken once, by the turn
// that it gets: thousands that wait cost what a few do.
package turns

import (
	"container/list"
	"sync"
)

// Turns gives turns. Its methods may be called by several goroutines.
type Turns struct {
	most, mostOfName int

	mu     sync.Mutex
	begun  int
	queue  list.List // *Turn: of names that may have one more
	byName map[string]*named
}

// named is what is known of a name that has turns.
type named struct {
	begun, queued int
	behind        list.List // *Turn: they wait for another of the name to end
}

// Turn is one turn, or the wait for it. Its methods may be called by several goroutines.
type Turn struct {
	turns *Turns
	name  string
	begun chan struct{}
	at    *list.Element // where it waits; nil when it has begun
	in    *list.List
	ended bool
}

// New returns Turns of which so many may have begun at a time, and so many of one name.
// Both are 1 at least.
func New(most, mostOfName int) *Turns {
	return &Turns{most: max(most, 1), mostOfName: max(mostOfName, 1), byName: map[string]*named{}}
}

// Take asks for a turn, and does not wait for it. The caller ends it, begun or not.
func (t *Turns) Take(name string) *Turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	of := t.byName[name]
	if of == nil {
		of = &named{}
		t.byName[name] = of
	}
	turn := &Turn{turns: t, name: name, begun: make(chan struct{})}
	if of.begun+of.queued < t.mostOfName {
		of.queued++
		turn.wait(&t.queue)
	} else {
		turn.wait(&of.behind)
	}
	t.beginLocked()
	return turn
}

// Begun returns how many turns of a name have begun, and not ended.
func (t *Turns) Begun(name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if of := t.byName[name]; of != nil {
		return of.begun
	}
	return 0
}

// beginLocked gives what is free. The caller holds mu.
func (t *Turns) beginLocked() {
	for t.begun < t.most && t.queue.Len() > 0 {
		turn := t.queue.Front().Value.(*Turn)
		turn.leave()
		of := t.byName[turn.name]
		of.queued--
		of.begun++
		t.begun++
		close(turn.begun)
	}
}

func (t *Turn) wait(in *list.List) { t.in, t.at = in, in.PushBack(t) }

func (t *Turn) leave() {
	t.in.Remove(t.at)
	t.in, t.at = nil, nil
}

// Begun returns a channel that is closed when the turn begins.
func (t *Turn) Begun() <-chan struct{} { return t.begun }

// End ends the turn, or the wait for it. More calls do nothing.
func (t *Turn) End() {
	all := t.turns
	all.mu.Lock()
	defer all.mu.Unlock()
	if t.ended {
		return
	}
	t.ended = true
	of := all.byName[t.name]
	switch t.in {
	case nil:
		of.begun--
		all.begun--
	case &all.queue:
		of.queued--
		t.leave()
	default:
		t.leave()
	}
	if of.begun+of.queued < all.mostOfName && of.behind.Len() > 0 {
		next := of.behind.Front().Value.(*Turn)
		next.leave()
		of.queued++
		next.wait(&all.queue)
	}
	if of.begun+of.queued == 0 {
		delete(all.byName, t.name)
	}
	all.beginLocked()
}
