package wire

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// MaxEarly bounds what Peek looks at, in bytes: a request, and not an upload.
const MaxEarly = 8 << 10

// Peek copies into p what a socket has that was not taken over yet, and leaves
// it there, so that its owner can still have it back untouched. It does not wait,
// and sees no FIN. Discard is the other half.
func (s *Socket) Peek(c syscall.Conn, p []byte) int {
	if fd, ok := c.(eventloop.Descriptor); ok {
		s.peek(int(fd), p)
		return s.early
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	// Control fails on a socket that its owner has closed, and receiving on one
	// that was reset: both show later.
	_ = raw.Control(func(fd uintptr) { s.peek(int(fd), p) })
	return s.early
}

func (s *Socket) peek(fd int, p []byte) {
	if n, errno := eventloop.Receive(fd, p[:min(len(p), MaxEarly)], unix.MSG_PEEK); errno == 0 {
		s.early = n
	}
}

// Discard drops exactly what Peek has copied from the socket, which is taken
// over now, and returns how much that was. Nothing is written to scratch, which
// must be as large (MSG_TRUNC, tcp(7)).
func (s *Socket) Discard(fd int, scratch []byte) (int, error) {
	for left := s.early; left > 0; {
		n, errno := eventloop.Receive(fd, scratch[:left], unix.MSG_TRUNC)
		if errno == 0 && n == 0 {
			errno = syscall.ECONNRESET // bytes do not become a FIN
		}
		if errno != 0 {
			return 0, errno
		}
		left -= n
	}
	n := s.early
	s.early = 0
	return n, nil
}
