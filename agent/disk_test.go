package agent_test

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent"
)

// TestHandOverStaysOffDisk: a connection that moves, with bytes that nobody has taken
// yet, goes through no file on any file system: the kernel says which files the two
// agents have written meanwhile (fanotify(7)), those are the ones that every start
// writes, and none has a word of what was said.
func TestHandOverStaysOffDisk(t *testing.T) {
	w := newWorld(t)
	over := make(chan struct{})
	w.pods["db"].serve(7001, func(*net.TCPConn) { <-over }) // reads nothing
	t.Cleanup(sync.OnceFunc(func() { close(over) }))
	for _, n := range []*node{w.n1, w.n2} {
		n.start()
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	secret := "not for a disk " + rand.Text()
	fill(t, w.pods["web"], "10.96.0.1:70", secret)
	for _, n := range []*node{w.n1, w.n2} {
		written := watchWrites(t, w.dir, filepath.Join(w.dir, n.name, "keys"), "/dev/shm", os.TempDir())
		old := n.cmd
		n.start(func(c *agent.Config) { c.TakeOver = agent.TakeOverRequire })
		if err := ended(t, old); err != nil {
			t.Fatal(err)
		}
		n.await("enrolled")
		if h := n.status().GetHandOver(); h.GetConnections() == 0 || h.GetLeft() != 0 {
			t.Errorf("no connection has moved: %v", h)
		}
		var paths []string
		for pid, files := range written() {
			if pid == old.Process.Pid || pid == n.cmd.Process.Pid {
				paths = append(paths, files...)
			}
		}
		paths = append(paths, openForWriting(t, n.cmd.Process.Pid)...)
		slices.Sort(paths)
		paths = slices.Compact(paths)
		if !slices.Contains(paths, n.log) {
			t.Errorf("nobody saw that the log was written: %q", paths)
		}
		own := regexp.MustCompile("^" + regexp.QuoteMeta(w.dir) + "/(" + n.name + `\.log|` + n.name + `/(agent\.lock|pods/[^/]+\.json(\.new)?|state/(last-good|flows/([0-9]{10}-[0-9a-f]{8}\.flows|\.new-[0-9a-f]+)|\.new-[0-9a-f]+)))$`)
		for _, path := range paths {
			if !own.MatchString(path) {
				t.Errorf("%s: a hand-over has written %s", n.name, path)
			}
			if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), secret) {
				t.Errorf("%s: %s has what was said on a connection", n.name, path)
			}
		}
	}
}

// fill says the words until nobody takes any more of them.
func fill(t *testing.T, from *podNS, to, words string) {
	t.Helper()
	c, err := from.dial(to)
	if err != nil {
		t.Fatal(err)
	}
	block := []byte(strings.Repeat(words+"\n", 1000))
	for n := 0; n < 64<<20; {
		if err := c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		k, err := c.Write(block)
		n += k
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("an application that reads nothing has taken 64 MiB")
}

// watchWrites watches the file systems of the paths. written ends that, and returns
// the files that were written and closed meanwhile, by process.
func watchWrites(t *testing.T, paths ...string) (written func() map[int][]string) {
	t.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE, unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	if err != nil {
		t.Fatalf("fanotify: %v", err)
	}
	events := os.NewFile(uintptr(fd), "fanotify")
	t.Cleanup(func() { events.Close() })
	for _, path := range paths {
		if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_CLOSE_WRITE, unix.AT_FDCWD, path); err != nil {
			t.Fatalf("watch the file system of %s: %v", path, err)
		}
	}
	all := map[int][]string{}
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := events.Read(buf)
			if err != nil {
				done <- err
				return
			}
			takeEvents(buf[:n], all)
		}
	}()
	return func() map[int][]string {
		time.Sleep(100 * time.Millisecond) // for the last to be read
		events.Close()
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("fanotify: %v", err)
		}
		return all
	}
}

// takeEvents reads struct fanotify_event_metadata: its length at 0, the descriptor of
// the file at 16, and the process at 20.
func takeEvents(b []byte, all map[int][]string) {
	for len(b) >= 24 {
		length, file, pid := binary.NativeEndian.Uint32(b), int32(binary.NativeEndian.Uint32(b[16:])), int(binary.NativeEndian.Uint32(b[20:]))
		if file >= 0 {
			if path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file)); err == nil {
				all[pid] = append(all[pid], strings.TrimSuffix(path, " (deleted)"))
			}
			unix.Close(int(file))
		}
		b = b[min(int(max(length, 24)), len(b)):]
	}
}

// openForWriting lists the regular files that a process has open to write to them:
// the kernel tells of those only when they are closed.
func openForWriting(t *testing.T, pid int) (paths []string) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(links) == 0 {
		t.Fatalf("%d descriptors, %v", len(links), err)
	}
	for _, link := range links {
		info, err := os.Stat(link)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		var flags int
		text, err := os.ReadFile(strings.Replace(link, "/fd/", "/fdinfo/", 1))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			_, _ = fmt.Sscanf(line, "flags: %o", &flags) // the other lines have other words
		}
		if path, err := os.Readlink(link); err == nil && strings.HasPrefix(path, "/") && flags&unix.O_ACCMODE != unix.O_RDONLY { // others are no files
			paths = append(paths, path)
		}
	}
	return paths
}
