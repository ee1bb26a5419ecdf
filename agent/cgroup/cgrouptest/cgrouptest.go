// Package cgrouptest gives tests processes in cgroups of their own, and TCP sockets
// that such a process makes: the kernel tells sockets by the cgroup they were made in.
// A test's program starts itself anew for each, by a name in its last argument.
package cgrouptest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/cgroup"
	"github.com/heddle-mesh/heddle/agent/netns"
)

// FirstFd is the first descriptor that Start was given, in the process it started.
const FirstFd = 3

// Exit ends the process, with the status of a process whose error err is.
func Exit(err error) {
	if status, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(status.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Role is a process in a cgroup of its own.
type Role struct {
	cmd    *exec.Cmd
	cgroup string
}

// Start starts this program anew, with name as its last argument, in a cgroup that has
// this name and this process's number. It has copies of the descriptors, from FirstFd on.
func Start(name string, fds ...int) (*Role, error) {
	mount, _, err := cgroup.Mount()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(mount, name+"-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:], name)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	for _, fd := range fds {
		// Not os.NewFile(fd) itself: its finalizer would close the descriptor.
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		end := os.NewFile(uintptr(dup), "pair")
		defer end.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, end)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(folder.Fd()), Pdeathsig: syscall.SIGKILL}
	return &Role{cmd: cmd, cgroup: dir}, cmd.Start()
}

// Wait waits for the process, and takes its cgroup away.
func (r *Role) Wait() error {
	err := r.cmd.Wait()
	// The kernel lets go of the folder a moment after the last thread left.
	for deadline := time.Now().Add(5 * time.Second); os.Remove(r.cgroup) != nil && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if _, gone := os.Stat(r.cgroup); !errors.Is(gone, os.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("cgroup %s is left behind", r.cgroup))
	}
	return err
}

// Pair returns two ends for Start: of who makes sockets, and of who asks for them.
func Pair() (ends [2]int, err error) {
	return unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
}

// most bounds the sockets of one answer.
const most = 32

// wanted asks for TCP sockets in a network namespace.
type wanted struct {
	NetNS  string
	Family int
	Count  int
}

// MakeSockets makes what Sockets at the other end ask for, until that is closed.
func MakeSockets(end int) error {
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(end, buf)
		if err != nil || n == 0 {
			return err
		}
		var want wanted
		if err := json.Unmarshal(buf[:n], &want); err != nil {
			return err
		}
		answer, rights := "ok", []byte(nil)
		fds, failed := want.sockets()
		if failed == nil {
			rights = unix.UnixRights(fds...)
		} else {
			answer = failed.Error()
		}
		if err := errors.Join(unix.Sendmsg(end, []byte(answer), rights, nil, 0), closeAll(fds)); err != nil {
			return err
		}
	}
}

func (w *wanted) sockets() (fds []int, err error) {
	ns, err := netns.Open(w.NetNS)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = ns.Do(func() error {
		for range w.Count {
			fd, err := unix.Socket(w.Family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		return nil
	})
	return fds, err
}

func closeAll(fds []int) (err error) {
	for _, fd := range fds {
		err = errors.Join(err, unix.Close(fd))
	}
	return err
}

// Sockets are what a process at the other end of a Pair makes. It is safe for
// concurrent use.
type Sockets struct {
	end, atOnce int

	mu    sync.Mutex
	stock map[wanted][]int
}

// NewSockets asks at its end for so many at once, 32 at most, and keeps what is over
// until Close.
func NewSockets(end, atOnce int) *Sockets {
	return &Sockets{end: end, atOnce: min(max(atOnce, 1), most), stock: map[wanted][]int{}}
}

// Take returns a non-blocking socket in a network namespace, by the path of that, for
// addresses like the given one. It is the caller's.
func (s *Sockets) Take(ns string, like netip.Addr) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := wanted{NetNS: ns, Family: netns.Family(like), Count: s.atOnce}
	if len(s.stock[want]) == 0 {
		if err := s.fetch(want); err != nil {
			return -1, fmt.Errorf("ask for sockets in %s: %w", ns, err)
		}
	}
	have := s.stock[want]
	s.stock[want] = have[1:]
	return have[0], nil
}

func (s *Sockets) fetch(want wanted) error {
	request, err := json.Marshal(want)
	if err != nil {
		return err
	}
	if _, err := unix.Write(s.end, request); err != nil {
		return err
	}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*most))
	n, oobn, _, _, err := unix.Recvmsg(s.end, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || string(buf[:n]) != "ok" {
		return errors.Join(err, fmt.Errorf("the answer is %q", buf[:n]))
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return errors.Join(err, errors.New("the answer holds no sockets"))
	}
	s.stock[want], err = unix.ParseUnixRights(&messages[0])
	return err
}

// Close closes what is over.
func (s *Sockets) Close() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fds := range s.stock {
		err = errors.Join(err, closeAll(fds))
	}
	clear(s.stock)
	return err
}
