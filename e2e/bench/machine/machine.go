// Package machine says what a benchmark ran on, and what the kernel has counted of a
// process. It starts nothing that stays, and judges nothing.
//
// Its functions are safe for concurrent use.
package machine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/e2e/bench/result"
)

// clockTick is how /proc counts CPU time (USER_HZ of times(2)).
const clockTick = 10 * time.Millisecond

// CPU is the time that a process has used, user and system.
func CPU(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	var ticks uint64
	// proc(5): utime and stime are fields 14 and 15; the second may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	for _, field := range fields[11:13] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// Stolen is the time that the hypervisor has given to others of what this machine's cores
// wanted, all cores together, since it started (steal of proc(5)); 0 on a machine of its own.
func Stolen() (time.Duration, error) {
	line := firstMatch("/proc/stat", `(?m)^cpu (.+)$`)
	fields := strings.Fields(line)
	if len(fields) < 8 {
		return 0, fmt.Errorf("/proc/stat says nothing of time that was stolen: %q", line)
	}
	ticks, err := strconv.ParseUint(fields[7], 10, 64)
	return time.Duration(ticks) * clockTick, err
}

// Resident is the memory of a process in bytes (VmRSS of proc(5)).
func Resident(pid int) (int, error) {
	found := firstMatch(fmt.Sprintf("/proc/%d/status", pid), `(?m)^VmRSS:\s+(\d+) kB$`)
	kib, err := strconv.Atoi(found)
	if err != nil {
		return 0, fmt.Errorf("process %d has no VmRSS: it is gone", pid)
	}
	return kib * 1024, nil
}

// Facts are of the machine and of the checkout at root, without what names the machine.
func Facts(root string) []result.Fact {
	return []result.Fact{
		{Name: "Heddle", Value: Said(root, `^\S+\s*$`, "git", "describe", "--tags", "--always", "--dirty")},
		{Name: "cores", Value: fmt.Sprintf("%d, %s", runtime.NumCPU(), firstMatch("/proc/cpuinfo", `(?m)^model name\s*: (.+)$`))},
		{Name: "kernel", Value: kernel()},
		{Name: "Go", Value: strings.TrimPrefix(runtime.Version(), "go")},
	}
}

// Load is the load of the last minute.
func Load() string { return firstMatch("/proc/loadavg", `^(\S+)`) }

// CongestionControl is what TCP goes by.
func CongestionControl() string {
	return firstMatch("/proc/sys/net/ipv4/tcp_congestion_control", `(.+)`)
}

// Said finds a pattern in what a command says; "unknown" without a match. Some that say their
// version end with an error.
func Said(dir, pattern, name string, args ...string) string {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, _ := cmd.CombinedOutput() // without a match it is unknown
	return match(string(out), pattern)
}

func firstMatch(path, pattern string) string {
	data, _ := os.ReadFile(path) // without a match it is unknown
	return match(string(data), pattern)
}

func match(text, pattern string) string {
	found := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if found == nil {
		return "unknown"
	}
	return strings.TrimSpace(found[len(found)-1])
}

func kernel() string {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(uts.Release[:])
}
