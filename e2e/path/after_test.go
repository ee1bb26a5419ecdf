package path_test

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"
)

const (
	// messages is how many go to and fro before the large flow: more round trips than
	// BBR remembers.
	messages = 12
	// leastAfter is what the median may have of plain TCP's throughput at least, and a
	// flow that began at what messages need has a tenth to a half.
	leastAfter                   = 0.75
	afterRounds, mostAfterRounds = 3, 7
)

// TestLargeAfterMessages: on a connection that others have used, and then messages
// alone, a large flow moves what a connection of its own does, though BBR has losses
// to make up for (wire.Estimate, window.Stream).
func TestLargeAfterMessages(t *testing.T) {
	var ratios []float64
	median := 0.0
	for len(ratios) < afterRounds || median < leastAfter && len(ratios) < mostAfterRounds {
		ratios = append(ratios, afterRatio(t))
		slices.Sort(ratios)
		median = ratios[(len(ratios)-1)/2]
	}
	if median < leastAfter {
		t.Errorf("%.2f of plain TCP, less than %.2f", median, leastAfter)
	}
}

func afterRatio(t *testing.T) float64 {
	f := newFar(t)
	f.congestion("bbr")
	open, done := f.tunnel()
	defer done()
	from, to := open(40)
	flow(from, to, time.Second, time.Second)
	f.way.SetLoss(loss)
	from, to = open(1)
	for range messages {
		say(t, from[0], to[0])
		say(t, to[0], from[0])
	}
	with := flow(from, to, warm, counted)
	from, to = f.plain(1)
	without := flow(from, to, warm, counted)
	t.Logf("plain TCP %.0f Mbit/s, tunnel %.0f Mbit/s, ratio %.2f", without, with, with/without)
	return with / without
}

// say sends a message.
func say(t *testing.T, from, to *net.TCPConn) {
	t.Helper()
	message := make([]byte, 100)
	if _, err := from.Write(message); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(to, message); err != nil {
		t.Fatal(err)
	}
}
