package netns

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Congestion says which congestion control TCP goes by on the agent's sockets in one
// network namespace. The zero Congestion leaves each as it is.
//
// BBR paces: after each segment the kernel waits on a timer before it sends the next. Within a
// machine, and over a path so short that it has no queue to spare, that costs a third of what a
// byte costs, and spares nobody anything (ADR 31).
type Congestion struct {
	system  string // the namespace's default
	unpaced bool   // which paces, and is not taken where that is of no use
	short   time.Duration
}

// The algorithms that do not pace. Reno is in every kernel.
const (
	unpacedLocal  = "reno"
	unpacedTunnel = "cubic" // Linux's own default
)

// shortPath is below which round-trip time a tunnel is left unpaced: within a data centre, not between two.
const shortPath = time.Millisecond

// Congestion looks at the namespace's default, and returns what is better where it paces; with
// system it returns the default for all.
func (n *Namespace) Congestion(system bool) (c Congestion, err error) {
	err = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		c.system, err = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		c.unpaced, c.short = !system && strings.HasPrefix(c.system, "bbr"), shortPath
		return errors.Join(os.NewSyscallError("getsockopt", err), CloseFd(fd))
	})
	return c, err
}

// Route is the congestion control of the route by which the pod's programs reach the agent, "" for the
// system's: theirs are the other ends of the agent's local connections.
func (c Congestion) Route() string {
	if c.unpaced {
		return unpacedLocal
	}
	return ""
}

// Local sets it on a socket whose peer is in the same pod, or on a listener for such.
func (c Congestion) Local(fd int) error {
	if !c.unpaced {
		return nil
	}
	return setCongestion(fd, unpacedLocal)
}

// Tunnel prepares a tunnel's socket before it connects, or their listener: what has paced once goes on
// with it under another algorithm, so they begin without. Settle is to follow.
func (c Congestion) Tunnel(fd int) error {
	if !c.unpaced {
		return nil
	}
	err := setCongestion(fd, unpacedTunnel)
	if errors.Is(err, unix.ENOENT) { // this kernel has none: they pace
		return nil
	}
	return err
}

// Settle gives a tunnel that has just connected back to the system's algorithm, unless its path is a
// short one by the handshake. One that is closed already is left alone.
func (c Congestion) Settle(conn *net.TCPConn) error {
	if !c.unpaced {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && time.Duration(info.Min_rtt)*time.Microsecond < c.short {
			return
		}
		inner = errors.Join(os.NewSyscallError("getsockopt", err), setCongestion(int(fd), c.system))
	})
	return errors.Join(err, inner)
}

// System undoes what another agent may have set on a listener.
func (c Congestion) System(fd int) error {
	if c.unpaced || c.system == "" {
		return nil
	}
	return setCongestion(fd, c.system)
}

// setCongestion never waits: all that the agent sets is built in, or the namespace's default.
func setCongestion(fd int, name string) error {
	if _, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION,
		uintptr(unsafe.Pointer(unsafe.StringData(name))), uintptr(len(name)), 0); errno != 0 {
		return os.NewSyscallError("setsockopt", errno)
	}
	return nil
}
