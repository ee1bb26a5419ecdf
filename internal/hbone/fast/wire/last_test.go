package wire

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// TestLastWrite: a message and the FIN behind it are one segment, by Finish as by Close,
// and two if nobody said that a FIN follows.
func TestLastWrite(t *testing.T) {
	for name, want := range map[string]struct {
		last, over bool
		segments   uint32
	}{
		"a FIN":          {last: true, segments: 1},
		"a close":        {last: true, over: true, segments: 1},
		"nobody said so": {segments: 2},
	} {
		program, local := connected(t)
		s, b := None(), &Buffers{}
		s.FD = taken(t, local)
		observer, err := unix.Dup(s.FD) // the socket outlives its Close, and its FIN is still sent by shutdown
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(observer)
		before := segmentsOut(t, observer)
		s.Take(b, []byte("the last words"))
		if n, errno := s.Write(b, want.last); n != 14 || errno != 0 {
			t.Fatalf("%s: wrote %d, %v", name, n, errno)
		}
		if err := s.Finish(want.over); err != nil || !s.FinSent {
			t.Fatalf("%s: no FIN: %v", name, err)
		}
		if want.over {
			if err := eventloop.CloseWrite(observer); err != nil { // what the last close(2) does
				t.Fatal(err)
			}
		}
		if got := segmentsOut(t, observer) - before; got != want.segments {
			t.Errorf("%s: %d segments, want %d", name, got, want.segments)
		}
		if said, err := io.ReadAll(program); string(said) != "the last words" || err != nil {
			t.Errorf("%s: read %q, %v", name, said, err)
		}
		eventloop.CloseSocket(s.FD)
	}
}

// TestLastWriteToAFullSocket: what a socket does not take at once comes later, whole,
// and the FIN behind it.
func TestLastWriteToAFullSocket(t *testing.T) {
	program, local := connected(t)
	s, b := None(), &Buffers{}
	s.FD = taken(t, local)
	said := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	s.Take(b, said)
	n, errno := s.Write(b, true)
	if errno != 0 || n == len(said) || !s.Waits() {
		t.Fatalf("wrote %d of %d, %v: the socket is not full", n, len(said), errno)
	}
	heard := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(program)
		heard <- all
	}()
	for deadline := time.Now().Add(20 * time.Second); s.Waits(); {
		if _, errno := s.WriteWaiting(b); errno != 0 || time.Now().After(deadline) {
			t.Fatalf("%v, or it is not taken", errno)
		}
		time.Sleep(time.Millisecond)
	}
	if err := s.Finish(false); err != nil {
		t.Fatal(err)
	}
	if all := <-heard; !bytes.Equal(all, said) {
		t.Errorf("%d bytes came of %d, or others", len(all), len(said))
	}
	eventloop.CloseSocket(s.FD)
}

func taken(t *testing.T, local *net.TCPConn) int {
	t.Helper()
	fd, err := eventloop.TakeOver(local)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func segmentsOut(t *testing.T, fd int) uint32 {
	t.Helper()
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	return info.Segs_out
}
