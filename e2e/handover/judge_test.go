package handover

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// errInconclusive is of what cannot be told, as the machine had no time for it.
var errInconclusive = errors.New("inconclusive")

// judgePauses judges the longest answer through the agents beside the longest past them. Of a machine that by
// itself lets an answer wait for longer than the agents may, a pause within twice of that cannot be told.
func judgePauses(meshed, past time.Duration) error {
	switch {
	case meshed > maxPause+past:
		return fmt.Errorf("a connection stood still for %v, want at most %v beyond the %v that the machine itself takes", meshed, maxPause, past)
	case meshed > maxPause && past > maxPause:
		return fmt.Errorf("%w: a connection stood still for %v, and past the agents an answer took %v, beyond the %v that are to be shown", errInconclusive, meshed, past, maxPause)
	}
	return nil
}

// work is how much traffic there was, since it began.
type work struct {
	rate     int // requests per second that were due
	elapsed  time.Duration
	requests int64
	// control counts the answers on so many connections past the agents, which ask every closeEvery in the same process.
	control  int64
	controls int
}

// enough is the share of what was due that has to have been asked and answered. The rest is under way, or late.
const enough = 0.9

// judge wants the traffic to have been what was to be shown. Where the generator itself did not come to its turn,
// by what it did past the agents or because the machine is overloaded, less than that shows less.
func (w work) judge(overloaded bool) error {
	want := int64(enough * float64(w.rate) * w.elapsed.Seconds())
	if w.requests >= want {
		return nil
	}
	due := int64(float64(w.controls) * w.elapsed.Seconds() / closeEvery.Seconds())
	starved := overloaded || float64(w.control) < enough*float64(due)
	if least := want / 10; starved && w.requests >= least {
		return fmt.Errorf("%w: %d requests in %v, want %d: past the agents there were %d messages of %d, overloaded: %v", errInconclusive, w.requests, w.elapsed, want, w.control, due, overloaded)
	}
	return fmt.Errorf("%d requests in %v, want %d at least: too little traffic to show anything (past the agents: %d messages of %d)", w.requests, w.elapsed, want, w.control, due)
}

func TestJudge(t *testing.T) {
	const ms = time.Millisecond
	// Ten seconds of 2,000 requests/s, and 24 connections past the agents with 50 messages/s each.
	after := func(requests, control int64) work { return work{2000, 10 * time.Second, requests, control, 24} }
	for name, c := range map[string]struct {
		got          error
		inconclusive bool
		bad          bool
	}{
		"a short pause":                            {got: judgePauses(90*ms, 5*ms)},
		"a short pause on a slow machine":          {got: judgePauses(90*ms, 900*ms)},
		"the machine's share":                      {got: judgePauses(140*ms, 50*ms)},
		"a long pause":                             {got: judgePauses(160*ms, 50*ms), bad: true},
		"a machine that stands still itself":       {got: judgePauses(2*time.Second, 3*time.Second), inconclusive: true},
		"a pause far beyond a slow machine's":      {got: judgePauses(2*time.Second, 200*ms), bad: true},
		"all requests":                             {got: after(20000, 12000).judge(false)},
		"those under way at the end are not there": {got: after(18100, 12000).judge(false)},
		"half of them":                             {got: after(10000, 12000).judge(false), bad: true},
		"half of them, as past the agents":         {got: after(10000, 6000).judge(false), inconclusive: true},
		"half of them on an overloaded machine":    {got: after(10000, 12000).judge(true), inconclusive: true},
		"next to none":                             {got: after(1000, 600).judge(true), bad: true},
		"all on an overloaded machine":             {got: after(20000, 12000).judge(true)},
	} {
		if inconclusive := errors.Is(c.got, errInconclusive); inconclusive != c.inconclusive || (c.got != nil && !inconclusive) != c.bad {
			t.Errorf("%s: %v", name, c.got)
		}
	}
}
