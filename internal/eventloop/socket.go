package eventloop

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads from a non-blocking socket; 0 without an error is the end of the
// stream. It never returns EINTR.
func Read(fd int, p []byte) (int, syscall.Errno) {
	if len(p) == 0 {
		return 0, 0
	}
	for {
		n, errno := read(fd, p)
		switch errno {
		case 0:
			return n, 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// Write writes to a non-blocking socket as much as it takes. It never returns
// EINTR.
func Write(fd int, p []byte) (int, syscall.Errno) {
	if len(p) == 0 {
		return 0, 0
	}
	for {
		n, errno := write(fd, p)
		switch errno {
		case 0:
			return n, 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// WriteBefore is Write of bytes behind which a FIN, or others, follow at once: the
// kernel keeps the last segment back for that (send(2), MSG_MORE), for 200 ms at
// most, unless the socket is full.
func WriteBefore(fd int, p []byte) (int, syscall.Errno) {
	if len(p) == 0 {
		return 0, 0
	}
	for {
		n, errno := send(fd, p, unix.MSG_MORE|unix.MSG_NOSIGNAL)
		switch errno {
		case 0:
			return n, 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// Accept is accept4(2) on a non-blocking listener; the socket does not block, and is
// not left to the programs that this one starts.
func Accept(listener int) (fd int, remote netip.AddrPort, errno syscall.Errno) {
	var from unix.RawSockaddrInet6 // the larger one
	size := uint32(unix.SizeofSockaddrInet6)
	n, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, netip.AddrPort{}, errno
	}
	remote, _ = fromRaw(&from) // a TCP socket has one of the two families
	return int(n), remote, 0
}

// ReadVector is Read for the slices of v, as if they were one. There must be no
// more than UIO_MAXIOV.
func ReadVector(fd int, v Vector) (int, syscall.Errno) {
	if len(v) == 1 { // read(2) costs less
		return Read(fd, v.Slice(0))
	}
	for len(v) > 0 {
		if n, errno := readv(fd, v); errno != syscall.EINTR {
			return max(n, 0), errno
		}
	}
	return 0, 0
}

// maxVector is UIO_MAXIOV (include/uapi/linux/uio.h).
const maxVector = 1024

// Vector is a list of byte slices for ReadVector and WriteVector; the zero value is empty.
type Vector []unix.Iovec

// Add appends a slice, which must stay as it is until the vector was used.
// Empty ones are left out.
func (v *Vector) Add(p []byte) {
	if len(p) > 0 {
		iov := unix.Iovec{Base: &p[0]}
		iov.SetLen(len(p))
		*v = append(*v, iov)
	}
}

// Slice returns the i-th slice.
func (v Vector) Slice(i int) []byte { return unsafe.Slice(v[i].Base, int(v[i].Len)) }

// WriteVector is Write for the slices of v, as if they were one. It returns how
// many bytes went out, and writes less than everything only when the socket is
// full or failed.
func WriteVector(fd int, v Vector) (written int, errno syscall.Errno) {
	if len(v) == 1 { // as messages are; write(2) costs less
		p := v.Slice(0)
		n, errno := Write(fd, p)
		if errno == 0 && n < len(p) {
			errno = syscall.EAGAIN
		}
		return n, errno
	}
	for len(v) > 0 {
		part := v[:min(len(v), maxVector)]
		total := 0
		for i := range part {
			total += int(part[i].Len)
		}
		n, errno := writev(fd, part)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return written, errno
		}
		written += n
		if n < total {
			return written, syscall.EAGAIN
		}
		v = v[len(part):]
	}
	return written, 0
}

// TakeOver makes the socket of c the caller's: it returns a descriptor of its
// own, non-blocking, and closes c, so that Go's netpoller forgets the socket.
// The peer notices nothing. C is closed in every case.
func TakeOver(c *net.TCPConn) (int, error) {
	fd, err := duplicate(c)
	if closed := c.Close(); err == nil && closed != nil {
		err = errors.Join(closed, unix.Close(fd))
	}
	if err != nil {
		return -1, fmt.Errorf("take socket over: %w", err)
	}
	return fd, nil
}

// Prepare makes a descriptor that came from another process fit for a loop: not
// blocking, and not left to the programs that this one starts.
func Prepare(fd int) error {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("prepare socket: %w", err)
	}
	return nil
}

func duplicate(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	// The copy shares O_NONBLOCK, which Go has set, with the original.
	controlled := raw.Control(func(original uintptr) {
		fd, err = unix.FcntlInt(original, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(controlled, err)
}

// SocketError returns and clears SO_ERROR; 0 when there is none.
func SocketError(fd int) syscall.Errno {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return syscall.EBADF
	}
	return syscall.Errno(code)
}

// Unsent is how much of what was written the other end's kernel has not taken, in
// bytes (tcp(7), SIOCOUTQ); 0 of a connection that broke.
func Unsent(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// Abort closes a TCP socket with a RST.
func Abort(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // fails on no TCP socket
	CloseSocket(fd)
}

// CloseSocket closes a socket. Nothing can be done about an error of close(2)
// on one. On a connection within the node the kernel does the other end's work,
// too, as for a FIN or what is written: the scheduler is not told.
func CloseSocket(fd int) { _, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// CloseWrite sends a FIN after what was written.
func CloseWrite(fd int) error {
	if _, _, errno := syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0); errno != 0 {
		return errno
	}
	return nil
}

// Receive is recv(2), without waiting. It never returns EINTR.
func Receive(fd int, p []byte, flags int) (int, syscall.Errno) {
	if len(p) == 0 {
		return 0, 0
	}
	for {
		n, errno := receive(fd, p, flags|unix.MSG_DONTWAIT)
		switch errno {
		case 0:
			return n, 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// LocalAddr is getsockname(2) of a TCP socket; IPv4 stays as the socket has it.
func LocalAddr(fd int) (netip.AddrPort, syscall.Errno) {
	var at unix.RawSockaddrInet6 // the larger one
	size := uint32(unix.SizeofSockaddrInet6)
	if _, _, errno := syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&at)), uintptr(unsafe.Pointer(&size))); errno != 0 {
		return netip.AddrPort{}, errno
	}
	return fromRaw(&at)
}

func fromRaw(a *unix.RawSockaddrInet6) (netip.AddrPort, syscall.Errno) {
	port := a.Port<<8 | a.Port>>8 // it is in network order, and the processor little-endian
	switch a.Family {
	case unix.AF_INET:
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom4(four.Addr), port), 0
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), port), 0
	}
	return netip.AddrPort{}, syscall.EAFNOSUPPORT
}
