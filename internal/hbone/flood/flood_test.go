package flood

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for kind := range Kinds {
			var g Guard
			r := rates[kind]
			for range int(r.burst) {
				if err := g.Spend(kind); err != nil {
					t.Fatalf("%s: within the burst: %v", r.name, err)
				}
			}
			if err := g.Spend(kind); err == nil {
				t.Errorf("%s: no limit", r.name)
			} else if f, ok := errors.AsType[*Error](err); !ok || f.Kind != kind {
				t.Errorf("%s: %v", r.name, err)
			}
			var steady Guard
			for n := range int(r.burst) + 5*int(r.rate) { // at the sustained rate, for long
				if err := steady.Spend(kind); err != nil {
					t.Fatalf("%s: at its rate, after %d: %v", r.name, n, err)
				}
				time.Sleep(time.Duration(float64(time.Second)/r.rate) + 1)
			}
		}
	})
}

// TestGuardOfHeaders: what honest requests need costs nothing, larger ones by their size.
func TestGuardOfHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Guard
		for range 100_000 {
			if err := g.SpendHeader(headerBytes - 1); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for g.SpendHeader(8*headerBytes) == nil {
			n++
		}
		if want := int(rates[Other].burst) / (8 * headerFrames); n != want {
			t.Errorf("%d headers of 16 KiB, want %d", n, want)
		}
	})
}

func TestGuardEarns(t *testing.T) {
	var g Guard
	for range 10 * int(rates[WindowUpdate].burst) {
		g.Earn(WindowUpdate, 2)
		if err := g.Spend(WindowUpdate); err != nil {
			t.Fatal(err)
		}
	}
}

// TestState: a guard that goes on from a state allows neither more nor less.
func TestState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for kind := range Kinds {
			r := rates[kind]
			var g Guard
			for n := range int(r.burst) {
				if err := g.Spend(kind); err != nil {
					t.Fatal(err)
				}
				if n%50 == 0 {
					time.Sleep(time.Second)
					g = NewGuard(g.State())
				}
			}
			// The seconds slept earn frames, once the burst is used up.
			if err := g.Spend(kind); err != nil {
				t.Errorf("%s: what was earned before a move is gone: %v", r.name, err)
			}
			spent := make([]Bucket, Kinds)
			spent[kind].Spent = 1e300
			g = NewGuard(spent)
			if err := g.Spend(kind); err == nil {
				t.Errorf("%s: a guard without limit", r.name)
			}
			g = NewGuard(append(make([]Bucket, Kinds), Bucket{Spent: 1}))
			if err := g.Spend(kind); err != nil {
				t.Errorf("%s: a new guard: %v", r.name, err)
			}
		}
	})
}
