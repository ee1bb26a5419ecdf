package fast_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// inPieces connects to the world's server by crypto/tls, and leaves a header and a
// frame behind it unfinished: about so many bytes.
func (w *world) inPieces() (*tls.Conn, int) {
	w.t.Helper()
	c, err := tls.Dial("tcp", w.server.tunnels.Addr().String(), &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*w.cert},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	var sent bytes.Buffer
	fr := http2.NewFramer(&sent, nil)
	first, rest := make([]byte, 16<<10), make([]byte, 10<<10)
	if err := errors.Join(
		fr.WriteSettings(), fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first}), fr.WriteContinuation(1, false, rest),
		fr.WriteContinuation(1, true, rest),
	); err != nil {
		w.t.Fatal(err)
	}
	sent.Truncate(sent.Len() - 1)
	if _, err := c.Write(append([]byte(http2.ClientPreface), sent.Bytes()...)); err != nil {
		w.t.Fatal(err)
	}
	return c, len(first) + 2*len(rest) - 1
}

// TestPiecesAreAccounted: a pod's budget knows of a header and a frame that have not
// ended, in this process and in the next one.
func TestPiecesAreAccounted(t *testing.T) {
	memory := hbone.NewMemory(64 << 20)
	w := newWorld(t, newFastEngine, newFastEngine, func(s *hbone.Server) { s.Memory = memory })
	c, size := w.inPieces()
	held := func() bool { used := memory.Used(); return used >= int64(size) && used <= int64(4*size) }
	testenv.Eventually(t, moveWait, "the pieces in the account", held)
	w.server.mustMove(func(*hbone.Frozen) { w.server.memory = memory })
	if !held() {
		t.Errorf("%d bytes in the account after a move, %d in pieces", memory.Used(), size)
	}
	c.Close()
	testenv.Eventually(t, moveWait, "nothing in the account", func() bool { return memory.Used() == 0 })
}

// TestPiecesBeyondBudget: whoever leaves headers unfinished on one connection after
// the other loses connections for it when the budget is used up; those that say
// what they say as a whole do not.
func TestPiecesBeyondBudget(t *testing.T) {
	const limit, most = 1 << 20, 100
	memory := hbone.NewMemory(limit)
	w := newWorld(t, newFastEngine, newFastEngine, func(s *hbone.Server) { s.Memory = memory })
	var refused atomic.Int64
	w.server.server.Refused = func(r hbone.Refusal) {
		if !errors.Is(r.Err, hbone.ErrLimit) || r.Peer != w.ca.ID("client") {
			t.Errorf("refused: %v of %v", r.Err, r.Peer)
		}
		refused.Add(1)
	}
	f := w.mustOpen()
	n, sum := 0, 0
	for ; refused.Load() == 0 && n < most; n++ {
		c, size := w.inPieces()
		sum += size
		if sum > limit {
			_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // fails when it has ended, too
			_, _ = io.Copy(io.Discard, c)                                 // its end, or another's in its place
		}
	}
	if refused.Load() == 0 {
		t.Errorf("%d bytes in pieces on %d connections for a budget of %d", sum, n, limit)
	}
	if used := memory.Used(); used > 2*limit {
		t.Errorf("%d bytes in the account of %d", used, limit)
	}
	if err := errors.Join(f.echo("still here"), f.finish()); err != nil {
		t.Error(err)
	}
}
