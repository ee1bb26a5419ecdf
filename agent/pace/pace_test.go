package pace_test

import (
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/pace"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// nices are the nice values of the process's threads.
func nices(t *testing.T) map[int]bool {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil || len(threads) == 0 {
		t.Fatalf("%v, %v", threads, err)
	}
	all := map[int]bool{}
	for _, path := range threads {
		tid, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			t.Fatal(err)
		}
		if biased, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil {
			all[20-biased] = true
		}
	}
	return all
}

// TestPace: every thread is faster or slower for a while, and as before then.
func TestPace(t *testing.T) {
	testenv.NeedRoot(t) // to be faster
	before := nices(t)
	for name, change := range map[string]func() func(){"yield": pace.Yield, "hurry": pace.Hurry} {
		restore := change()
		now := nices(t)
		if len(now) != 1 || now[0] {
			t.Errorf("%s: threads have the nice values %v", name, now)
		}
		restore()
		if after := nices(t); len(after) != 1 || len(before) != 1 {
			t.Errorf("%s: before %v, after %v", name, before, after)
		} else {
			for value := range after {
				if !before[value] {
					t.Errorf("%s: before %v, after %v", name, before, after)
				}
			}
		}
	}
}
