//go:build !race

package http2_test

import (
	"testing"
	"time"
)

// TestCost: a trip takes no more processor time than x/net's Framer and hpack take for its two heads alone. It took two
// thirds; a collection of garbage or a neighbour may come between, so the best of some counts.
func TestCost(t *testing.T) {
	const times = 2000
	best := func(do func()) time.Duration {
		least := time.Duration(1 << 62)
		for range 8 {
			before := processor(t)
			for range times {
				do()
			}
			least = min(least, processor(t)-before)
		}
		return least / times
	}
	tr := newTrip(t, false, 0)
	ours, theirs := best(func() { tr.make(t, 0) }), best(xNet(t))
	if ours > theirs*5/4 {
		t.Errorf("a trip takes %v, x/net's heads %v", ours, theirs)
	}
}
