package product

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/scenario"
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
	t.Run("one that fails is drawn", func(t *testing.T) {
		t.Parallel()
		failingIsDrawn(t, on)
	})
	t.Run("one that cannot begin is drawn", func(t *testing.T) {
		t.Parallel()
		brokenIsDrawn(t, on)
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

func parseScenario(t *testing.T, file, text string) *script.Script {
	t.Helper()
	s, err := script.Parse(file, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// failingIsDrawn: who reads the drawing sees what was tried on the cluster, what came
// of it, what the agents recorded, and which step was not so.
func failingIsDrawn(t *testing.T, on *kubernetes.World) {
	trace, err := runScenario(t, on, parseScenario(t, "testdata/wrong.txtar", `# The policy says no, the text expects yes.
enroll
apply deny.yaml
deploy server on n2
deploy client on n1
connect client server:7000 refused PolicyDeny within 20s
connect client server:7000 echo
connect client server:7000 refused
-- deny.yaml --
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  action: DENY
  rules: [{}]
`))
	if err == nil {
		t.Fatal("a connection that a policy denies was an echo")
	}
	drawn := trace.Draw()
	t.Logf("%v\n\n%s", err, drawn)
	if want := "testdata/wrong.txtar:7: connect client server:7000 echo: want an echo: "; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("the error is %q, want %q first", err, want)
	}
	for _, want := range []string{
		"scenario wrong in Kubernetes: line 7 failed after ", "✗▶", "FAILED: want an echo",
		"you", "client", "agent n1", "agent n2", "server", "operator",
		"deploy server on n2", "AuthorizationPolicy nobody", "connect to 10.244.",
		"flow: inbound deny PolicyDeny of wrong/nobody", "(ns/wrong/sa/client)",
	} {
		if !strings.Contains(drawn, want) {
			t.Errorf("the drawing does not say %q", want)
		}
	}
	if strings.Contains(drawn, "  8: ") {
		t.Error("the drawing shows a step after the one that failed")
	}
}

// brokenIsDrawn: the API server refuses the file; what came before is drawn.
func brokenIsDrawn(t *testing.T, on *kubernetes.World) {
	trace, err := runScenario(t, on, parseScenario(t, "testdata/broken.txtar", `deploy server on n2
apply broken.yaml
connect server server:7000 echo
-- broken.yaml --
apiVersion: heddle.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: none}
spec: {mode: SOMETIMES}
`))
	if err == nil || !strings.HasPrefix(err.Error(), "testdata/broken.txtar:2: apply broken.yaml: ") || !strings.Contains(err.Error(), "SOMETIMES") {
		t.Errorf("the error is %v", err)
	}
	if drawn := trace.Draw(); !strings.Contains(drawn, "line 2 failed after") || !strings.Contains(drawn, "listens") {
		t.Errorf("the drawing is\n%s", drawn)
	}
}
