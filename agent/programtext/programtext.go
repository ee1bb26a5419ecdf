// Package programtext gives back what the running program's own file has in
// memory: its text and read-only data. Starting touches most of it, and the kernel
// maps large pieces around each touch; a program at rest needs little. It is a
// leaf.
package programtext

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Resident is how many bytes of files the process has mapped and resident: the
// program above all (statm of proc(5)).
func Resident() (int, error) {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(data)
	if len(fields) < 3 {
		return 0, fmt.Errorf("/proc/self/statm has %d fields, fewer than 3", len(fields))
	}
	pages, err := strconv.Atoi(string(fields[2]))
	return pages * os.Getpagesize(), err
}

// Drop unmaps the pages of the program's text and read-only data. They stay in
// the page cache, from where each comes back, with its neighbours, when it is
// touched: a minor fault of a microsecond or two. A mapping of which a page is not
// the file's own (relocated, or with a probe or a breakpoint in it) is left alone.
// It is safe to call at any time, from any goroutine.
func Drop() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	mappings, err := parse(f)
	if err != nil {
		return fmt.Errorf("read /proc/self/smaps: %w", err)
	}
	for _, m := range mappings {
		if !m.clean(exe) {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("unmap %s: %w", exe, errno)
		}
	}
	return nil
}

// mapping is an entry of smaps (proc(5)).
type mapping struct {
	start, end  uintptr
	permissions string
	path        string
	resident    int // in KiB, as the next is
	anonymous   int // pages that are no longer the file's
}

// clean reports whether nothing but the file is in the mapping.
func (m *mapping) clean(exe string) bool {
	return m.path == exe && m.permissions[0] == 'r' && m.permissions[1] == '-' && m.permissions[3] == 'p' && m.anonymous == 0
}

func parse(smaps io.Reader) (all []mapping, err error) {
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		if name, ok := strings.CutSuffix(word, ":"); ok {
			if len(all) == 0 {
				return nil, fmt.Errorf("%q comes before any mapping", name)
			}
			if err := all[len(all)-1].set(name, rest); err != nil {
				return nil, err
			}
			continue
		}
		m, err := header(lines.Text())
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, lines.Err()
}

// header parses "START-END PERMISSIONS OFFSET DEVICE INODE PATH".
func header(line string) (m mapping, err error) {
	fields := strings.SplitN(line, " ", 6)
	if len(fields) < 6 || len(fields[1]) != 4 {
		return m, fmt.Errorf("%q is no mapping", line)
	}
	from, to, _ := strings.Cut(fields[0], "-")
	for _, bound := range []struct {
		text string
		into *uintptr
	}{{from, &m.start}, {to, &m.end}} {
		n, err := strconv.ParseUint(bound.text, 16, strconv.IntSize)
		if err != nil {
			return m, err
		}
		*bound.into = uintptr(n)
	}
	m.permissions, m.path = fields[1], strings.TrimLeft(fields[5], " ")
	return m, nil
}

// set takes the fields that matter.
func (m *mapping) set(name, value string) (err error) {
	into := map[string]*int{"Rss": &m.resident, "Anonymous": &m.anonymous}[name]
	if into == nil {
		return nil
	}
	*into, err = strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
	return err
}
