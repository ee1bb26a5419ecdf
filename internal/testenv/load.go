package testenv

import (
	"fmt"
	"os"
	"runtime"
	"testing"
)

// Overloaded reports whether many more than one test wait for the machine's cores: by
// the kernel's average of the last minute, more than three for each of them
// (proc_loadavg(5)). What a test measures then says nothing of what it measures.
func Overloaded(t testing.TB) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	var load float64
	if _, err := fmt.Sscan(string(text), &load); err != nil {
		t.Fatalf("read /proc/loadavg: %v", err)
	}
	return load > 3*float64(runtime.NumCPU())
}
