package drift

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestInTurn: whatever pods have of 131,072 rules, any two looks in a row are at all of them;
// of more, each has its turn as soon as the others' number lets it; and on average a look is
// at no more than its share.
func TestInTurn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		of, all := map[string]int{}, 0
		for i := range rapid.IntRange(1, 12).Draw(t, "pods") {
			of[string(rune('a'+i))] = rapid.OneOf(rapid.IntRange(0, 10), rapid.IntRange(0, bpf.MaxDatagramRules), rapid.Just(bpf.MaxDatagramRules)).Draw(t, "rules")
		}
		names := slices.Sorted(maps.Keys(of))
		for _, n := range of {
			all += n
		}
		most := max(1, (all+rules-1)/rules)
		next, read, since := turn{}, 0, map[string]int{}
		for looks := 1; looks <= 40; looks++ {
			next = inTurn(names, next, func(name string, look bool) bpf.Looked {
				if since[name]++; look || of[name] == 0 {
					since[name], read = 0, read+of[name]
					return bpf.Looked{Rules: of[name], All: true}
				}
				return bpf.Looked{}
			})
			for _, name := range names {
				if since[name] >= most {
					t.Fatalf("%v: %s was not looked at %d times in a row", of, name, since[name])
				}
			}
			if read > looks*rules+bpf.MaxDatagramRules {
				t.Fatalf("%v: %d rules in %d looks", of, read, looks)
			}
		}
	})
}

// TestWhatCannotBeRepairedIsAProblem for as long as it is tried.
func TestWhatCannotBeRepairedIsAProblem(t *testing.T) {
	w := New(nil, slog.New(slog.DiscardHandler))
	w.failed["a"] = failure{time.Now(), errors.New("no memory")}
	if err := w.Problem("a"); err == nil || !strings.Contains(err.Error(), "no memory") || !w.Drifting("a") {
		t.Errorf("problem %v, drifting %v", err, w.Drifting("a"))
	}
	if n, err := testutil.GatherAndCount(registry(t, w), "heddle_gate_drift_total", "heddle_gate_unmended"); err != nil || n != 2 {
		t.Errorf("%d metrics, %v", n, err)
	}
	if n := testutil.ToFloat64(w.failing); n != 1 {
		t.Errorf("%v pods are counted", n)
	}
	if err := w.Problem("b"); err != nil || w.Drifting("b") {
		t.Errorf("of another pod: problem %v, drifting %v", err, w.Drifting("b"))
	}
	w.failed["a"] = failure{time.Now().Add(-2 * passing), errors.New("no memory")}
	if err := w.Problem("a"); err != nil || w.Drifting("a") || testutil.ToFloat64(w.failing) != 0 {
		t.Errorf("after a while: problem %v, drifting %v", err, w.Drifting("a"))
	}
}

// TestARepairIsSeen for ten seconds, however soon it was made.
func TestARepairIsSeen(t *testing.T) {
	w := New(nil, slog.New(slog.DiscardHandler))
	for name, ago := range map[string]time.Duration{"a": 9 * time.Second, "b": 11 * time.Second, "c": time.Second} {
		w.last[name] = repair{time.Now().Add(-ago), "port 22"}
	}
	if pods, _ := w.Repaired(); pods != 2 || !w.Drifting("a") || w.Drifting("b") || !w.Drifting("c") {
		t.Errorf("%d repaired, drifting %v, %v, %v", pods, w.Drifting("a"), w.Drifting("b"), w.Drifting("c"))
	}
}

func registry(t *testing.T, w *Watch) *prometheus.Registry {
	t.Helper()
	all := prometheus.NewPedanticRegistry()
	if err := all.Register(w); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestGatesInTurn: each pod's gate is looked at in turn, few at a time, and what is not in
// place once more at once; then it counts, until it is in place.
func TestGatesInTurn(t *testing.T) {
	var names []string
	for i := range 3*gates + 1 {
		names = append(names, fmt.Sprintf("pod%02d", i))
	}
	w := New(nil, slog.New(slog.DiscardHandler))
	broken := map[string]error{}
	looked := map[string]int{}
	look := func() (all int) {
		w.lookAtGates(names, func(name string) error { looked[name]++; all++; return broken[name] })
		return all
	}
	for range 4 {
		if n := look(); n != gates {
			t.Errorf("looked at %d gates at once", n)
		}
	}
	for _, name := range names {
		if looked[name] == 0 || looked[name] > 2 {
			t.Errorf("looked at %s %d times in four turns", name, looked[name])
		}
	}
	broken["pod01"], broken["pod02"] = errors.New("detached"), podnet.ErrClosed
	clear(looked)
	for looks, first := 1, 0; looked["pod01"] < 2; looks++ {
		look()
		if looked["pod01"] == 1 && first == 0 {
			first = looks
		}
		if looks > 5 || looked["pod01"] == 1 && looks > first {
			t.Fatalf("not looked at once more at once: %d looks, %d times", looks, looked["pod01"])
		}
		if w.Drifting("pod01") != (looked["pod01"] >= 2) {
			t.Errorf("drifting after %d looks at it", looked["pod01"])
		}
	}
	if !w.Drifting("pod01") || w.Drifting("pod02") || w.Drifting("pod03") || testutil.ToFloat64(w.failing) != 1 {
		t.Errorf("drifting %v, %v, %v, counted %v", w.Drifting("pod01"), w.Drifting("pod02"), w.Drifting("pod03"), testutil.ToFloat64(w.failing))
	}
	// All at once: still few at a time, and each has its second look.
	for _, name := range names {
		broken[name] = errors.New("detached")
	}
	for range 2 * 4 {
		if n := look(); n > gates {
			t.Errorf("looked at %d gates at once", n)
		}
	}
	if n := testutil.ToFloat64(w.failing); n != float64(len(names)) {
		t.Errorf("%v of %d are counted", n, len(names))
	}
	clear(broken)
	for range 4 {
		look()
	}
	if n := testutil.ToFloat64(w.failing); n != 0 || w.Drifting("pod01") {
		t.Errorf("in place again: %v are counted", n)
	}
	broken["pod00"] = errors.New("detached")
	for range 5 {
		look()
	}
	w.forget(nil)
	if w.Drifting("pod00") {
		t.Error("one that is gone is amiss")
	}
}
