package turns

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func begun(t *Turn) bool {
	select {
	case <-t.Begun():
		return true
	default:
		return false
	}
}

// However many come, no more than the bound have a turn, and the one that has waited
// longest is next.
func TestTurnsComeInOrder(t *testing.T) {
	all := New(3, 1)
	var turns []*Turn
	for i := range 10 {
		turns = append(turns, all.Take(fmt.Sprint(i)))
	}
	for i, turn := range turns {
		if begun(turn) != (i < 3) {
			t.Errorf("turn %d of 10 with three at a time: begun %v", i, begun(turn))
		}
	}
	turns[4].End() // it waits no longer, and takes no place
	turns[0].End()
	turns[0].End()
	if !begun(turns[3]) || begun(turns[5]) {
		t.Errorf("one has ended, once: begun %v, %v", begun(turns[3]), begun(turns[5]))
	}
	turns[1].End()
	if !begun(turns[5]) || begun(turns[6]) {
		t.Error("the place of one that has left the queue goes to the next")
	}
	for _, turn := range turns {
		turn.End()
	}
	all.isEmpty(t)
}

// Turns of a name that does not end them keep those of other names from nothing.
func TestANameHasItsOwnTurnsOnly(t *testing.T) {
	all := New(4, 2)
	var slow []*Turn
	for range 5 {
		slow = append(slow, all.Take("slow"))
	}
	a, b, c := all.Take("other"), all.Take("other"), all.Take("third")
	if all.Begun("slow") != 2 || all.Begun("other") != 2 || !begun(a) || !begun(b) || begun(c) {
		t.Fatalf("begun: slow %d, other %d, third %d", all.Begun("slow"), all.Begun("other"), all.Begun("third"))
	}
	slow[0].End()
	if !begun(c) || begun(slow[2]) {
		t.Error("the third came before the slow one's next could")
	}
	a.End()
	if !begun(slow[2]) || begun(slow[3]) {
		t.Error("a place of its own and one of all are free for one of the slow name")
	}
	for _, turn := range append(slow, a, b, c) {
		turn.End()
	}
	all.isEmpty(t)
}

// Whatever the order in which turns are taken and ended, the bounds hold, nobody
// waits whose place is free, and nothing is left.
func TestTurnsKeepTheirBounds(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		most, mostOfName := 1+random.IntN(5), 1+random.IntN(3)
		all := New(most, mostOfName)
		var open []*Turn
		for range 200 {
			if len(open) > 0 && random.IntN(2) == 0 {
				i := random.IntN(len(open))
				open[i].End()
				open = append(open[:i], open[i+1:]...)
			} else {
				open = append(open, all.Take(fmt.Sprint(random.IntN(6))))
			}
			total, of, waiting := 0, map[string]int{}, map[string]bool{}
			for _, turn := range open {
				if begun(turn) {
					total++
					of[turn.name]++
				} else {
					waiting[turn.name] = true
				}
			}
			for name, n := range of {
				if n > mostOfName || n != all.Begun(name) {
					t.Fatalf("seed %d: %d of %s have begun, of %d; told %d", seed, n, name, mostOfName, all.Begun(name))
				}
			}
			if total > most {
				t.Fatalf("seed %d: %d have begun, of %d", seed, total, most)
			}
			for name := range waiting {
				if total < most && of[name] < mostOfName {
					t.Fatalf("seed %d: %s waits, with %d of %d, and %d of %d in all", seed, name, of[name], mostOfName, total, most)
				}
			}
		}
		for _, turn := range open {
			turn.End()
		}
		all.isEmpty(t)
	}
}

func (t *Turns) isEmpty(test *testing.T) {
	test.Helper()
	if t.begun != 0 || t.queue.Len() != 0 || len(t.byName) != 0 {
		test.Errorf("%d turns are left, %d wait, of %v", t.begun, t.queue.Len(), t.byName)
	}
}
