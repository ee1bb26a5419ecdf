package memory

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

const (
	// most is how many bytes of a file of the kernel's are read; what /proc/self/mountinfo has beyond is not looked at.
	most = 4 << 20
	// unlimited is what version 1 says without a limit, or more: the largest number of bytes that is whole pages.
	unlimited = 1 << 62
)

// hierarchy is the tree of cgroups that the memory controller is in: one per machine, of either version.
type hierarchy struct {
	cgroup string // that of this process, as seen from the root of its namespace
	limit  string // the file that has a cgroup's own limit
	v1     bool
}

// Limit returns how many bytes the cgroup of this process, or the tightest of those above it, lets it have, by the memory controller
// of version 2 or 1 (cgroups(7)); 0 where none says so. Root is what /proc and /sys are in, os.DirFS("/") but for tests. An error names
// the file that could not be read.
func Limit(root fs.FS) (int64, error) {
	text, err := read(root, "proc/self/cgroup")
	if err != nil {
		return 0, err
	}
	h, ok := find(text)
	if !ok {
		return 0, nil
	}
	if text, err = read(root, "proc/self/mountinfo"); err != nil {
		return 0, err
	}
	least, seen := int64(0), false
	for line := range strings.Lines(text) {
		top, at, ok := h.shown(line)
		if !ok {
			continue
		}
		seen = true
		n, err := h.least(root, top, at)
		if err != nil {
			return 0, err
		}
		least = tighter(least, n)
	}
	if !seen {
		return 0, fmt.Errorf("find the limit of memory: proc/self/mountinfo: no mount shows the cgroup %q that proc/self/cgroup names", h.cgroup)
	}
	return least, nil
}

// find says from a /proc/self/cgroup where the memory controller is: in the hierarchy of version 1 that lists it, else in version 2.
func find(text string) (h hierarchy, ok bool) {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) < 3 || !strings.HasPrefix(parts[2], "/") {
			continue
		}
		switch {
		case slices.Contains(strings.Split(parts[1], ","), "memory"):
			return hierarchy{cgroup: parts[2], limit: "memory.limit_in_bytes", v1: true}, true
		case parts[0] == "0" && parts[1] == "":
			h, ok = hierarchy{cgroup: parts[2], limit: "memory.max"}, true
		}
	}
	return h, ok
}

// shown reads a line of /proc/self/mountinfo (proc(5)), and says where it shows the process' cgroup: at, below the folder top that is
// mounted.
func (h *hierarchy) shown(line string) (top, at string, ok bool) {
	mount, system, ok := strings.Cut(line, " - ")
	fields, of := strings.Fields(mount), strings.Fields(system)
	if !ok || len(fields) < 5 || len(of) < 3 {
		return "", "", false
	}
	if h.v1 {
		ok = of[0] == "cgroup" && slices.Contains(strings.Split(of[2], ","), "memory")
	} else {
		ok = of[0] == "cgroup2"
	}
	part := strings.TrimSuffix(unescape(fields[3]), "/") // of the hierarchy
	at, below := strings.CutPrefix(h.cgroup, part)
	return unescape(fields[4]), at, ok && below && (at == "" || at[0] == '/')
}

// unescape reads a path of mountinfo, in which blanks and backslashes are octal.
func unescape(name string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(name)
}

// least is the tightest limit from the cgroup at up to the top of a mount, and of those above where the kernel tells of them.
func (h *hierarchy) least(root fs.FS, top, at string) (least int64, err error) {
	top = path.Join("/", top)
	folder := path.Join(top, path.Join("/", at))
	if h.v1 {
		if least, err = above(root, path.Join(folder, "memory.stat")); err != nil {
			return 0, err
		}
	}
	for ; ; folder = path.Dir(folder) {
		file := path.Join(folder, h.limit)
		text, err := read(root, file)
		if err == nil {
			var n int64
			n, err = bytes(file, text)
			least = tighter(least, n)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // there is none in the root, or without the controller
			return 0, err
		}
		if len(folder) <= len(top) {
			return least, nil
		}
	}
}

// above is the tightest limit of a cgroup of version 1 and of all above it, those that no mount shows too, by its memory.stat.
func above(root fs.FS, file string) (int64, error) {
	text, err := read(root, file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for line := range strings.Lines(text) {
		if n, ok := strings.CutPrefix(line, "hierarchical_memory_limit "); ok {
			return bytes(file, n)
		}
	}
	return 0, err
}

// bytes reads a limit; 0 is none.
func bytes(file, text string) (int64, error) {
	text = strings.TrimSpace(text)
	if text == "max" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s: %.40q is no number of bytes", file, text)
	}
	if n >= unlimited {
		return 0, nil
	}
	return n, nil
}

// tighter is the smaller of two limits, of which 0 is none.
func tighter(a, b int64) int64 {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// read reads a file of the kernel's by its path from "/".
func read(root fs.FS, file string) (string, error) {
	f, err := root.Open(strings.TrimPrefix(file, "/"))
	if err != nil {
		return "", fmt.Errorf("find the limit of memory: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return "", fmt.Errorf("find the limit of memory: %w", err)
	}
	return string(text), nil
}
