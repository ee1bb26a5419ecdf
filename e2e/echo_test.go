package e2e

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// echo answers every connection of l with what it says, until l is closed. It
// reports an accept that fails for another reason: a full process would
// otherwise look like connections of the mesh that stall.
func echo(t *testing.T, l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			t.Errorf("accept at %s: %v", l.Addr(), err)
			return
		}
		go echoOne(c)
	}
}

// echoBytes is small: thousands of connections have a buffer each.
const echoBytes = 4 << 10

// echoOne echoes until the connection's end and closes it. The connection's
// type is hidden from io.CopyBuffer, which would splice between sockets, and
// hold a pipe's two descriptors for each connection even while it is idle.
func echoOne(c net.Conn) {
	defer c.Close()
	_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, echoBytes)) // the client judges
}

// TestEchoCost keeps the tests' own server at one descriptor for each
// connection: with the client's end that makes two, and 5,000 connections fit
// into the usual limits.
func TestEchoCost(t *testing.T) {
	const count = 32
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go echo(t, l)
	before := pipes(t)
	for range count {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		roundTrip(t, c, []byte("x"))
	}
	if grown := pipes(t) - before; grown > 0 {
		t.Errorf("%d idle connections hold %d ends of pipes", count, grown)
	}
}

// pipes counts the process's descriptors that are an end of a pipe.
func pipes(t *testing.T) int {
	t.Helper()
	const folder = "/proc/self/fd"
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		// The one that reads the folder is closed by now.
		if to, err := os.Readlink(filepath.Join(folder, e.Name())); err == nil && strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}
