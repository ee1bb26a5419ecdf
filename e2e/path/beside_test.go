package path_test

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestSmallBesideLarge: small messages over 50 ms do not wait for a large flow's
// bytes on their connection much longer than the way takes.
func TestSmallBesideLarge(t *testing.T) {
	f := newFar(t)
	open, done := f.tunnel()
	defer done()
	one := func() (program, app *net.TCPConn) {
		from, to := open(1)
		return from[0], to[0]
	}
	var all sync.WaitGroup
	large, sink := one()
	all.Go(func() {
		for buf := make([]byte, 256<<10); ; {
			if _, err := large.Write(buf); err != nil {
				return // closed at the end
			}
		}
	})
	all.Go(func() { _, _ = io.Copy(io.Discard, sink) }) // the same
	var streams []*net.TCPConn
	for range 4 {
		program, app := one()
		streams = append(streams, program)
		all.Go(func() {
			_, _ = io.Copy(app, app) // the program checks what comes back
			app.Close()
		})
	}
	time.Sleep(warm)
	var mu sync.Mutex
	var took []time.Duration
	var small sync.WaitGroup
	for _, c := range streams {
		small.Go(func() {
			buf := make([]byte, 200)
			for end := time.Now().Add(2 * counted); time.Now().Before(end); {
				start := time.Now()
				_, err := c.Write(buf)
				if err == nil {
					_, err = io.ReadFull(c, buf)
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(start))
				mu.Unlock()
			}
		})
	}
	small.Wait()
	for _, c := range append(streams, large, sink) {
		_ = c.SetLinger(0) // what is on its way is not waited for
		c.Close()
	}
	all.Wait()
	slices.Sort(took)
	p50, p99 := took[len(took)/2], took[len(took)*99/100]
	t.Logf("small messages beside a large flow over 50 ms: p50 %v, p99 %v (%d)", p50, p99, len(took))
	if p50 > 8*delay {
		t.Errorf("a small message takes %v, four times the way and more", p50)
	}
}
