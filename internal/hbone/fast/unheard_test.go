package fast_test

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// TestUnheardReset: an application that is reset while its program does not read
// what it sent is not kept for it: its stream ends soon, with a reset.
func TestUnheardReset(t *testing.T) {
	w := newWorld(t, newFastEngine, newFastEngine)
	app := w.mustOpen().app
	stuff(t, app)
	if err := errors.Join(app.SetLinger(0), app.Close()); err != nil {
		t.Fatal(err)
	}
	select {
	case o := <-w.inbound:
		if !errors.Is(o.Err, hbone.ErrReset) {
			t.Errorf("outcome %v, want a reset", o.Err)
		}
	case <-time.After(moveWait):
		t.Fatal("the stream does not end")
	}
}

// stuff writes until nothing is taken any more.
func stuff(t *testing.T, c *net.TCPConn) {
	t.Helper()
	for {
		if err := c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, 1<<20)); errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestThawedMemory: a pod's budget knows at once what a thawed connection's slow
// readers hold.
func TestThawedMemory(t *testing.T) {
	memory := hbone.NewMemory(64 << 20)
	w := newWorld(t, newFastEngine, newFastEngine, func(s *hbone.Server) { s.Memory = memory })
	f := w.mustOpen()
	stuff(t, f.program)
	data := 0
	w.server.mustMove(func(z *hbone.Frozen) { data += len(z.Data) })
	if used := memory.Used(); data < 100<<10 || used < int64(data) {
		t.Errorf("%d bytes of data came with it, the budget knows of %d", data, used)
	}
	f.app.Close()
	f.program.Close()
}
