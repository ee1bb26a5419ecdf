//go:build !race

package mesh_test

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAuthorizeCost holds the evaluator to 300 ns a connection at 1,000 policies of
// which 20 select the destination: where an index tells their rules apart, and where
// each has to be looked at. That is where HEDDLE_COST is set (`make bench-go`). Elsewhere
// the machine's speed is unknown: a decision may take twice as long, or as long as 40
// look-ups in a map do here and now. The thread's processor time counts, and of that the
// best of five medians, since other tests share the machine. That nothing is allocated,
// TestAuthorizeAllocatesNothing holds. A request, of which a path has to be compared
// with each policy's, has three times as long.
func TestAuthorizeCost(t *testing.T) {
	const attempts = 5
	known := os.Getenv("HEDDLE_COST") != ""
	most := 600 * time.Nanosecond
	if known {
		most = 300 * time.Nanosecond
	}
	lookUp := lookUps()
	for _, e := range evaluations(t) {
		times := time.Duration(1)
		if e.c.Request != nil {
			times = 3
		}
		best, bound := time.Hour, time.Duration(0)
		for n := 0; n < attempts && best > bound; n++ {
			decision, looked := medians(t, func() { e.view.Authorize(e.c) }, lookUp)
			bound = times * most
			if !known {
				bound = max(bound, times*40*looked)
			}
			best = min(best, decision)
			t.Logf("%s: %v, of at most %v; a look-up %v", e.name, decision, bound, looked)
		}
		if best > bound {
			t.Errorf("%s: a decision takes %v, more than %v", e.name, best, bound)
		}
	}
}

// lookUps is a look-up of another of 1,000 names in a map at each call: what a
// machine's speed is told by.
func lookUps() func() {
	names := make([]string, 1000)
	ranks := make(map[string]int, len(names))
	for i := range names {
		names[i] = fmt.Sprintf("spiffe://cluster.local/ns/shop/sa/client-%03d", i)
		ranks[names[i]] = i
	}
	next, sum := 0, 0
	return func() {
		// None waits for the one before, as a decision's comparisons do not.
		sum += ranks[names[next]]
		next = (next + 1) % len(names)
	}
}

// medians are those of nine rounds of each, by turns.
func medians(t *testing.T, one, other func()) (time.Duration, time.Duration) {
	t.Helper()
	const each = 20_000
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	round := func(do func()) time.Duration {
		began := threadTime(t)
		for range each {
			do()
		}
		return (threadTime(t) - began) / each
	}
	var ones, others [9]time.Duration
	for i := range ones {
		ones[i], others[i] = round(one), round(other)
	}
	slices.Sort(ones[:])
	slices.Sort(others[:])
	return ones[len(ones)/2], others[len(others)/2]
}

// threadTime is what this thread has had of the processors.
func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}
