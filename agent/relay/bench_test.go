package relay_test

import (
	"io"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/relay"
)

// BenchmarkThroughput sends one direction's bulk.
func BenchmarkThroughput(b *testing.B) {
	for path, pipes := range map[string]int{"splice": 8, "copy": 0} {
		b.Run(path, func(b *testing.B) {
			c := carry(b, pipes)
			chunk := make([]byte, 1<<20)
			b.SetBytes(int64(len(chunk)))
			b.ResetTimer()
			defer reportCPU(b)()
			go func() {
				for range b.N {
					c.client.Write(chunk)
				}
				c.client.CloseWrite()
			}()
			io.Copy(io.Discard, c.server)
			c.server.Close()
			<-c.done
		})
	}
}

// BenchmarkRoundTrips sends small messages to and fro, on one pair or on many at
// once. Both ends are the benchmark's own, and allocate nothing.
func BenchmarkRoundTrips(b *testing.B) {
	for _, pairs := range []int{1, 64} {
		b.Run(strconv.Itoa(pairs), func(b *testing.B) {
			r := relay.New(8)
			b.Cleanup(r.Close)
			all := make([]*carried, pairs)
			for i := range all {
				all[i] = carryBy(b, r, nil)
			}
			b.ReportAllocs()
			b.ResetTimer()
			report := reportCPU(b)
			ended := make(chan error, pairs)
			for i, c := range all {
				n := b.N / pairs
				if i == 0 {
					n += b.N % pairs
				}
				go func() { ended <- roundTrips(c, n) }()
			}
			for range all {
				if err := <-ended; err != nil {
					b.Error(err)
				}
			}
			b.StopTimer()
			report()
			for _, c := range all {
				c.client.Close()
				c.server.Close()
				<-c.done
			}
		})
	}
}

func roundTrips(c *carried, n int) error {
	echoed := make(chan error, 1)
	go func() {
		var err error
		buf := make([]byte, 100)
		for i := 0; i < n && err == nil; i++ {
			if _, err = io.ReadFull(c.server, buf); err == nil {
				_, err = c.server.Write(buf)
			}
		}
		echoed <- err
	}()
	buf := make([]byte, 100)
	for range n {
		if _, err := c.client.Write(buf); err != nil {
			return err
		}
		if _, err := io.ReadFull(c.client, buf); err != nil {
			return err
		}
	}
	return <-echoed
}

// reportCPU adds the processor time of the whole process, both ends included: on
// a busy machine it says more than the time on the clock.
func reportCPU(b *testing.B) func() {
	before := cpu()
	return func() { b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op") }
}

func cpu() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
