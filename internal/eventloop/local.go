package eventloop

import (
	"errors"
	"net"
	"syscall"
)

// Local is a program's connection before it is its stream's.
type Local interface {
	syscall.Conn
	// Take makes its descriptor the caller's.
	Take() (int, error)
}

// Conn is a Local that the net package has.
type Conn struct{ *net.TCPConn }

// Take implements Local.
func (c Conn) Take() (int, error) { return TakeOver(c.TCPConn) }

// Descriptor is a Local that was accepted on a loop. It is its own
// syscall.RawConn, without waiting.
type Descriptor int

// Take implements Local.
func (d Descriptor) Take() (int, error) { return int(d), nil }

// SyscallConn implements syscall.Conn.
func (d Descriptor) SyscallConn() (syscall.RawConn, error) { return d, nil }

// Control implements syscall.RawConn.
func (d Descriptor) Control(fn func(uintptr)) error { fn(uintptr(d)); return nil }

// Read implements syscall.RawConn.
func (d Descriptor) Read(func(uintptr) bool) error { return errors.ErrUnsupported }

// Write implements syscall.RawConn.
func (d Descriptor) Write(func(uintptr) bool) error { return errors.ErrUnsupported }
