package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// LocalOf returns the address at which a socket was accepted.
func LocalOf(fd int) (netip.AddrPort, error) {
	at, errno := eventloop.LocalAddr(fd)
	if errno != 0 {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", errno)
	}
	return Unmap(at), nil
}

// ConnOf makes a socket one of the net package's. The descriptor is not the
// caller's any more.
func ConnOf(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "tcp")
	if f == nil {
		return nil, errors.New("invalid descriptor")
	}
	defer f.Close()
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

// ResetSocket closes a socket with RST.
func ResetSocket(fd int) { eventloop.Abort(fd) }

// Disconnect resets the connection of a socket, which stays open, and its owner's
// to close: connect(2) with AF_UNSPEC.
func Disconnect(fd int) {
	none := unix.RawSockaddrInet4{Family: unix.AF_UNSPEC}
	// Fails only on what is no connection any more.
	_, _, _ = syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unix.SizeofSockaddrInet4)
}
