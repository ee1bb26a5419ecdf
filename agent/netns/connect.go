package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Connect connects a non-blocking socket and waits on Go's poller: no thread is
// held, wherever the socket was made. It owns fd from here on. The net package
// sets TCP_NODELAY and a keepalive of 15 s on what it returns.
func Connect(ctx context.Context, fd int, remote netip.AddrPort) (*net.TCPConn, error) {
	done, err := Start(fd, remote)
	if err == nil && !done {
		err = Await(ctx, fd)
	}
	if err != nil {
		return nil, errors.Join(err, CloseFd(fd))
	}
	return Conn(fd)
}

// ConnectDatagram binds a non-blocking UDP socket to an address and a port that the
// kernel draws, and connects it. It owns fd from here on.
func ConnectDatagram(fd int, local netip.Addr, remote netip.AddrPort) (*net.UDPConn, error) {
	f := os.NewFile(uintptr(fd), "udp")
	defer f.Close()
	if err := unix.Bind(fd, Sockaddr(netip.AddrPortFrom(local, 0))); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if errno := connect(fd, remote); errno != 0 {
		return nil, os.NewSyscallError("connect", errno)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("not UDP but %T", conn), conn.Close())
	}
	return udp, nil
}

// Start begins to connect a non-blocking socket, which stays the caller's, and
// says whether it is connected already, as it is within a namespace. If not,
// Await waits for it.
func Start(fd int, remote netip.AddrPort) (connected bool, err error) {
	// On the spot the kernel does the other end's work, too: the scheduler is not
	// told, or it would take the processor away meanwhile.
	errno := connect(fd, remote)
	if errno != 0 && errno != unix.EINPROGRESS && errno != unix.EINTR {
		return false, os.NewSyscallError("connect", errno)
	}
	return isConnected(fd)
}

func connect(fd int, remote netip.AddrPort) syscall.Errno { return named(unix.SYS_CONNECT, fd, remote) }

// Bind is bind(2).
func Bind(fd int, local netip.AddrPort) error {
	if errno := named(unix.SYS_BIND, fd, local); errno != 0 {
		return errno
	}
	return nil
}

// SetOption is setsockopt(2) with an int.
func SetOption(fd, level, option, value int) error {
	v := int32(value)
	if _, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0); errno != 0 {
		return errno
	}
	return nil
}

// named is a call with a socket and an address. None of them waits on a socket that
// does not block.
func named(call uintptr, fd int, addr netip.AddrPort) (errno syscall.Errno) {
	port := addr.Port()<<8 | addr.Port()>>8 // in network order; both architectures are little-endian
	if addr.Addr().Is4() {
		raw := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: addr.Addr().As4()}
		_, _, errno = syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&raw)), unix.SizeofSockaddrInet4)
	} else {
		raw := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: addr.Addr().As16()}
		_, _, errno = syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&raw)), unix.SizeofSockaddrInet6)
	}
	return errno
}

// Await waits on Go's poller until what Start began has ended, or ctx is done. The
// socket stays the caller's.
func Await(ctx context.Context, fd int) error {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(dup), "tcp") // non-blocking already, so the poller has it
	if f == nil {
		return errors.Join(errors.New("connect: invalid descriptor"), CloseFd(dup))
	}
	err = awaitConnect(ctx, f)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return errors.Join(err, f.Close())
}

// Conn makes a connected socket one of the net package's. It owns fd from here on.
func Conn(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "tcp")
	if f == nil {
		return nil, errors.Join(errors.New("connect: invalid descriptor"), CloseFd(fd))
	}
	conn, err := connOf(f)
	return conn, errors.Join(err, f.Close())
}

func connOf(f *os.File) (*net.TCPConn, error) {
	// FileConn duplicates the descriptor. On the way it makes the shared
	// description blocking (File.Fd) and non-blocking again, before anyone
	// reads or writes.
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("not TCP but %T", c), c.Close())
	}
	return tcp, nil
}

// awaitConnect waits until the socket is connected, has failed, or ctx ends.
func awaitConnect(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var done bool
	var inner error
	if err := raw.Control(func(fd uintptr) { done, inner = isConnected(int(fd)) }); err != nil || done {
		return errors.Join(inner, err)
	}
	stop := context.AfterFunc(ctx, func() {
		// Wakes the wait below. It can fail only when f is closed, and then
		// nothing waits.
		_ = f.SetWriteDeadline(time.Unix(1, 0))
	})
	defer stop()
	err = raw.Write(func(fd uintptr) bool {
		done, inner = isConnected(int(fd)) // the poller may wake early
		return done
	})
	return errors.Join(inner, err)
}

// isConnected says whether a connect has ended, and how: connected means having
// a peer.
func isConnected(fd int) (bool, error) {
	var peer unix.RawSockaddrInet6 // the larger one
	size := uint32(unix.SizeofSockaddrInet6)
	// Not by x/sys, which also asks for the protocol, to tell the address's kind.
	if _, _, errno := syscall.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size))); errno == 0 {
		return true, nil
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, err
	}
	if code != 0 {
		return true, os.NewSyscallError("connect", unix.Errno(code))
	}
	return false, nil
}

// Sockaddr returns an address as the kernel takes it.
func Sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// Family returns AF_INET or AF_INET6.
func Family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// CloseFd closes a descriptor, and names the call in its error.
func CloseFd(fd int) error { return os.NewSyscallError("close", unix.Close(fd)) }
