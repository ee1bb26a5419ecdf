// Package memory has a process keep within the memory that it may have: what its cgroup says is told to Go's collector, which knows
// of no limit by itself and lets a heap grow to twice what is in use. It starts nothing, and keeps no state but the runtime's.
package memory

import (
	"math"
	"runtime/debug"
)

// share of a limit is Go's, in percent: the rest is for what the collector does not see, such as the kernel's
// buffers of sockets, which count in a cgroup as well, and pages of the program's file.
const share = 85

// Keep has Go's collector keep this process within its part of limit bytes, and returns how many those are. What GOMEMLIMIT has
// said already stays, and is returned.
func Keep(limit int64) int64 {
	if said := debug.SetMemoryLimit(-1); said != math.MaxInt64 {
		return said
	}
	own := limit / 100 * share
	debug.SetMemoryLimit(own)
	return own
}
