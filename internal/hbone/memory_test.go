package hbone_test

import (
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

func TestMemory(t *testing.T) {
	m := hbone.NewMemory(1000)
	m.Take(499)
	if m.Full() || m.Wait("a", func() { t.Error("called without a wait") }) {
		t.Error("full below its half")
	}
	m.Take(1)
	if !m.Full() || m.Used() != 500 {
		t.Errorf("full %v, used %d", m.Full(), m.Used())
	}
	var called []string
	for _, key := range []string{"a", "b", "c"} {
		if !m.Wait(key, func() { called = append(called, key) }) {
			t.Error("no wait for a full budget")
		}
	}
	m.Leave("b")
	m.Give(1)
	m.Give(1)
	if len(called) != 2 {
		t.Errorf("called %v, want a and c once", called)
	}
	if !m.Promise(hbone.Connections, 300) || m.Promise(hbone.Connections, 201) || !m.Promise(hbone.Connections, 200) {
		t.Error("promises are not for half of the budget")
	}
	m.Keep(hbone.Connections, -500)
	if !m.Promise(hbone.Connections, 500) {
		t.Error("a promise does not come back")
	}
	if m.Promise(hbone.Streams, 251) || !m.Promise(hbone.Streams, 250) {
		t.Error("what streams grow by is not a quarter")
	}
	var none *hbone.Memory
	none.Take(1 << 40)
	none.Give(1)
	if none.Full() || !none.Promise(hbone.Streams, 1<<40) || none.Wait("a", nil) || none.Used() != 0 || none.Limit() != 0 {
		t.Error("no budget is one")
	}
}

// TestMemoryWakes loses nobody who waits, however giving and waiting meet.
func TestMemoryWakes(t *testing.T) {
	m := hbone.NewMemory(20)
	stop := make(chan struct{})
	var takers, waiters sync.WaitGroup
	for range 2 {
		takers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					m.Take(10)
					m.Give(10)
				}
			}
		})
	}
	for i := range 4 {
		waiters.Go(func() {
			for range 20_000 {
				woken := make(chan struct{})
				if !m.Wait(i, func() { close(woken) }) {
					continue
				}
				select {
				case <-woken:
				case <-time.After(10 * time.Second):
					t.Error("a wait without an end")
					return
				}
			}
		})
	}
	waiters.Wait()
	close(stop)
	takers.Wait()
}
