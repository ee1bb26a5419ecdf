package scenario

import (
	"context"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/scenario/drawn"
	"github.com/heddle-mesh/heddle/e2e/scenario/script"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestInNetworkNamespaces runs every scenario in one mesh of this machine.
func TestInNetworkNamespaces(t *testing.T) {
	scripts, err := Scenarios()
	if err != nil {
		t.Fatal(err)
	}
	if len(scripts) < 6 {
		t.Fatalf("there are %d scenarios", len(scripts))
	}
	w := newNetns(t)
	for _, s := range scripts {
		t.Run(s.Name, func(t *testing.T) {
			trace, err := runIn(t, w, s)
			if err != nil {
				t.Error(err)
			}
			t.Logf("\n%s", trace.Draw())
		})
	}
	in := drawn.World{Name: "network namespaces", Address: "10.244.2.", Run: func(t *testing.T, s *script.Script) (drawn.Drawing, error) { return runIn(t, w, s) }}
	t.Run("one that fails is drawn", in.Failing)
	t.Run("one that cannot begin is drawn", in.Broken)
}

func runIn(t *testing.T, w *netns, s *script.Script) (*Trace, error) {
	t.Helper()
	w.t = t
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	return Run(ctx, w, s)
}
