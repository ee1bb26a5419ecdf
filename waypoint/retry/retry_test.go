package retry_test

import (
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/retry"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestBudget: a few at first, a fifth of the requests after that, two a second without any, and never more than
// a hundred at once.
func TestBudget(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	take := func(b *retry.Budget) (n int) {
		for b.Take(now) {
			n++
		}
		return n
	}
	b := retry.NewBudget()
	if n := take(b); n != 10 {
		t.Errorf("%d at first", n)
	}
	for range 100 {
		b.Asked()
	}
	if n := take(b); n < 19 || n > 20 {
		t.Errorf("%d for 100 requests", n)
	}
	now = now.Add(2 * time.Second)
	if n := take(b); n < 4 || n > 5 {
		t.Errorf("%d after two seconds", n)
	}
	now = now.Add(time.Hour)
	if n := take(b); n != 10 {
		t.Errorf("%d after an hour", n)
	}
	for range 10_000 {
		b.Asked()
	}
	if n := take(b); n != 100 {
		t.Errorf("%d at once", n)
	}
}

func TestPause(t *testing.T) {
	r := &route.Retry{Backoff: 10 * time.Millisecond}
	for tries, most := range map[int]time.Duration{0: 10, 1: 10, 2: 20, 3: 40, 4: 80, 5: 100, 60: 100} {
		for range 100 {
			if p := retry.Pause(r, tries); p > most*time.Millisecond || p < most*time.Millisecond/2 {
				t.Fatalf("after %d tries: %s", tries, p)
			}
		}
	}
	if p := retry.Pause(&route.Retry{}, 1); p < 12*time.Millisecond || p > 26*time.Millisecond {
		t.Errorf("without a pause given: %s", p)
	}
}

func TestLeft(t *testing.T) {
	if retry.Left(nil, 1) || retry.Left(&route.Retry{}, 1) || !retry.Left(&route.Retry{Attempts: 1}, 1) || retry.Left(&route.Retry{Attempts: 1}, 2) || !retry.Left(&route.Retry{Attempts: -1}, 1) || retry.Left(&route.Retry{Attempts: -1}, 2) {
		t.Error("attempts are not counted")
	}
	if r := (&route.Retry{Codes: []uint16{500, 503}}); !retry.Names(r, 503) || retry.Names(r, 502) || retry.Names(nil, 503) {
		t.Error("codes are not compared")
	}
}
