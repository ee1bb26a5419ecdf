// Package listener opens the agent's listeners inside pods, adopts those of
// another process, and gives its own away: marked, transparent, with keepalives.
// It keeps nothing.
package listener

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// The ports beside mesh.TunnelPort.
const (
	OutboundPort = 15001
	InboundPort  = 15006
)

// KeepAlive is the idle time and the interval of TCP keepalives on the agent's
// sockets: live connections refresh their flow entries by it.
const KeepAlive = 15 * time.Second

// Options are of all sockets in a pod.
type Options struct {
	// Mark leads answers out by the main table, past the redirect rule.
	Mark uint32
	// Congestion is what is better than the system's congestion control.
	Congestion netns.Congestion
}

// Open listens on a port of loopback, in the network namespace of the calling
// thread. What it accepts carries the mark, and addresses that are not the
// namespace's.
func Open(ctx context.Context, family int, port uint16, o Options) (*net.TCPListener, error) {
	network, host := "tcp4", netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if family == unix.AF_INET6 {
		network, host = "tcp6", netip.IPv6Loopback()
	}
	addr := netip.AddrPortFrom(host, port)
	config := net.ListenConfig{
		// Accepted sockets inherit what the listener has; Go's own keepalive
		// would be four system calls on every one of them.
		KeepAlive: -1,
		Control: func(_, _ string, raw syscall.RawConn) error {
			var inner error
			err := raw.Control(func(fd uintptr) { inner = o.prepare(int(fd), family, port) })
			return errors.Join(err, inner)
		},
	}
	config.SetMultipathTCP(false) // a sockmap refuses MPTCP listeners with EOPNOTSUPP
	ln, err := config.Listen(ctx, network, addr.String())
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("port %d is in use in the pod: move the program that has it, the agent needs %d, %d and %d, and %d for DNS: %w",
			port, OutboundPort, InboundPort, mesh.TunnelPort, mesh.DNSPort, err)
	}
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil, fmt.Errorf("the pod has no loopback address %s: bring lo up in the pod: %w", host, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listen on %s: not TCP but %T", addr, ln), ln.Close())
	}
	return tcp, nil
}

// OpenLocal listens on a port of 127.0.0.1, in the network namespace of the calling
// thread, for the pod's own processes: the kernel leads nothing else there. It has no
// mark, and takes no address but its own.
func OpenLocal(ctx context.Context, port uint16) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	ln, err := config.Listen(ctx, "tcp4", addr.String())
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("port %d is in use in the pod: %w", port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return ln, nil
}

// prepare sets what a listener and all it accepts need.
func (o Options) prepare(fd, family int, port uint16) error {
	if err := Transparent(fd, family); err != nil {
		return err
	}
	err := setOptions(fd, []option{
		{unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark), "SO_MARK"},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, "SO_KEEPALIVE"},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, "TCP_NODELAY"},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(KeepAlive / time.Second), "TCP_KEEPIDLE"},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(KeepAlive / time.Second), "TCP_KEEPINTVL"},
	})
	if err != nil {
		return err
	}
	if err := o.congestion(fd, port); err != nil {
		return fmt.Errorf("set TCP_CONGESTION: %w", err)
	}
	return nil
}

// Client prepares a socket that connects to a program of the pod, from an address that is not the
// namespace's.
func (o Options) Client(fd, family int) error {
	if err := Transparent(fd, family); err != nil {
		return err
	}
	err := setOptions(fd, []option{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"}, // one client port may lead to several ports of the pod
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, "TCP_NODELAY"},
	})
	if err != nil {
		return err
	}
	if err := o.Congestion.Local(fd); err != nil {
		return fmt.Errorf("set TCP_CONGESTION: %w", err)
	}
	return nil
}

// option is one of a socket's, an int.
type option struct {
	level, option, value int
	name                 string
}

func setOptions(fd int, all []option) error {
	for _, o := range all {
		if err := netns.SetOption(fd, o.level, o.option, o.value); err != nil {
			return fmt.Errorf("set %s: %w", o.name, err)
		}
	}
	return nil
}

// congestion is by who connects to a port: the pod's programs, other agents, or, in
// plaintext, whoever is on the wire.
func (o Options) congestion(fd int, port uint16) error {
	switch port {
	case OutboundPort, mesh.DNSPort:
		return o.Congestion.Local(fd)
	case mesh.TunnelPort:
		return o.Congestion.Tunnel(fd)
	}
	return nil
}

// Transparent lets a socket carry addresses that are not the namespace's.
func Transparent(fd, family int) error {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if family == unix.AF_INET6 {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if err := netns.SetOption(fd, level, option, 1); err != nil {
		return fmt.Errorf("make socket transparent (the agent needs CAP_NET_ADMIN): %w", err)
	}
	return nil
}

// Adopt returns a listener of another process, of which fd is a descriptor that
// is duplicated, as if Open had made it.
func Adopt(fd, family int, port uint16, o Options) (*net.TCPListener, error) {
	if err := errors.Join(o.Congestion.System(fd), o.prepare(fd, family, port)); err != nil {
		return nil, err
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate a listener: %w", err)
	}
	f := os.NewFile(uintptr(dup), "listener")
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("adopt a listener: %w", err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("adopt a listener: not TCP but %T", ln), ln.Close())
	}
	return tcp, nil
}

// Inherited is a listener, or a bound UDP socket, of another process.
type Inherited struct {
	Port uint16
	IPv6 bool
	// Datagram tells a UDP socket from a listener of the same port.
	Datagram bool
	// File is a descriptor, which is duplicated and stays the caller's. The
	// socket must listen in the pod's network namespace.
	File int
}

// CloseAll closes the descriptors of listeners, by pod.
func CloseAll(all map[string][]Inherited) {
	for _, listeners := range all {
		for _, l := range listeners {
			_ = unix.Close(l.File) // a duplicate: there is nothing to lose
		}
	}
}

// Duplicate returns a descriptor of l, for another process. File would make the
// socket blocking, here and there.
func Duplicate(l syscall.Conn) (int, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup, inner := -1, error(nil)
	err = raw.Control(func(fd uintptr) { dup, inner = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	return dup, errors.Join(err, inner)
}
