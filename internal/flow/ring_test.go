package flow

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

func TestRingLast(t *testing.T) {
	r := NewRing(4)
	for i := range 6 {
		r.Add(Record{Reason: mesh.Reason(i)})
	}
	got := r.Last(10, Filter{})
	if len(got) != 4 || got[0].ID != 3 || got[3].ID != 6 {
		t.Fatalf("want records 3 to 6, got %d from %d", len(got), got[0].ID)
	}
	if got := r.Last(2, Filter{}); len(got) != 2 || got[0].ID != 5 {
		t.Fatalf("want records 5 and 6, got %v", got)
	}
	if got := r.Last(3, Filter{Reasons: []mesh.Reason{2}}); len(got) != 1 || got[0].ID != 3 {
		t.Fatalf("want record 3, got %v", got)
	}
	if r.Added() != 6 || r.Overwritten() != 2 {
		t.Fatalf("added %d, overwritten %d", r.Added(), r.Overwritten())
	}
}

func TestWatchFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing(8)
		r.Add(Record{})
		r.Add(Record{})
		ctx, cancel := context.WithCancel(t.Context())
		var ids []uint64
		done := make(chan struct{})
		go func() {
			defer close(done)
			for e := range r.Watch(ctx, Filter{}, 1) {
				ids = append(ids, e.Record.ID)
			}
		}()
		synctest.Wait()
		r.Add(Record{})
		synctest.Wait()
		r.Add(Record{})
		synctest.Wait()
		cancel()
		<-done
		if len(ids) != 3 || ids[0] != 2 || ids[2] != 4 {
			t.Fatalf("got records %v, want 2 3 4", ids)
		}
		if n := len(*r.watchers.Load()); n != 0 {
			t.Fatalf("%d watchers left behind", n)
		}
	})
}

// TestSlowWatcherIsToldWhatItLost also shows that a watcher that does not read
// keeps no writer waiting: Add returns although nobody reads.
func TestSlowWatcherIsToldWhatItLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing(4)
		ctx, cancel := context.WithCancel(t.Context())
		gate := make(chan struct{})
		var seen, lost uint64
		done := make(chan struct{})
		go func() {
			defer close(done)
			for e := range r.Watch(ctx, Filter{}, 0) {
				<-gate
				lost += e.Lost
				if e.Record != nil {
					seen++
				}
			}
		}()
		synctest.Wait()
		for range 100 {
			r.Add(Record{})
			synctest.Wait()
		}
		close(gate)
		synctest.Wait()
		cancel()
		<-done
		// The first was in hand, the last four were still there.
		if seen != 5 || lost != 95 || r.Lost() != 95 {
			t.Fatalf("saw %d, lost %d, ring says %d; want 5, 95, 95", seen, lost, r.Lost())
		}
	})
}

func TestWatchersCountExactlyUnderConcurrency(t *testing.T) {
	const writers, each, watchers = 4, 5000, 3
	r := NewRing(64)
	ctx, cancel := context.WithCancel(t.Context())
	var ready, reading sync.WaitGroup
	totals := make([]uint64, watchers)
	for i := range watchers {
		ready.Add(1)
		reading.Go(func() {
			first := true
			// The announcement below tells each watcher that it is in.
			for e := range r.Watch(ctx, Filter{}, 1) {
				if first {
					first = false
					ready.Done()
					continue
				}
				totals[i] += e.Lost
				if e.Record != nil {
					totals[i]++
				}
				if totals[i] == writers*each {
					return
				}
			}
		})
	}
	r.Add(Record{})
	ready.Wait()
	var writing sync.WaitGroup
	for range writers {
		writing.Go(func() {
			for range each {
				r.Add(Record{})
			}
		})
	}
	writing.Wait()
	reading.Wait()
	cancel()
	for i, n := range totals {
		if n != writers*each {
			t.Errorf("watcher %d: saw and lost %d, want %d", i, n, writers*each)
		}
	}
}

func TestWatchStopsWhenTheConsumerDoes(t *testing.T) {
	r := NewRing(4)
	r.Add(Record{})
	for range r.Watch(t.Context(), Filter{}, 1) {
		break
	}
	if n := len(*r.watchers.Load()); n != 0 {
		t.Fatalf("%d watchers left behind", n)
	}
}

func BenchmarkRingAdd(b *testing.B) {
	r := NewRing(8192)
	rec := sample()
	b.ReportAllocs()
	for b.Loop() {
		r.Add(rec)
	}
}
