package wire

import (
	"slices"
	"testing"

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
