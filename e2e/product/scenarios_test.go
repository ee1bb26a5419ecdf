package product

import (
	"context"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/scenario"
	"github.com/heddle-mesh/heddle/e2e/scenario/drawn"
	"github.com/heddle-mesh/heddle/e2e/scenario/kubernetes"
	"github.com/heddle-mesh/heddle/e2e/scenario/script"
)

// scenarioPatience bounds one scenario, and its namespace's end, on a loaded machine.
const scenarioPatience = 4 * time.Minute

// testScenarios runs every text of e2e/scenario, as it is, on the cluster: first those
// that kill agents, then all others side by side.
func (w *world) testScenarios(t *testing.T) {
	scripts, err := scenario.Scenarios()
	if err != nil {
		t.Fatal(err)
	}
	if len(scripts) < 8 {
		t.Fatalf("there are %d scenarios", len(scripts))
	}
	on, err := kubernetes.New(kubernetes.Options{Cluster: w.Cluster, Image: workloadImage, Heddle: w.heddle, OnNode: onNode})
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"wrong", "broken"}
	for _, s := range scripts {
		names = append(names, s.Name)
	}
	t.Cleanup(func() { // when all have ended
		defer on.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), scenarioPatience)
		defer cancel()
		for _, name := range names {
			if err := on.Gone(ctx, name); err != nil {
				t.Error(err)
			}
		}
	})
	for _, s := range scripts {
		t.Run(s.Name, func(t *testing.T) {
			if !s.KillsAgents() {
				t.Parallel()
			}
			trace, err := runScenario(t, on, s)
			if err != nil {
				t.Error(err)
			}
			t.Logf("\n%s", trace.Draw())
		})
	}
	in := drawn.World{
		Name: "Kubernetes", Address: "10.244.", Settle: "connect client server:7000 refused PolicyDeny within 20s\n",
		Run: func(t *testing.T, s *script.Script) (drawn.Drawing, error) { return runScenario(t, on, s) },
	}
	t.Run("one that fails is drawn", func(t *testing.T) {
		t.Parallel()
		in.Failing(t)
	})
	t.Run("one that cannot begin is drawn", func(t *testing.T) {
		t.Parallel()
		in.Broken(t)
	})
}

func runScenario(t *testing.T, on *kubernetes.World, s *script.Script) (*scenario.Trace, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), scenarioPatience)
	defer cancel()
	if err := on.Clear(ctx, s.Name); err != nil { // of a run that was cut short
		t.Fatal(err)
	}
	return scenario.Run(ctx, on, s)
}
