package startup

import (
	"log/slog"
	"math"
	"runtime/debug"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestKeepMemory: what is said comes before what the cgroup has, and Go's part of it is the collector's from then on.
func TestKeepMemory(t *testing.T) {
	if said := debug.SetMemoryLimit(-1); said != math.MaxInt64 {
		t.Fatalf("GOMEMLIMIT is set for this test: %d", said)
	}
	defer debug.SetMemoryLimit(math.MaxInt64)
	of, heap := KeepMemory(slog.New(slog.DiscardHandler), 2<<30, "")
	if of != 2<<30 || heap >= of || heap < of/2 || debug.SetMemoryLimit(-1) != heap {
		t.Errorf("of %d the collector has %d, and keeps to %d", of, heap, debug.SetMemoryLimit(-1))
	}
}
