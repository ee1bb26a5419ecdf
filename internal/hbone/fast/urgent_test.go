package fast_test

import (
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUrgentData: what comes after it does not stay behind (RFC 6093 says to
// expect that it is lost or in line).
func TestUrgentData(t *testing.T) {
	w := newWorld(t, newFastEngine, newFastEngine)
	// All of it is there before the first look.
	greet := func(app *net.TCPConn) {
		raw, err := app.SyscallConn()
		if err != nil {
			t.Error(err)
			return
		}
		_, err = app.Write([]byte("before"))
		if err != nil {
			t.Error(err)
		}
		if raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) }); err != nil {
			t.Error(err)
		}
		if _, err = app.Write([]byte("after")); err != nil {
			t.Error(err)
		}
	}
	w.greeting.Store(&greet)
	f := w.mustOpen()
	got, want := make([]byte, 11), "beforeafter"
	if err := f.program.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(f.program, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v", got[:n], err)
	}
	if err := f.echo("and on"); err != nil {
		t.Error(err)
	}
	if err := f.finish(); err != nil {
		t.Error(err)
	}
}
