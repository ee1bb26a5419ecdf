package overload

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// group is a memory cgroup of a test's own, of either version.
type group struct {
	dir string
	v1  bool
}

// newGroup makes one that may have limit bytes, wherever this machine's memory controller is. It is removed when the test
// ends, after what the test starts in it.
func newGroup(t *testing.T, limit int64) *group {
	t.Helper()
	g := &group{}
	parent := ""
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		switch v1 := fields[2] == "cgroup"; {
		case v1 && slices.Contains(strings.Split(fields[3], ","), "memory"):
			parent, g.v1 = fields[1], true
		case fields[2] == "cgroup2" && parent == "":
			parent = fields[1]
		}
	}
	if !g.v1 {
		err = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+memory"), 0)
	}
	g.dir = filepath.Join(parent, fmt.Sprintf("heddle-overload-%d", os.Getpid()))
	if err = errors.Join(err, os.Mkdir(g.dir, 0o755)); err != nil {
		t.Fatalf("no memory cgroup can be made in %q: %v", parent, err)
	}
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the kernel needs a moment
			if err := os.Remove(g.dir); err == nil || time.Now().After(deadline) {
				if err != nil {
					t.Error(err)
				}
				return
			}
		}
	})
	if err := os.WriteFile(filepath.Join(g.dir, g.file("memory.limit_in_bytes", "memory.max")), strconv.AppendInt(nil, limit, 10), 0); err != nil {
		t.Fatal(err)
	}
	return g
}

// file is a name by the version.
func (g *group) file(one, two string) string {
	if g.v1 {
		return one
	}
	return two
}

// command is how a program is begun that runs in it from its first instruction on.
func (g *group) command(program string) []string {
	return []string{"/bin/sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, g.dir, program}
}

// bytes reads a file that has one number, or the one that stands behind a name.
func (g *group) bytes(t *testing.T, file, name string) int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			return n
		}
	}
	t.Fatalf("%s has no %q: %s", file, name, text)
	return 0
}

// kills is how many processes the kernel has ended for want of memory, hits how often the limit was reached, most the most that was used.
func (g *group) kills(t *testing.T) int64 {
	return g.bytes(t, g.file("memory.oom_control", "memory.events"), "oom_kill ")
}

func (g *group) hits(t *testing.T) int64 {
	if g.v1 {
		return g.bytes(t, "memory.failcnt", "")
	}
	return g.bytes(t, "memory.events", "max ")
}

func (g *group) most(t *testing.T) int64 {
	return g.bytes(t, g.file("memory.max_usage_in_bytes", "memory.peak"), "")
}

func (g *group) used(t *testing.T) int64 {
	return g.bytes(t, g.file("memory.usage_in_bytes", "memory.current"), "")
}
