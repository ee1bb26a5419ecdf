// Package descriptors says how many files an agent may have open, and how many of
// them its pods' connections may take. It keeps nothing.
package descriptors

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// RaiseLimit lifts the process's soft limit of open descriptors to the hard one, and
// returns it.
func RaiseLimit() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	if limit.Cur < limit.Max {
		limit.Cur = limit.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return 0, fmt.Errorf("raise the limit of open files: %w", err)
		}
	}
	return limit.Cur, nil
}

// ForSockets is how many sockets of connections fit into a limit of open descriptors:
// the rest is kept for pipes, listeners, maps, and the up to 512 sockets that are made
// ahead in pods. Tunnel connections are among the sockets.
func ForSockets(limit uint64) int {
	const kept = 4096
	if limit <= 2*kept {
		return int(limit / 2)
	}
	return int(min(limit-kept, 1<<20))
}
