//go:build race

package eventloop

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// Under the race detector the calls go through x/sys, which tells it that what
// one end wrote happened before the other end reads it.

func read(fd int, p []byte) (int, syscall.Errno) { return plain(unix.Read(fd, p)) }

func write(fd int, p []byte) (int, syscall.Errno) { return plain(unix.Write(fd, p)) }

func send(fd int, p []byte, flags int) (int, syscall.Errno) {
	_, _ = unix.Write(fd, p[:0]) // tells the race detector, as SendmsgN does not
	return plain(unix.SendmsgN(fd, p, nil, nil, flags))
}

func readv(fd int, v Vector) (int, syscall.Errno) { return plain(unix.Readv(fd, each(v))) }

func writev(fd int, v Vector) (int, syscall.Errno) { return plain(unix.Writev(fd, each(v))) }

func receive(fd int, p []byte, flags int) (int, syscall.Errno) {
	n, _, err := unix.Recvfrom(fd, p, flags)
	return plain(n, err)
}

func each(v Vector) [][]byte {
	s := make([][]byte, len(v))
	for i := range v {
		s[i] = v.Slice(i)
	}
	return s
}

func plain(n int, err error) (int, syscall.Errno) {
	errno, _ := errors.AsType[syscall.Errno](err) // 0 without one
	return max(n, 0), errno
}
