package fast_test

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone/fast"
)

// besideBulk says what a large flow does to small ones: the latencies of small
// messages, there and back, alone, beside a large flow on their connection, and
// beside one on a connection of its own.
type besideBulk struct{ alone, shared, apart []time.Duration }

// quantile of sorted values.
func quantile(d []time.Duration, q float64) time.Duration { return d[int(q*float64(len(d)-1))] }

// small exchanges messages on some streams at once, paced, and returns how long
// each took, sorted.
func (b *bench) small(streams []*net.TCPConn, each int) (took []time.Duration) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, c := range streams {
		all.Go(func() {
			buf := make([]byte, 200)
			for range each {
				start := time.Now()
				ping(b.tb, c, buf)
				d := time.Since(start)
				mu.Lock()
				took = append(took, d)
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		})
	}
	all.Wait()
	slices.Sort(took)
	return took
}

// bulk keeps a stream busy both ways until stop is called.
func bulk(c *net.TCPConn) (stop func()) {
	var all sync.WaitGroup
	all.Go(func() {
		for buf := make([]byte, 64<<10); ; {
			if _, err := c.Write(buf); err != nil {
				return // stopped
			}
		}
	})
	all.Go(func() { _, _ = io.Copy(io.Discard, c) }) // the same
	return func() {
		c.Close()
		all.Wait()
	}
}

func measureBeside(tb testing.TB, rounds, each int) (r besideBulk) {
	b := newBench(tb, fast.New(fast.Config{Loops: 1})) // where a neighbour cannot move to another loop
	var streams []*net.TCPConn
	for range 8 {
		streams = append(streams, b.open())
	}
	for range rounds {
		r.alone = append(r.alone, b.small(streams, each)...)
		stop := bulk(b.open())
		time.Sleep(100 * time.Millisecond)
		r.shared = append(r.shared, b.small(streams, each)...)
		stop()
		b.request.Source = "another"
		stop = bulk(b.open())
		b.request.Source = "client"
		time.Sleep(100 * time.Millisecond)
		r.apart = append(r.apart, b.small(streams, each)...)
		stop()
	}
	for _, d := range [][]time.Duration{r.alone, r.shared, r.apart} {
		slices.Sort(d)
	}
	return r
}

// BenchmarkBesideBulk is what ADR 0023 speaks of.
func BenchmarkBesideBulk(b *testing.B) {
	r := measureBeside(b, 4, 150)
	for _, m := range []struct {
		name string
		took []time.Duration
	}{{"alone", r.alone}, {"shared", r.shared}, {"apart", r.apart}} {
		b.ReportMetric(float64(quantile(m.took, 0.5).Microseconds()), m.name+"-p50-us")
		b.ReportMetric(float64(quantile(m.took, 0.99).Microseconds()), m.name+"-p99-us")
	}
}
