package connect

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestRecvWindow(t *testing.T) {
	w := newRecvWindow(100_000)
	if !w.take(100_000) || w.take(1) {
		t.Fatal("the window is not 100,000")
	}
	if inc := w.give(10_000); inc != 0 {
		t.Errorf("an update of %d for a tenth", inc)
	}
	if inc := w.give(20_000); inc != 30_000 {
		t.Errorf("an update of %d, want all that is owed", inc)
	}
	if !w.take(30_000) || w.take(1) {
		t.Error("the window is not 30,000")
	}
	if small := newRecvWindow(10); small.size != defaultWindow {
		t.Errorf("a window of %d, less than what peers assume", small.size)
	}
}
