// Package pace changes how much of a busy machine the process gets while one agent
// takes over from another. It is per process: one change at a time.
package pace

import (
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// hurried is the nice value of an agent while connections are at rest, patient
// that of a successor until it is ready: the donor serves meanwhile, and must not
// be the slower for it.
const hurried, patient = -15, 5

// Yield puts the process behind others until the returned function is called.
func Yield() (restore func()) { return prefer(patient) }

// Hurry puts the process before others until the returned function is called:
// connections stand still meanwhile, and a busy machine must not make that long.
// Where it is not allowed nothing changes.
func Hurry() (restore func()) { return prefer(hurried) }

func prefer(value int) (restore func()) {
	// getpriority(2): the system call returns 20 - nice.
	biased, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return func() {}
	}
	renice(value)
	return func() { renice(20 - biased) }
}

// renice changes every thread there is, and the scheduling group of the session
// (sched(7), autogroup).
func renice(value int) {
	// A thread that starts meanwhile has the priority of the one that started it:
	// it is met in a later pass.
	for range 5 {
		changed := false
		threads, _ := filepath.Glob("/proc/self/task/*") // the pattern is well-formed
		for _, path := range threads {
			tid, err := strconv.Atoi(filepath.Base(path))
			if err != nil {
				continue
			}
			biased, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
			if err == nil && 20-biased != value {
				changed = unix.Setpriority(unix.PRIO_PROCESS, tid, value) == nil || changed
			}
		}
		if !changed {
			break
		}
	}
	_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(value)), 0) // not every kernel has it
}
