package drift

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestInTurn: of more rules than are read at once, all pods' have their turn.
func TestInTurn(t *testing.T) {
	unread := map[string]int{"a": 0, "b": 3 * rules, "c": 10, "d": rules}
	left, next := map[string]int{"a": 0, "b": 3 * rules, "c": 10, "d": rules}, turn{}
	rounds := map[string]int{}
	for range 15 { // three rounds of 4 times what is read at once, and a bit
		read := 0
		next = inTurn([]string{"a", "b", "c", "d"}, next, func(name string, most int) bpf.Looked {
			n := max(0, min(left[name], most))
			read += n
			if left[name] -= n; left[name] > 0 || most <= 0 && unread[name] > 0 {
				return bpf.Looked{Rules: n}
			}
			left[name] = unread[name]
			rounds[name]++
			return bpf.Looked{Rules: n, All: true}
		})
		if read > rules {
			t.Errorf("%d rules were read at once", read)
		}
	}
	for name, n := range rounds {
		if n < 3 {
			t.Errorf("%s was read %d times", name, n)
		}
	}
	if len(rounds) != 4 {
		t.Errorf("%v were read", rounds)
	}
}

// TestNoPodHasAllTurns: one whose rules are never all read does not keep the others from theirs.
func TestNoPodHasAllTurns(t *testing.T) {
	looks := map[string]int{}
	next := turn{}
	for range 3 * longest {
		next = inTurn([]string{"a", "b", "c"}, next, func(name string, most int) bpf.Looked {
			if name == "a" {
				return bpf.Looked{Rules: max(0, min(2*rules, most))}
			}
			if most > 0 {
				looks[name]++
			}
			return bpf.Looked{All: most > 0}
		})
	}
	if looks["b"] < 2 || looks["c"] < 2 {
		t.Errorf("beside one that is never done, the others were looked at %v times", looks)
	}
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
	w.failed["a"] = failure{time.Now().Add(-2 * settled), errors.New("no memory")}
	if err := w.Problem("a"); err != nil || w.Drifting("a") || testutil.ToFloat64(w.failing) != 0 {
		t.Errorf("after a while: problem %v, drifting %v", err, w.Drifting("a"))
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
