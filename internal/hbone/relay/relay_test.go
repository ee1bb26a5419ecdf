package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// pair returns a relay at one end of a connection, and the other end.
func pair(t *testing.T) (*Relay, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	program, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	local, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close(); local.Close() })
	return New(local.(*net.TCPConn), nil, func(error) {}), program.(*net.TCPConn)
}

func readToEnd(t *testing.T, r *Relay) {
	t.Helper()
	if err := r.Local.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r.Local); err != nil {
		t.Fatalf("read to the end: %v", err)
	}
}

// TestCheckEndAfterWrite: a write takes the error of a RST, and reading then
// finds the end of the stream: no FIN.
func TestCheckEndAfterWrite(t *testing.T) {
	r, program := pair(t)
	if err := program.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := program.Close(); err != nil {
		t.Fatal(err)
	}
	var failed error
	for failed == nil { // the RST may be under way
		failed = r.Deliver([]byte("x"))
	}
	if !errors.Is(failed, hbone.ErrReset) {
		t.Fatalf("write: %v", failed)
	}
	readToEnd(t, r)
	if err := r.CheckEnd(); !errors.Is(err, hbone.ErrReset) {
		t.Errorf("a RST whose error was taken passes for a FIN: %v", err)
	}
}

// TestCheckEndOfFIN: a FIN is one before and after our own.
func TestCheckEndOfFIN(t *testing.T) {
	for _, ours := range []string{"none", "after", "before"} {
		t.Run("our own "+ours, func(t *testing.T) {
			r, program := pair(t)
			finish := func(when string) {
				if when != ours {
					return
				}
				if err := r.DeliverEnd(); err != nil {
					t.Fatal(err)
				}
				if n, err := program.Read(make([]byte, 1)); err != io.EOF {
					t.Fatalf("program read %d, %v", n, err)
				}
			}
			finish("before")
			if err := program.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			readToEnd(t, r)
			finish("after")
			if err := r.CheckEnd(); err != nil {
				t.Errorf("a FIN passes for a RST: %v", err)
			}
		})
	}
}

// TestBreaksAtItsEnd: a connection that breaks while its end is looked at is no FIN, or
// fails the relay, whichever comes first.
func TestBreaksAtItsEnd(t *testing.T) {
	for i := range 400 {
		r, program := pair(t)
		if err := program.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var looks atomic.Bool
		var both sync.WaitGroup
		both.Go(func() {
			for spins := 5 * i; spins > 0; { // from before it looks to after
				if looks.Load() {
					spins--
				}
			}
			r.DeliveryFailed(LocalReset(syscall.EPIPE))
		})
		looks.Store(true)
		err := r.CheckEnd()
		both.Wait()
		if orderly := r.end(nil); orderly && err == nil {
			t.Fatal("nobody says that it has broken")
		}
		program.Close()
		r.Local.Close()
	}
}
