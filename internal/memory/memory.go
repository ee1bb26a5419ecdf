// Package memory has a process keep within the memory that it may have: what its cgroup says is told to Go's collector, which knows
// of no limit by itself and lets a heap grow to twice what is in use. It starts nothing, and keeps no state but the runtime's.
package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// share of a limit is Go's, in percent: the rest is for what the collector does not see, such as the kernel's
// buffers of sockets, which count in a cgroup as well, and pages of the program's file.
const share = 85

// most is how many bytes of a file of the kernel's are read.
const most = 64 << 10

// Limit returns how many bytes the cgroup (version 2) of this process, or the tightest of those above it, lets it have; 0 where
// none says so. Root is what /proc and /sys are in, "/" but for tests. An error names the file that could not be read.
func Limit(root string) (int64, error) {
	text, err := read(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0, err
	}
	least, tree := int64(0), filepath.Join(root, "sys/fs/cgroup")
	for line := range strings.Lines(text) {
		at, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		if !ok {
			continue // of version 1
		}
		for folder := filepath.Join(tree, filepath.Join("/", at)); ; folder = filepath.Dir(folder) {
			n, err := limitOf(filepath.Join(folder, "memory.max"))
			if err != nil {
				return 0, err
			}
			if n > 0 && (least == 0 || n < least) {
				least = n
			}
			if len(folder) <= len(tree) {
				break
			}
		}
	}
	return least, nil
}

// limitOf is what a memory.max says; 0 for none, as where there is no such file: in the root, or without the controller.
func limitOf(file string) (int64, error) {
	text, err := read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	text = strings.TrimSpace(text)
	if text == "max" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s: %q is no number of bytes", file, text)
	}
	return n, nil
}

func read(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("find the limit of memory: %w", err)
	}
	return string(bytes.TrimRight(text[:min(len(text), most)], "\x00")), nil
}

// Keep has Go's collector keep this process within its part of limit bytes, and returns how many those are. What GOMEMLIMIT has
// said already stays, and is returned.
func Keep(limit int64) int64 {
	if said := debug.SetMemoryLimit(-1); said != math.MaxInt64 {
		return said
	}
	own := limit / 100 * share
	debug.SetMemoryLimit(own)
	return own
}
