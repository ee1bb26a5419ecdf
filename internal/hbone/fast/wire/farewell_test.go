package wire

import (
	"testing"
	"time"
)

// TestFarewell: a peer that takes something has time again, one that takes nothing has not.
func TestFarewell(t *testing.T) {
	const within = time.Minute
	now := time.Now()
	var f Farewell
	for _, step := range []struct {
		after time.Duration
		left  int
		over  bool
	}{{0, 1000, false}, {50 * time.Second, 1000, false}, {5 * time.Second, 900, false}, {59 * time.Second, 900, false}, {time.Second, 900, true}, {0, 0, true}} {
		now = now.Add(step.after)
		if over := f.isOver(step.left, now, within); over != step.over {
			t.Errorf("%d bytes left: over %v, want %v", step.left, over, step.over)
		}
	}
	if f = (Farewell{}); !f.isOver(0, now, within) {
		t.Error("nothing was left")
	}
}
