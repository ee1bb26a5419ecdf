package memory_test

import (
	"io/fs"
	"maps"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/heddle-mesh/heddle/internal/memory"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// Lines of /proc/self/mountinfo: as a machine has them with version 2 alone, with version 1, in a container of version 1 that sees
// its own cgroup only, and in a folder with a blank.
const (
	two     = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	one     = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n35 31 0:32 / /sys/fs/cgroup/memory rw shared:9 master:2 - cgroup cgroup rw,memory\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	inside  = "35 31 0:32 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
	blank   = "35 31 0:32 / /my\\040groups rw - cgroup cgroup rw,cpu,memory\n"
	noLimit = "9223372036854771712\n"
)

// machine has these files.
func machine(files map[string]string) fs.FS {
	root := fstest.MapFS{}
	for name, text := range files {
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return root
}

// TestLimit: the tightest of a cgroup and those above it counts, in either version, and nothing beside it.
func TestLimit(t *testing.T) {
	for name, c := range map[string]struct {
		cgroup, mounts string
		files          map[string]string
		want           int64
		wrong          string
	}{
		"a pod's own namespace": {"0::/\n", two, map[string]string{"sys/fs/cgroup/memory.max": "1073741824\n"}, 1 << 30, ""},
		"none":                  {"0::/a/b\n", two, map[string]string{"sys/fs/cgroup/a/b/memory.max": "max\n"}, 0, ""},
		"above":                 {"0::/a/b\n", two, map[string]string{"sys/fs/cgroup/a/b/memory.max": "2000\n", "sys/fs/cgroup/a/memory.max": "1000\n"}, 1000, ""},
		"below":                 {"0::/a/b\n", two, map[string]string{"sys/fs/cgroup/a/b/memory.max": "1000\n", "sys/fs/cgroup/a/memory.max": "2000\n", "sys/fs/cgroup/c/memory.max": "1\n"}, 1000, ""},
		"no way out":            {"0::/../../a\n", two, map[string]string{"a/memory.max": "1000\n"}, 0, ""},
		"no number":             {"0::/\n", two, map[string]string{"sys/fs/cgroup/memory.max": "much\n"}, 0, "memory.max"},
		"nothing there":         {"", two, nil, 0, ""},
		"version 1": {"4:memory:/a/b\n0::/\n", one, map[string]string{"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "1000\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": noLimit,
			"sys/fs/cgroup/unified/memory.max": "1\n"}, 1000, ""},
		"version 1, none":  {"4:memory:/a\n", one, map[string]string{"sys/fs/cgroup/memory/a/memory.limit_in_bytes": noLimit, "sys/fs/cgroup/memory/a/memory.stat": "hierarchical_memory_limit " + noLimit}, 0, ""},
		"version 1, above": {"4:cpu,memory:/a/b\n", one, map[string]string{"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "2000\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "1000\n"}, 1000, ""},
		"version 1, above what is mounted": {"4:memory:/docker/x\n", inside, map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "2000\n",
			"sys/fs/cgroup/memory/memory.stat": "cache 1\nhierarchical_memory_limit 1500\nhierarchical_memsw_limit 1\n"}, 1500, ""},
		"version 1, another's":    {"4:memory:/docker/xy\n", inside, map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "2000\n"}, 0, "/docker/xy"},
		"version 1, no mount":     {"4:memory:/a\n", two, nil, 0, "mountinfo"},
		"version 1, no number":    {"4:memory:/a\n", one, map[string]string{"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "max?\n"}, 0, "memory.limit_in_bytes"},
		"version 1, no statistic": {"4:memory:/a\n", one, map[string]string{"sys/fs/cgroup/memory/a/memory.stat": "hierarchical_memory_limit -1\n"}, 0, "memory.stat"},
		"a blank":                 {"4:cpu,memory:/a b\n", blank, map[string]string{"my groups/a b/memory.limit_in_bytes": "1000\n"}, 1000, ""},
	} {
		files := map[string]string{"proc/self/cgroup": c.cgroup, "proc/self/mountinfo": c.mounts}
		maps.Copy(files, c.files)
		got, err := memory.Limit(machine(files))
		if got != c.want || (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %d %v, want %d", name, got, err, c.want)
		}
	}
	if _, err := memory.Limit(machine(nil)); err == nil || !strings.Contains(err.Error(), "proc/self/cgroup") {
		t.Errorf("without /proc: %v", err)
	}
	if _, err := memory.Limit(os.DirFS("/")); err != nil {
		t.Errorf("of this machine: %v", err)
	}
}

// FuzzLimit: whatever the kernel's files say, a limit is none or more than nothing, and no larger than one that is there.
func FuzzLimit(f *testing.F) {
	f.Add("0::/a\n", two, "1000\n")
	f.Add("4:memory:/a\n0::/\n", one, noLimit)
	f.Add("4:memory:/docker/x\n", inside, "hierarchical_memory_limit 77\n")
	f.Add("0::/../../..\n", "1 1 0:1 /../.. /../../sys rw - cgroup2 cgroup2 rw\n", "max\n")
	f.Fuzz(func(t *testing.T, cgroup, mounts, limit string) {
		files := map[string]string{"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
		for _, folder := range []string{"sys/fs/cgroup", "sys/fs/cgroup/a", "sys/fs/cgroup/memory", "sys/fs/cgroup/memory/a"} {
			for _, name := range []string{"memory.max", "memory.limit_in_bytes", "memory.stat"} {
				files[folder+"/"+name] = limit
			}
		}
		n, err := memory.Limit(machine(files))
		if n < 0 || n >= 1<<62 || err != nil && n != 0 || n > 0 && !strings.Contains(limit, strconv.FormatInt(n, 10)) && !strings.ContainsAny(limit, "+0") {
			t.Errorf("%d %v", n, err)
		}
	})
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
