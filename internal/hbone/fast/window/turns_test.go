package window

import (
	"slices"
	"testing"
)

// fake has so many bytes to read, and takes note of its turns.
type fake struct {
	place Place
	name  string
	left  int
	log   *[]string
	most  int // in one turn
}

func (f *fake) Place() *Place { return &f.place }

func (f *fake) Read(most int) (int, bool) {
	n := min(most, f.left)
	f.left -= n
	f.most = max(f.most, n)
	*f.log = append(*f.log, f.name)
	return n, f.left > 0
}

// larger makes readers that are known for large flows, with much to read.
func larger(q *Queue[*fake], log *[]string, names ...string) (all []*fake) {
	for _, name := range names {
		f := &fake{name: name, left: 1 << 30, log: log}
		f.place.large = forgetAfter
		q.Add(f)
		all = append(all, f)
	}
	return all
}

func TestLargeFlowsTakeTurns(t *testing.T) {
	var q Queue[*fake]
	var log []string
	all := larger(&q, &log, "a", "b", "c", "d", "e")
	for range 10 {
		before := 0
		for _, f := range all {
			before += f.left
		}
		q.Turn()
		for _, f := range all {
			before -= f.left
		}
		if before > turnBytes {
			t.Fatalf("a turn took %d bytes, more than %d", before, turnBytes)
		}
	}
	for _, f := range all {
		if got := 1<<30 - f.left; got != 10*turnBytes/len(all) {
			t.Errorf("%s read %d bytes of %d turns' %d", f.name, got, 10, 10*turnBytes)
		}
	}
	if want := []string{"a", "b", "c", "d", "e", "a", "b", "c"}; !slices.Equal(log[:len(want)], want) {
		t.Errorf("order %v, want %v", log[:len(want)], want)
	}
}

// TestMessagesFirst: a message goes before large flows that came earlier, and
// makes their turns short for a while.
func TestMessagesFirst(t *testing.T) {
	var q Queue[*fake]
	var log []string
	all := larger(&q, &log, "a", "b")
	message := &fake{name: "message", left: 200, log: &log}
	q.Add(message)
	q.Add(message) // is there once
	q.Turn()
	if want := []string{"message", "a"}; !slices.Equal(log, want) {
		t.Fatalf("order %v, want %v", log, want)
	}
	for range sharedTurns - 1 {
		q.Turn()
	}
	for _, f := range all {
		if f.most > sharedBytes {
			t.Errorf("%s read %d bytes in a turn beside messages, more than %d", f.name, f.most, sharedBytes)
		}
	}
	q.Turn()
	if all[0].most < quantumBytes {
		t.Errorf("without messages for %d turns, a large flow reads %d bytes in a turn, want %d", sharedTurns, all[0].most, quantumBytes)
	}
}

// TestLargeNeighbourIsNoMessage: a large flow whose socket is empty now and then
// does not make its neighbours' turns short.
func TestLargeNeighbourIsNoMessage(t *testing.T) {
	var q Queue[*fake]
	var log []string
	a := larger(&q, &log, "a")[0]
	slow := &fake{name: "slow", log: &log}
	slow.place.large = forgetAfter
	for i := range 4 * forgetAfter {
		slow.left = 1000
		if i%forgetAfter == 0 {
			slow.left = largeBytes
		}
		q.Add(slow)
		a.most = 0
		q.Turn()
		if a.most < quantumBytes {
			t.Fatalf("turn %d: beside a large flow that read little, %d bytes", i, a.most)
		}
	}
}

// TestLargeFlowIsForgotten: who goes on with messages is taken for that.
func TestLargeFlowIsForgotten(t *testing.T) {
	var q Queue[*fake]
	var log []string
	f := larger(&q, &log, "f")[0]
	f.left = largeBytes
	q.Turn()
	for range forgetAfter {
		if !f.place.IsLarge() {
			t.Fatal("forgotten too early")
		}
		f.left = 100
		q.Add(f)
		q.Turn()
	}
	if f.place.IsLarge() {
		t.Errorf("after %d messages it is taken for a large flow yet", forgetAfter)
	}
	if q.shared != sharedTurns {
		t.Error("the last of them was not taken for a message")
	}
}

func TestTurnAllocatesNothing(t *testing.T) {
	var q Queue[*fake]
	log := make([]string, 0, 1<<16)
	larger(&q, &log, "a", "b", "c")
	message := &fake{name: "m", log: &log}
	q.Turn()
	if n := testing.AllocsPerRun(1000, func() {
		message.left = 10
		q.Add(message)
		q.Turn()
	}); n > 0 {
		t.Errorf("%v allocations in a turn", n)
	}
}
