package eventloop

import (
	"bytes"
	"syscall"
	"testing"
	"time"
)

// TestReadVector: slices are filled in their order, an empty socket and the end
// of the stream show as they do with Read.
func TestReadVector(t *testing.T) {
	ours, theirs := pair(t)
	fd, err := TakeOver(theirs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { CloseSocket(fd) })
	a, b := make([]byte, 4), make([]byte, 100)
	var v Vector
	v.Add(a)
	v.Add(b)
	if n, errno := ReadVector(fd, v); n != 0 || errno != syscall.EAGAIN {
		t.Fatalf("read of nothing: %d, %v", n, errno)
	}
	if n, errno := ReadVector(fd, nil); n != 0 || errno != 0 {
		t.Fatalf("read into nothing: %d, %v", n, errno)
	}
	readAll := func(v Vector, want int) {
		t.Helper()
		deadline := time.Now().Add(5 * time.Second)
		n, errno := ReadVector(fd, v)
		for errno == syscall.EAGAIN && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
			n, errno = ReadVector(fd, v)
		}
		if n != want || errno != 0 {
			t.Fatalf("read %d bytes, %v, want %d", n, errno, want)
		}
	}
	if _, err := ours.Write([]byte("head and the rest")); err != nil {
		t.Fatal(err)
	}
	readAll(v, 17)
	if string(a) != "head" || !bytes.HasPrefix(b, []byte(" and the rest")) {
		t.Errorf("read %q and %q", a, b[:13])
	}
	if _, err := ours.Write([]byte("more")); err != nil {
		t.Fatal(err)
	}
	if readAll(v[:1], 4); string(a) != "more" {
		t.Errorf("read %q", a)
	}
	if err := ours.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	readAll(v, 0)
}
