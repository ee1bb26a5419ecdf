package eventloop_test

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// TestWhatResetLeaves is what both engines and the relay go by: a RST leaves what the
// receiver's kernel has, and drops what the sender's has (net/ipv4/tcp_input.c,
// tcp_reset; net/ipv4/tcp.c, __tcp_close), and Unsent is the latter.
func TestWhatResetLeaves(t *testing.T) {
	const said = 256 << 10
	for name, unread := range map[string]bool{"by SO_LINGER": false, "by a close with bytes unread": true} {
		t.Run(name, func(t *testing.T) {
			sender, receiver := smallPair(t)
			if unread {
				if _, err := receiver.Write([]byte("never read")); err != nil {
					t.Fatal(err)
				}
				asked(t, sender, "the bytes that are not read", func(fd int) bool { n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); return err == nil && n > 0 })
			}
			if n, err := sender.Write(make([]byte, said)); n != said || err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
			left := 0
			time.Sleep(100 * time.Millisecond) // until no more fits
			asked(t, sender, "something unsent", func(fd int) bool { left = eventloop.Unsent(fd); return left > 0 })
			if !unread {
				if err := sender.SetLinger(0); err != nil {
					t.Fatal(err)
				}
			}
			if err := sender.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond) // the RST is there, the reader is late
			if err := receiver.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			got, err := io.Copy(io.Discard, receiver)
			if !errors.Is(err, syscall.ECONNRESET) || got == 0 || got != int64(said-left) {
				t.Errorf("%d bytes were said and %d of them unsent at the RST; read %d, %v", said, left, got, err)
			}
		})
	}
}

// smallPair is a connection whose receiver holds less than its sender.
func smallPair(t *testing.T) (sender, receiver *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<10) }) // what is accepted has it
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	sender = c.(*net.TCPConn)
	t.Cleanup(func() { sender.Close() })
	if receiver, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { receiver.Close() })
	if err := sender.SetWriteBuffer(1 << 20); err != nil {
		t.Fatal(err)
	}
	return sender, receiver
}

// asked waits until a socket says so.
func asked(t *testing.T, c *net.TCPConn, what string, is func(fd int) bool) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		so := false
		if err := raw.Control(func(fd uintptr) { so = is(int(fd)) }); err != nil {
			t.Fatal(err)
		}
		if so {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
