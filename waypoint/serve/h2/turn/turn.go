// Package turn puts off what is to be done until the turn of an event loop is over, so that no step begins within another one. It
// knows nothing of what is done. All of it is for the loop's goroutine.
package turn

import "github.com/heddle-mesh/heddle/internal/eventloop"

// Step is what somebody has to do, once for each turn in which it was asked for, however often. Do is set before.
type Step struct {
	Do    func()
	waits bool
}

// Steps are those of one loop that wait for the end of its turn.
type Steps struct {
	loop        *eventloop.Loop
	first, last list
	later       bool
	run         func()
}

// New has none.
func New(loop *eventloop.Loop) *Steps {
	s := &Steps{loop: loop}
	s.run = s.all
	return s
}

// First has a step done before those of Last.
func (s *Steps) First(one *Step) { s.add(&s.first, one) }

// Last has a step done after those of First, also one that they ask for.
func (s *Steps) Last(one *Step) { s.add(&s.last, one) }

func (s *Steps) add(to *list, one *Step) {
	if !one.waits {
		one.waits = true
		*to = append(*to, one)
		s.soon()
	}
}

func (s *Steps) soon() {
	if !s.later {
		s.later = true
		s.loop.Later(s.run)
	}
}

// all does what was put off. What comes of it is for the next time.
func (s *Steps) all() {
	s.later = false
	s.first.do()
	s.last.do()
	if len(s.first)+len(s.last) > 0 {
		s.soon()
	}
}

// list is of steps that wait, who waits longest first.
type list []*Step

// do does those that are there now.
func (l *list) do() {
	n := len(*l)
	for i := range n {
		one := (*l)[i]
		one.waits = false
		one.Do()
	}
	left := copy(*l, (*l)[n:])
	clear((*l)[left:])
	*l = (*l)[:left]
}
