package wire

import (
	"slices"
	"testing"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// TestWipedSessionSendsNothing: what is still written when a connection is lost
// under its writer is dropped, however much it is.
func TestWipedSessionSendsNothing(t *testing.T) {
	s, _ := sessionPair(t, 0)
	var b Buffers
	o := NewOutput(&b, s, -1)
	s.Wipe()
	for range 20 {
		if !o.Fits(tlsrecord.MaxPlaintext) {
			o.Enqueue()
		}
		room := o.Room()
		o.Wrote(copy(room, slices.Repeat([]byte("plaintext"), tlsrecord.MaxPlaintext/9)))
	}
	o.Enqueue()
	if n := o.Queued(); n != 0 {
		t.Errorf("%d buffers wait for the socket", n)
	}
	o.Alert(tlsrecord.CloseNotify)
	if left := o.Append(nil); len(left) > 0 {
		t.Errorf("%d bytes are to leave", len(left))
	}
	o.Free()
	if o.Held() != 0 {
		t.Errorf("%d bytes are held", o.Held())
	}
}

// TestNoSocketNoKeys: the keys of a connection whose socket is gone before a loop
// has it are forgotten, and so are those of one that finds no place on a loop.
func TestNoSocketNoKeys(t *testing.T) {
	sealed := func(s *tlsrecord.Session) int { return s.Seal(make([]byte, tlsrecord.Overhead+1), 1) }
	session, _ := sessionPair(t, 0)
	_, gone := connected(t)
	gone.Close()
	if sealed(session) == 0 {
		t.Fatal("a session that seals nothing")
	}
	s := Secured{Session: session}
	if err := s.TakeOver(gone); err == nil {
		t.Error("a closed socket was taken over")
	}
	if n := sealed(session); n != 0 {
		t.Errorf("a record of %d bytes under keys that nobody needs", n)
	}
	session, _ = sessionPair(t, 0)
	_, there := connected(t)
	s = Secured{Session: session}
	if err := s.TakeOver(there); err != nil || sealed(session) == 0 {
		t.Fatalf("take over: %v", err)
	}
	s.Abort()
	if n := sealed(session); n != 0 {
		t.Errorf("a record of %d bytes under keys of an aborted connection", n)
	}
	if _, errno := eventloop.Read(s.FD, make([]byte, 1)); errno == 0 {
		t.Error("the socket is open")
	}
}
