package turn_test

import (
	"slices"
	"testing"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2/turn"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestSteps: a step is done once however often it was asked for, never within another one; the first come before the last, also when
// they ask for those, and what asks for itself again has the next turn.
func TestSteps(t *testing.T) {
	loop, err := eventloop.New(func() bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	var done []string
	within := false
	steps := turn.New(loop)
	var first, again, last, asked turn.Step
	step := func(name string, do func()) func() {
		return func() {
			if within {
				t.Errorf("%s begins within another step", name)
			}
			within = true
			done = append(done, name)
			do()
			within = false
		}
	}
	first.Do = step("first", func() { steps.Last(&asked); steps.Last(&last) })
	again.Do = step("again", func() {
		if slices.Index(done, "again") == len(done)-1 {
			steps.First(&again)
			steps.First(&again)
		}
	})
	last.Do = step("last", func() {})
	asked.Do = step("asked", func() {})
	loop.Post(func() {
		steps.Last(&last)
		steps.First(&first)
		steps.First(&again)
		steps.First(&first)
		if len(done) > 0 {
			t.Errorf("%v within the turn", done)
		}
	})
	loop.Post(func() { loop.Later(func() { loop.Later(loop.Stop) }) })
	if err := loop.Run(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"first", "again", "last", "asked", "again"}; !slices.Equal(done, want) {
		t.Errorf("%v, want %v", done, want)
	}
}
