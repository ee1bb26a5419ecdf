package tidy

import (
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestTidyGivesBack: what a burst left is given back at the next look, and what
// cannot be given back is not tried for again and again.
func TestTidyGivesBack(t *testing.T) {
	tidy := tidier{log: slog.New(slog.DiscardHandler)}
	tidy.tidy()
	burst := make([][]byte, 256)
	for i := range burst {
		burst[i] = make([]byte, 64<<10)
	}
	runtime.GC() // the burst was alive once
	runtime.KeepAlive(burst)
	burst = nil
	runtime.GC()
	if idle := idleMemory(); idle < 10<<20 {
		t.Fatalf("%d bytes lie idle after a burst of 16 MiB", idle)
	}
	tidy.tidy()
	if idle := idleMemory(); idle > tidyAbove+2<<20 {
		t.Errorf("%d bytes still lie idle", idle)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	tidy.tidy()
	runtime.ReadMemStats(&after)
	if after.NumForcedGC != before.NumForcedGC {
		t.Error("collected again for nothing")
	}
}

func TestCPUTime(t *testing.T) {
	before := cpuTime()
	for began := time.Now(); time.Since(began) < 50*time.Millisecond; {
	}
	if used := cpuTime() - before; used <= 0 || used > 10*time.Second {
		t.Errorf("used %v", used)
	}
}
