package memory_test

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/memory"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestLimit: the tightest of a cgroup and those above it counts, and nothing beside it.
func TestLimit(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
		wrong string
	}{
		"a pod's own namespace": {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n"}, 1 << 30, ""},
		"none":                  {map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 0, ""},
		"above":                 {map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "2000\n", "sys/fs/cgroup/a/memory.max": "1000\n"}, 1000, ""},
		"below":                 {map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "1000\n", "sys/fs/cgroup/a/memory.max": "2000\n", "sys/fs/cgroup/c/memory.max": "1\n"}, 1000, ""},
		"version 1":             {map[string]string{"proc/self/cgroup": "4:memory:/a\n", "sys/fs/cgroup/a/memory.max": "1000\n"}, 0, ""},
		"no way out":            {map[string]string{"proc/self/cgroup": "0::/../../a\n", "a/memory.max": "1000\n"}, 0, ""},
		"no number":             {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "much\n"}, 0, "memory.max"},
		"nothing there":         {nil, 0, "proc/self/cgroup"},
	} {
		root := t.TempDir()
		for file, text := range c.files {
			file = filepath.Join(root, file)
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := memory.Limit(root)
		if got != c.want || (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %d %v, want %d", name, got, err, c.want)
		}
	}
	if _, err := memory.Limit("/"); err != nil {
		t.Errorf("of this machine: %v", err)
	}
}

// TestKeep: the collector is told of less than all, and what somebody has told it stays.
func TestKeep(t *testing.T) {
	before := debug.SetMemoryLimit(math.MaxInt64)
	defer debug.SetMemoryLimit(before)
	if got := memory.Keep(1 << 30); got < 800<<20 || got > 920<<20 || debug.SetMemoryLimit(-1) != got {
		t.Errorf("%d of 1 GiB, and the collector knows of %d", got, debug.SetMemoryLimit(-1))
	}
	debug.SetMemoryLimit(123 << 20)
	if got := memory.Keep(1 << 30); got != 123<<20 || debug.SetMemoryLimit(-1) != got {
		t.Errorf("what was said becomes %d", got)
	}
}
