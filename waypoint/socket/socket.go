// Package socket is one TCP socket of a waypoint on an event loop: what epoll has said of
// it, kept until it was acted upon, so that its owner may read and write when it wants to,
// and reads no more often than there is something. It knows no protocol.
//
// A Socket belongs to its loop's goroutine.
package socket

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// Socket is a socket that does not block. The zero value has none.
type Socket struct {
	fd   int
	open bool
	// readable is set while reading may give something, hasty while a short read is not
	// the last one (eventloop.Events).
	readable, hasty bool
	// writable is cleared by a write that the socket did not take whole, until the next edge.
	writable bool
	// eof is set when the other end sends no more, broken when reading has failed, refused when
	// writing has: what came before that can still be read.
	eof, broken, refused bool
}

// Adopt makes a descriptor this Socket's, which is nobody's so far.
func (s *Socket) Adopt(fd int) { *s = Socket{fd: fd, open: true, writable: true} }

// FD is the descriptor.
func (s *Socket) FD() int { return s.fd }

// Open reports whether there is a descriptor.
func (s *Socket) Open() bool { return s.open }

// Readable reports whether Read may give something: bytes, or the end.
func (s *Socket) Readable() bool { return s.readable && !s.eof && !s.broken }

// Writable reports whether Write may take something.
func (s *Socket) Writable() bool { return s.writable && !s.broken && !s.refused }

// EOF reports whether the other end has sent all that it will.
func (s *Socket) EOF() bool { return s.eof }

// Broken reports whether the connection was reset, or failed in another way, and all that came
// before was read.
func (s *Socket) Broken() bool { return s.broken }

// Refused reports whether nothing can be written any more. What the other end said before may
// still be there to be read.
func (s *Socket) Refused() bool { return s.refused || s.broken }

// Note takes in what the loop says.
func (s *Socket) Note(e eventloop.Events) {
	s.readable = s.readable || e.Readable()
	s.hasty = s.hasty || e.Ended() || e.Urgent()
	s.writable = s.writable || e.Writable()
}

// Read reads what there is, as far as it fits; 0 is nothing for now, or the end (EOF), or a
// failure (Broken).
func (s *Socket) Read(p []byte) int {
	if !s.Readable() {
		return 0
	}
	n, errno := eventloop.Read(s.fd, p)
	switch {
	case errno == syscall.EAGAIN:
		s.readable = false
	case errno != 0:
		s.broken = true
	case n == 0:
		s.eof, s.readable = true, false
	case n < len(p) && !s.hasty:
		s.readable = false
	}
	return n
}

// Quiet reports whether there is nothing to be read, the end included. It asks the socket: the loop
// tells of what comes a moment later.
func (s *Socket) Quiet() bool {
	var one byte // without eventloop.Receive, which allocates under the race detector
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(s.fd), uintptr(unsafe.Pointer(&one)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return errno == syscall.EAGAIN
}

// Write writes as much as the socket takes, and returns how much that was.
func (s *Socket) Write(p []byte) (written int) {
	for written < len(p) && s.Writable() {
		n, errno := eventloop.Write(s.fd, p[written:])
		switch {
		case errno == syscall.EAGAIN:
			s.writable = false
		case errno != 0:
			s.refused, s.readable, s.hasty = true, true, true
		default:
			written += n
			s.writable = written == len(p) // a short write is the last one: an edge follows
		}
	}
	return written
}

// CloseWrite sends a FIN.
func (s *Socket) CloseWrite() {
	if eventloop.CloseWrite(s.fd) != nil {
		s.refused = true
	}
}

// Close takes the socket off its loop and closes it, with a RST if reset is set.
func (s *Socket) Close(l *eventloop.Loop, reset bool) {
	if !s.open {
		return
	}
	s.open = false
	l.Forget(s.fd)
	if reset {
		eventloop.Abort(s.fd)
	} else {
		eventloop.CloseSocket(s.fd)
	}
}

// NoDelay has what is written go out at once: whoever writes here has put together what
// belongs together.
func NoDelay(fd int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // slower without
}

// Dial begins a connection. It is there, or has failed, at the socket's first event
// (eventloop.SocketError says which).
func Dial(to netip.AddrPort) (fd int, errno syscall.Errno) {
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
	if to.Addr().Unmap().Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Addr: to.Addr().Unmap().As4(), Port: int(to.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, number(err)
	}
	NoDelay(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1) // finds a peer that is gone while nothing is sent
	if err := unix.Connect(fd, address); err != nil && err != unix.EINPROGRESS {
		eventloop.CloseSocket(fd)
		return -1, number(err)
	}
	return fd, 0
}

func number(err error) syscall.Errno {
	if errno, ok := err.(syscall.Errno); ok {
		return errno
	}
	return syscall.EIO
}
