// Package split shares requests out among backends by weight: exactly, not on
// average. It knows indexes and weights; what a backend is, and whether it
// answers, is its callers' business.
//
// # What is exact
//
// Let backend i have weight w of a total W, and so the share 100 w/W of a hundred
// requests. A Scheduler gives, for any weights and any number of backends:
//
//   - in every 100 requests in a row, wherever they begin, each backend has its
//     share rounded down or rounded up, and exactly its share where that is whole:
//     never as much as one request off;
//   - in any other stretch of requests, wherever it begins and however long it is, each
//     is less than six off.
//
// Both are properties of the order in which Next is called, whoever calls it. That a
// stretch of every length is less than one request off cannot be had for most weights
// of three backends (such sequences are called balanced: Fraenkel's conjecture).
// docs/decisions/0104 has the proofs.
//
// # Why
//
// The Scheduler has 100 slots, and request n takes slot n mod 100. The last 100
// requests are thus what the slots hold at this moment, and their counts change
// only when a slot is given to another backend. Each backend owns as many slots as
// its share rounded down, for good. The spare slots go to backends that have a
// fraction left, from round to round, never two to the same: a backend that is
// chosen again stays in its slot, so that it has one spare slot or none at each
// moment, also half way through a round.
//
// Which backends have a spare slot in a round is the problem of scheduling R
// processors among tasks of weights f < 1 that add up to R, at most one processor
// each at a time, with no task ever one unit behind or ahead. PD² solves it
// (Anderson and Srinivasan, "Mixed Pfair/ERfair scheduling of asynchronous periodic
// tasks", 2004): earliest deadline first, with two rules for ties.
package split

import (
	"fmt"
	"slices"
	"sync"
)

// Window is the number of requests in a row within which shares are exact.
const Window = 100

const (
	// MaxTotal bounds the sum of the weights: squares of it must fit 63 bits.
	MaxTotal = 1 << 31
	// MaxBackends is far more than the 16 of the Gateway API.
	MaxBackends = 128
	// maxSkipped bounds how far into its period a Scheduler may begin.
	maxSkipped = 4096
)

// None is the index of no backend.
const None = -1

// Scheduler says which backend the next request goes to. It is safe for concurrent
// use. A nil Scheduler has no backend.
type Scheduler struct {
	weights []uint32
	several bool
	only    int // who has everything when not several do, or None

	mu    sync.Mutex
	slots [Window]uint8 // who has each
	at    int           // the slot of the next request
	spare []int         // the slots that are shared, in order
	round int64         // of the period
	tasks []task        // the backends that share them
}

// New returns a Scheduler. Phase picks the place in the sequence at which it begins:
// replicas that all began at the same one would all turn to the same backend first, so
// each gives a random number. Weights of 0 get nothing; when there is no other, Next
// returns None. It is an error when there are too many backends or too large weights.
func New(weights []uint32, phase uint64) (*Scheduler, error) {
	if len(weights) > MaxBackends {
		return nil, fmt.Errorf("%d backends: at most %d can share requests", len(weights), MaxBackends)
	}
	s := &Scheduler{weights: slices.Clone(weights), only: None}
	var total int64
	for i, w := range weights {
		if total += int64(w); w > 0 {
			s.several, s.only = total > int64(w), i
		}
	}
	if total > MaxTotal {
		return nil, fmt.Errorf("the weights add up to %d: at most %d", total, int64(MaxTotal))
	}
	if !s.several {
		return s, nil
	}
	s.layOut(total)
	s.turn()
	if len(s.tasks) > 0 {
		for skip := phase / Window % uint64(min(s.tasks[0].period, maxSkipped)); skip > 0; skip-- {
			s.turn()
		}
	}
	s.at = int(phase % Window)
	return s, nil
}

// Next returns the index of the backend that the next request goes to, or None.
func (s *Scheduler) Next() int {
	if s == nil {
		return None
	}
	if !s.several {
		return s.only
	}
	s.mu.Lock()
	if s.at == Window {
		s.turn()
		s.at = 0
	}
	backend := s.slots[s.at]
	s.at++
	s.mu.Unlock()
	return int(backend)
}

