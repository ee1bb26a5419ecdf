package overdue

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// idle are the places in the kernel where a thread of a Go program waits that has
// nothing to do, and where the one is that looks.
var idle = [...]string{"proc_pid_stack", "futex_", "__futex_", "do_futex", "ep_poll", "do_epoll_wait", "hrtimer_nanosleep", "do_nanosleep", "do_sigtimedwait"}

// kernelWaits says where in the kernel this process's threads wait, such as
// "rtnl_lock": what nobody else can tell of a process that hangs. Where that cannot
// be read there is nothing to say.
func kernelWaits() []any {
	stacks, err := filepath.Glob("/proc/self/task/*/stack")
	if err != nil {
		return nil
	}
	var waits []string
	for _, path := range stacks {
		if text, err := os.ReadFile(path); err == nil { // needs CAP_SYS_ADMIN
			waits = append(waits, waitIn(string(text)))
		}
	}
	slices.Sort(waits)
	waits = slices.DeleteFunc(slices.Compact(waits), func(w string) bool { return w == "" })
	if len(waits) == 0 {
		return nil
	}
	return []any{"in_the_kernel", strings.Join(waits, ",")}
}

// waitIn returns the innermost function of a kernel stack as proc(5) shows it, line
// by line "[<0>] name+0x1/0x2"; "" is of a thread that runs, or is idle.
func waitIn(stack string) string {
	line, _, _ := strings.Cut(stack, "\n")
	_, name, ok := strings.Cut(line, "] ")
	name, _, _ = strings.Cut(name, "+")
	if !ok || slices.ContainsFunc(idle[:], func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
		return ""
	}
	return name
}

// Process describes a process for a log: its number, name and state, "Z" and "X"
// for one that is ending (proc(5), stat).
func Process(pid int) string {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	end := bytes.LastIndexByte(text, ')') // a name may have anything in it
	begin := bytes.IndexByte(text, '(')
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("%d (gone)", pid)
	}
	if err != nil || begin < 0 || end < begin || end+2 >= len(text) {
		return strconv.Itoa(pid)
	}
	return fmt.Sprintf("%d (%s, state %c)", pid, text[begin+1:end], text[end+2])
}

// Holder describes the process that has a lock of flock(2) on an open file, for a
// log; "nobody who can be seen" when there is none, or when it is in another pid
// namespace (proc(5), locks).
func Holder(f *os.File) string {
	const unseen = "nobody who can be seen"
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return unseen
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return unseen
	}
	if pid := holderIn(string(locks), st.Ino); pid > 0 {
		return Process(pid)
	}
	return unseen
}

// holderIn finds the holder of a flock(2) on an inode in the text of /proc/locks: it
// has lines like "1: FLOCK  ADVISORY  WRITE 22257 fe:00:860557 0 EOF", and "1: ->"
// before who waits. The device is not compared: it is not stat(2)'s on every file
// system, and what comes of it is only shown.
func holderIn(locks string, inode uint64) int {
	for line := range strings.Lines(locks) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], ":"+strconv.FormatUint(inode, 10)) {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			return pid
		}
	}
	return 0
}
