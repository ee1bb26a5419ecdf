// Package drawn has two scenarios that do not come to their end, and what must be said
// of them in whatever world they run. It is imported by tests only; its functions are
// called from the test's goroutine.
package drawn

import (
	"fmt"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/e2e/scenario/script"
)

// Drawing is what a run leaves, whether it failed or not.
type Drawing interface{ Draw() string }

// World is where the scenarios run.
type World struct {
	// Name is the world's own; Address begins those that it gives to pods.
	Name, Address string
	// Settle are steps, one a line, after which a policy holds that has been applied.
	Settle string
	// Run runs a scenario.
	Run func(*testing.T, *script.Script) (Drawing, error)
}

// Failing: who reads the drawing sees what was tried, what came of it, what the agents
// recorded, and which step was not so.
func (w World) Failing(t *testing.T) {
	trace, err := w.Run(t, Parse(t, "testdata/wrong.txtar", `# The policy says no, the text expects yes.
enroll
apply deny.yaml
deploy server on n2
deploy client on n1
`+w.Settle+`connect client server:7000 echo
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
	drawing := trace.Draw()
	t.Logf("%v\n\n%s", err, drawing)
	line := 6 + strings.Count(w.Settle, "\n")
	if want := fmt.Sprintf("testdata/wrong.txtar:%d: connect client server:7000 echo: want an echo: ", line); !strings.HasPrefix(err.Error(), want) {
		t.Errorf("the error is %q, want %q first", err, want)
	}
	for _, want := range []string{
		fmt.Sprintf("scenario wrong in %s: line %d failed after ", w.Name, line), "✗▶", "FAILED: want an echo",
		"you", "client", "agent n1", "agent n2", "server", "operator",
		"deploy server on n2", "AuthorizationPolicy nobody", "connect to " + w.Address,
		"flow: inbound deny PolicyDeny of wrong/nobody", "(ns/wrong/sa/client)",
	} {
		if !strings.Contains(drawing, want) {
			t.Errorf("the drawing does not say %q", want)
		}
	}
	if strings.Contains(drawing, fmt.Sprintf("  %d: ", line+1)) {
		t.Error("the drawing shows a step after the one that failed")
	}
}

// Broken: the world refuses the file; what came before is drawn.
func (w World) Broken(t *testing.T) {
	trace, err := w.Run(t, Parse(t, "testdata/broken.txtar", `deploy server on n2
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
	if drawing := trace.Draw(); !strings.Contains(drawing, "line 2 failed after") || !strings.Contains(drawing, "listens") {
		t.Errorf("the drawing is\n%s", drawing)
	}
}

// Parse reads the text of a scenario, which must be one.
func Parse(t *testing.T, file, text string) *script.Script {
	t.Helper()
	s, err := script.Parse(file, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
