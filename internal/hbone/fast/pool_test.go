package fast_test

import (
	"net"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// end finishes streams in good order.
func end(t *testing.T, conns [][2]*net.TCPConn) {
	t.Helper()
	for _, c := range conns {
		transfer(t, c[0], c[1], 10)
	}
}

// TestDialAhead: when a peer's limit of streams is nearly reached, there is
// another connection before anybody needs it; one that is not needed any more
// closes when it has been idle, and so does the last.
func TestDialAhead(t *testing.T) {
	p := newPods(t, fast.Config{Loops: 1, IdleTimeout: 300 * time.Millisecond})
	d := p.add("pod", 0, hbone.Limits{Streams: 16})
	var open [][2]*net.TCPConn
	more := func(n int) {
		for range n {
			program, app := d.open()
			open = append(open, [2]*net.TCPConn{program, app})
		}
	}
	more(13)
	if n := d.dialed(); n != 1 {
		t.Fatalf("%d connections for 13 of 16 streams, want 1", n)
	}
	more(1)
	testenv.Eventually(t, flowLimit, "a connection ahead", func() bool { return d.dialed() == 2 })
	time.Sleep(50 * time.Millisecond) // for its handshake
	more(10)
	if n := d.dialed(); n != 2 {
		t.Errorf("%d connections for 24 streams, want the 2 that there were", n)
	}
	end(t, open[:20]) // the first is idle but for nothing; the second has the last four
	open = open[20:]
	time.Sleep(600 * time.Millisecond)
	more(1)
	if n := d.dialed(); n != 2 {
		t.Errorf("%d connections: a warm one was not used", n)
	}
	end(t, open)
	open = nil
	time.Sleep(600 * time.Millisecond)
	more(1)
	if n := d.dialed(); n != 3 {
		t.Errorf("%d connections after the idle time, want a third", n)
	}
	end(t, open)
}

// TestSpill: a key with many streams has them on all loops, about as many on
// each.
func TestSpill(t *testing.T) {
	const streams = 200
	p := newPods(t, fast.Config{Loops: 2})
	d := p.add("pod", 0, hbone.Limits{Streams: 1000})
	var open [][2]*net.TCPConn
	for range streams {
		program, app := d.open()
		open = append(open, [2]*net.TCPConn{program, app})
	}
	d.mu.Lock()
	if len(d.streams) != 2 {
		t.Errorf("%d connections, want one for each loop", len(d.streams))
	}
	for c, n := range d.streams {
		if n < streams/2-10 || n > streams/2+10 {
			t.Errorf("%d of %d streams on connection %v", n, streams, c)
		}
	}
	d.mu.Unlock()
	end(t, open)
}