// layOut gives each backend the slots that are its own, and makes tasks of what is left
// of its share.
func (s *Scheduler) layOut(total int64) {
	counts := make([]int64, len(s.weights)+1) // the last one's are the spare slots
	left, period := int64(Window), total
	for i, w := range s.weights {
		counts[i] = Window * int64(w) / total
		left -= counts[i]
		period = gcd(period, Window*int64(w)%total)
	}
	counts[len(s.weights)] = left
	for slot, owner := range evenly(counts) {
		s.slots[slot] = uint8(owner)
		if owner == len(s.weights) {
			s.slots[slot] = nobody
			s.spare = append(s.spare, slot)
		}
	}
	for i, w := range s.weights {
		if fraction := Window * int64(w) % total; fraction > 0 {
			s.tasks = append(s.tasks, task{backend: uint8(i), fraction: fraction / period, period: total / period})
		}
	}
}

// nobody is the owner of a slot that is free.
const nobody = MaxBackends

// evenly spreads counts that add up to Window over so many slots: earliest deadline
// first, where the j-th of c has the time from (j-1)/c to j/c of the slots. That misses
// no deadline, so that each is less than one off after every slot.
func evenly(counts []int64) (owners [Window]int) {
	given := make([]int64, len(counts))
	for slot := range owners {
		best, deadline := -1, int64(0)
		for i, c := range counts {
			if given[i] == c || given[i]*Window/c > int64(slot) {
				continue
			}
			if d := ceil((given[i]+1)*Window, c); best < 0 || d < deadline {
				best, deadline = i, d
			}
		}
		given[best]++
		owners[slot] = best
	}
	return owners
}

// turn begins a round: it gives the spare slots to the backends that have one in it.
func (s *Scheduler) turn() {
	if len(s.tasks) == 0 {
		return
	}
	if s.round == s.tasks[0].period {
		s.round = 0
	}
	if s.round == 0 {
		for i := range s.tasks {
			s.tasks[i].plan(1)
		}
	}
	for range s.spare {
		s.choose()
	}
	s.round++
	for _, slot := range s.spare {
		if t := s.taskOf(s.slots[slot]); t != nil && t.chosen {
			t.chosen = false // stays where it is
		} else {
			s.slots[slot] = nobody
		}
	}
	next := 0
	for _, slot := range s.spare {
		if s.slots[slot] != nobody {
			continue
		}
		for !s.tasks[next].chosen {
			next++
		}
		s.slots[slot], s.tasks[next].chosen = s.tasks[next].backend, false
	}
}

// choose gives one spare slot of the round to the most urgent task.
func (s *Scheduler) choose() {
	var best *task
	for i := range s.tasks {
		t := &s.tasks[i]
		if !t.chosen && t.release <= s.round && (best == nil || t.before(best)) {
			best = t
		}
	}
	best.chosen = true
	best.plan(best.unit + 1)
}

func (s *Scheduler) taskOf(backend uint8) *task {
	for i := range s.tasks {
		if s.tasks[i].backend == backend {
			return &s.tasks[i]
		}
	}
	return nil
}

// task is a backend with a fraction of a spare slot per round: fraction/period.
type task struct {
	backend          uint8
	fraction, period int64
	unit             int64 // which of its slots is next, from 1
	release          int64 // the first round that this one may be in
	deadline         int64 // the round that it must be before
	overlaps         bool  // the one after it may be in the last round of this one
	group            int64 // when a run of units that leave no choice ends; 0 for less than 1/2
	chosen           bool  // in the round that begins
}

// plan sets when a unit may be and must be.
func (t *task) plan(unit int64) {
	t.unit = unit
	t.release = (unit - 1) * t.period / t.fraction
	t.deadline = ceil(unit*t.period, t.fraction)
	t.overlaps = unit*t.period%t.fraction != 0
	if 2*t.fraction >= t.period {
		t.group = ceil((t.deadline-unit)*t.period, t.period-t.fraction)
	}
}

// before is the priority of PD².
func (t *task) before(other *task) bool {
	switch {
	case t.deadline != other.deadline:
		return t.deadline < other.deadline
	case t.overlaps != other.overlaps:
		return t.overlaps
	default:
		return t.overlaps && t.group > other.group
	}
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
