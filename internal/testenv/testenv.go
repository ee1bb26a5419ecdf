// Package testenv is what the tests of this repository share: leak checks
// around every package, network namespaces of a test's own, and kernel gates
// that fail rather than skip when the kernel is new enough.
//
// It is imported by tests only. Functions that take a testing.TB may be called
// from the test's goroutine only; a NetNS may be used from any goroutine.
package testenv

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The main thread stays with the main goroutine, out of reach of code that changes a
// thread's namespace: /proc/PID/ns would show the wrong one. Any later than in an init
// the goroutine may have moved to another thread.
func init() { runtime.LockOSThread() }

// Main runs a package's tests and fails the run when goroutines or file
// descriptors are left behind. Every package calls it from TestMain.
func Main(m *testing.M) {
	// The pollers and the runtime open descriptors of their own on first use;
	// they are not leaks, so they are opened before counting.
	warmRuntimeDescriptors()
	before := openDescriptors()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon")); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines left behind:", err)
			code = 1
		}
	}
	if code == 0 {
		if left := leakedDescriptors(before); len(left) > 0 {
			fmt.Fprintln(os.Stderr, "file descriptors left behind:", strings.Join(left, ", "))
			code = 1
		}
	}
	os.Exit(code)
}

// NeedRoot fails the test without root: the tests of the kernel's part are
// never skipped, because a skipped test looks like one that passed.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: run it with sudo, or run `make test-unit`, which leaves such packages out")
	}
}

// NeedProcessor skips a test, or a benchmark, of code that this processor cannot
// run; lacking names what it has not, "" is nothing. It is the only skip that there
// is: a kernel can be had, root can be had, another processor cannot. What is
// skipped counts as such, and scripts/summary says so.
func NeedProcessor(t testing.TB, lacking string) {
	t.Helper()
	if lacking != "" {
		t.Skipf("not tested: this processor has no %s", lacking)
	}
}

// KernelOlderThan says whether the running kernel is older than minimum ("6.6").
func KernelOlderThan(t testing.TB, minimum string) bool {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatalf("uname: %v", err)
	}
	var have, want [2]int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &have[0], &have[1]); err != nil {
		t.Fatalf("parse kernel release: %v", err)
	}
	if _, err := fmt.Sscanf(minimum, "%d.%d", &want[0], &want[1]); err != nil {
		t.Fatalf("parse minimum %q: %v", minimum, err)
	}
	return have[0] < want[0] || have[0] == want[0] && have[1] < want[1]
}

// Eventually polls cond every 10 ms until it holds, and fails the test when it
// does not within the limit; what names the condition in the failure.
func Eventually(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func warmRuntimeDescriptors() {
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	done := make(chan struct{})
	go func() { defer close(done); var b [1]byte; _, _ = r.Read(b[:]) }() // reading only starts the poller
	w.Close()
	<-done
	r.Close()
	runtime.GC()
}

func openDescriptors() map[string]string {
	open := map[string]string{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return open
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			open[e.Name()] = target
		}
	}
	return open
}

// leakedDescriptors lists what is open now and was not before. Finalizers may
// hold a descriptor for a moment, so it looks several times.
func leakedDescriptors(before map[string]string) []string {
	var left []string
	for range 20 {
		runtime.GC()
		left = left[:0]
		for fd, target := range openDescriptors() {
			if before[fd] != target && !strings.HasPrefix(target, "/proc/") && !strings.Contains(target, "anon_inode:[event") {
				left = append(left, fd+" "+target)
			}
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return left
}
