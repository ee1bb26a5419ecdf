// Package tidy gives memory of the process back to the system that starting, and
// later bursts, have left. It knows nothing of what the memory was for.
package tidy

import (
	"context"
	"log/slog"
	"runtime/debug"
	"runtime/metrics"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/agent/programtext"
)

const (
	// tidyFirst is when starting is over, tidyEvery how often memory is looked at
	// from then on.
	tidyFirst, tidyEvery = 3 * time.Second, 3 * time.Second
	// tidyAbove is what may lie idle without being given back, and textAbove what
	// of the program's text may be mapped.
	tidyAbove, textAbove = 4 << 20, 12 << 20
	// quietShare of one processor is what the agent may use and count as quiet.
	// Giving back costs a busy one time that its connections wait for, and it
	// would want all of it again at once.
	quietShare = 0.05
	// gcPercent trades a hundredth of the processor, under many new connections,
	// for a quarter of the heap. Another GOGC in the environment than the default
	// wins.
	gcPercent, gcDefault = 50, 100
)

// Run gives memory back that starting, and later bursts, have left: the
// runtime keeps it for the next burst, and a node has other uses for it. It
// returns when ctx is done.
func Run(ctx context.Context, log *slog.Logger) {
	if set := debug.SetGCPercent(gcPercent); set != gcDefault {
		debug.SetGCPercent(set)
	}
	wait := time.NewTimer(tidyFirst)
	defer wait.Stop()
	tidy := tidier{log: log}
	for first := true; ; first = false {
		began := cpuTime()
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		if first || (cpuTime()-began).Seconds() < quietShare*tidyEvery.Seconds() {
			tidy.tidy()
		}
		wait.Reset(tidyEvery)
	}
}

// tidier remembers what could not be given back, so as not to try for ever.
type tidier struct {
	log  *slog.Logger
	heap uint64 // that lay idle after the last time
}

func (t *tidier) tidy() {
	now := idleMemory()
	if now > t.heap+tidyAbove {
		debug.FreeOSMemory()
		now = idleMemory()
		t.heap = now
	}
	t.heap = min(t.heap, now)
	mapped, err := programtext.Resident()
	if err == nil && mapped > textAbove {
		err = programtext.Drop()
	}
	if err != nil {
		t.log.Debug("the program's text stays mapped", "error", err)
	}
}

// idleMemory is what the heap holds of the system's memory without using it, in
// bytes: free spans, dead objects, and those of which the next collection will
// tell whether they are dead.
func idleMemory() uint64 {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"},
	}
	metrics.Read(samples)
	value := func(i int) uint64 { return samples[i].Value.Uint64() }
	return value(0) + value(1) + value(2) - min(value(2), value(3))
}

// cpuTime is what the process has used of the processors, in user and system
// mode. It is 0 should the kernel not say.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
