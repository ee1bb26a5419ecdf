package path_test

import (
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

const (
	// loss is the share of the packets that get lost on the way of the payload.
	loss = 0.01
	// lossy is how many streams of each kind flow at once. Each meets a loss a few
	// times in a second, and its share of the way is luck: it takes hundreds of them
	// to tell a tenth.
	lossy = 24
	// What does not count, and what does.
	lossyWarm, lossyCounted = 1500 * time.Millisecond, 6 * time.Second
	// lossyRounds are taken at first, one more when the median is too low.
	lossyRounds, mostLossyRounds = 3, 4
	// leastLossy is what the median may have of plain TCP's throughput at least. The
	// aim is 0.9; a round is a tenth off now and then, and a busy machine takes another.
	leastLossy = 0.75
)

// TestLossyWay: where a packet of a hundred gets lost, and the way takes 50 ms, a
// tunnel with one stream moves about as much as plain TCP does. Both flow at the same
// time over the same way, which is far from full: what the machine does besides
// falls on both. Streams that share a connection share its losses, too; what that
// costs is compared with another proxy that has them share one, by `make bench` (wan1_100).
func TestLossyWay(t *testing.T) {
	var ratios []float64
	median := 0.0
	for len(ratios) < lossyRounds || median < leastLossy && len(ratios) < mostLossyRounds {
		ratios = append(ratios, lossyRatio(t))
		slices.Sort(ratios)
		median = (ratios[(len(ratios)-1)/2] + ratios[len(ratios)/2]) / 2
	}
	if median < leastLossy {
		t.Errorf("with a loss of %v: %.2f of plain TCP, less than %.2f", loss, median, leastLossy)
	}
}

// congestion sets the algorithm of connections that are made at the ends from now on.
func (f *far) congestion(name string) {
	for _, ns := range []*testenv.NetNS{f.a, f.b} {
		ns.Must(f.t, func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte(name), 0) })
	}
}

func lossyRatio(t *testing.T) float64 {
	f := newFar(t)
	f.apart = true
	f.congestion("reno") // every kernel has it, and it takes losses for what they are taken for most often
	open, done := f.tunnel()
	defer done()
	from, to := open(lossy)
	plainFrom, plainTo := f.plain(lossy)
	f.way.SetLoss(loss) // the handshakes are not what is measured
	var with, without float64
	var both sync.WaitGroup
	both.Go(func() { with = flow(from, to, lossyWarm, lossyCounted) })
	both.Go(func() { without = flow(plainFrom, plainTo, lossyWarm, lossyCounted) })
	both.Wait()
	t.Logf("%d streams over 50 ms with a loss of %v: plain TCP %.1f Mbit/s, tunnels %.1f Mbit/s, ratio %.2f", lossy, loss, without, with, with/without)
	if without < 1 {
		t.Fatalf("plain TCP moves %.2f Mbit/s: nothing was compared", without)
	}
	return with / without
}
