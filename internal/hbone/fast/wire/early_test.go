package wire

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
)

func connected(t *testing.T) (program, local *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// TestPeekAndDiscard: what was peeked at is gone then, exactly, though more came
// meanwhile; a socket of which nothing was seen keeps everything.
func TestPeekAndDiscard(t *testing.T) {
	for _, size := range []int{0, 1, MaxEarly - 1, MaxEarly, MaxEarly + 1} {
		program, local := connected(t)
		said := bytes.Repeat([]byte("early"), MaxEarly)[:size]
		if _, err := program.Write(said); err != nil {
			t.Fatal(err)
		}
		s, got := None(), make([]byte, 2*MaxEarly)
		if n := s.Peek(local, got); n != min(size, MaxEarly) || !bytes.Equal(got[:n], said[:n]) {
			t.Errorf("of %d bytes %d were seen, or others", size, n)
		}
		if _, err := program.Write([]byte("late")); err != nil {
			t.Fatal(err)
		}
		if err := program.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		fd, err := eventloop.TakeOver(local)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := s.Discard(fd, got); n != min(size, MaxEarly) || err != nil {
			t.Errorf("of %d bytes %d were dropped, %v", size, n, err)
		}
		rest := append(bytes.Clone(said[min(size, MaxEarly):]), "late"...)
		time.Sleep(time.Millisecond) // the FIN may come behind
		if n, errno := eventloop.Read(fd, got); errno != 0 || !bytes.Equal(got[:n], rest) {
			t.Errorf("of %d bytes %d are left, %v, or others", size, n, errno)
		}
		if n, err := s.Discard(fd, got); n != 0 || err != nil {
			t.Errorf("dropped twice: %d, %v", n, err)
		}
		eventloop.CloseSocket(fd)
	}
}

// TestDiscardAfterEnd: bytes that somebody else took do not become a FIN.
func TestDiscardAfterEnd(t *testing.T) {
	program, local := connected(t)
	if _, err := program.Write([]byte("early")); err != nil {
		t.Fatal(err)
	}
	s, buf := None(), make([]byte, MaxEarly)
	if n := s.Peek(local, buf); n != 5 {
		t.Fatalf("saw %d bytes", n)
	}
	if _, err := io.ReadFull(local, buf[:5]); err != nil {
		t.Fatal(err)
	}
	if err := program.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Read(buf); err != io.EOF {
		t.Fatal(err)
	}
	fd, err := eventloop.TakeOver(local)
	if err != nil {
		t.Fatal(err)
	}
	defer eventloop.CloseSocket(fd)
	if n, err := s.Discard(fd, buf); err == nil {
		t.Errorf("dropped %d bytes that are not there", n)
	}
	none := None()
	if n := none.Peek(local, buf); n != 0 {
		t.Errorf("saw %d bytes of a closed socket", n)
	}
}

// TestPathIsKept: the kernel is asked again once what it said is old.
func TestPathIsKept(t *testing.T) {
	program, local := connected(t)
	fd, err := eventloop.TakeOver(local)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := program.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	var p Path
	now := time.Now()
	first := p.Of(fd, now)
	if first.RTT == 0 {
		t.Error("no RTT of a connection")
	}
	eventloop.CloseSocket(fd)
	if again := p.Of(fd, now.Add(pathFor)); again != first {
		t.Errorf("%v became %v", first, again)
	}
	if later := p.Of(-1, now.Add(2*pathFor)); later != (hbone.Path{}) {
		t.Errorf("%v of no connection", later)
	}
}
