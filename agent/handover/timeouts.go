package handover

import (
	"cmp"
	"time"
)

// Timeouts bound the steps of a hand-over. Zero fields take the defaults.
type Timeouts struct {
	// Hello bounds each short exchange: 5 s.
	Hello time.Duration
	// Test bounds the successor's self-test: 60 s, and TestPod for each pod: 2 s.
	Test, TestPod time.Duration
	// Rest is how long connections may be at rest while the successor answers:
	// 80 ms; when that was not enough ten times, twice as long each time, to a
	// second.
	Rest time.Duration
	// Accept bounds the time from moving to accepting: 10 s. A successor must
	// give up before its donor does.
	Accept time.Duration
	// Stuck is how long a successor that has begun may answer nothing in time,
	// until it counts as lost: 10 s.
	Stuck time.Duration
	// Move bounds the moving of all connections: 60 s. A successor waits longer
	// than its donor moves, which may say nothing meanwhile.
	Move time.Duration
}

func (t Timeouts) orDefaults() Timeouts {
	t.Hello = cmp.Or(t.Hello, 5*time.Second)
	t.Test = cmp.Or(t.Test, time.Minute)
	t.TestPod = cmp.Or(t.TestPod, 2*time.Second)
	t.Rest = cmp.Or(t.Rest, 80*time.Millisecond)
	t.Accept = cmp.Or(t.Accept, AcceptWithin+2*time.Second)
	t.Stuck = cmp.Or(t.Stuck, 10*time.Second)
	t.Move = cmp.Or(t.Move, time.Minute)
	return t
}

// AcceptWithin is how long a successor may take to accept from every listener
// when its donor has said that moving begins.
const AcceptWithin = 8 * time.Second

const (
	maxRest   = time.Second
	patiently = 10 // so many times
)
