package scenario

import (
	"context"
	"strings"
	"testing"
	"time"

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
	t.Run("one that fails is drawn", func(t *testing.T) { failingIsDrawn(t, w) })
	t.Run("one that cannot begin is drawn", func(t *testing.T) { brokenIsDrawn(t, w) })
}

func runIn(t *testing.T, w *netns, s *script.Script) (*Trace, error) {
	t.Helper()
	w.t = t
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	return Run(ctx, w, s)
}

func mustParse(t *testing.T, file, text string) *script.Script {
	t.Helper()
	s, err := script.Parse(file, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// failingIsDrawn: who reads the drawing sees what was tried, what came of it, what
// the agents recorded, and which step was not so.
func failingIsDrawn(t *testing.T, w *netns) {
	trace, err := runIn(t, w, mustParse(t, "testdata/wrong.txtar", `# The policy says no, the text expects yes.
enroll
apply deny.yaml
deploy server on n2
deploy client on n1
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
	if want := "testdata/wrong.txtar:6: connect client server:7000 echo: want an echo: "; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("the error is %q, want %q first", err, want)
	}
	for _, want := range []string{
		"scenario wrong in network namespaces: line 6 failed after ", "✗▶", "FAILED: want an echo",
		"you", "client", "agent n1", "agent n2", "server", "operator",
		"deploy server on n2", "AuthorizationPolicy nobody", "connect to 10.244.2.",
		"flow: inbound deny PolicyDeny of wrong/nobody", "(ns/wrong/sa/client)",
	} {
		if !strings.Contains(drawn, want) {
			t.Errorf("the drawing does not say %q", want)
		}
	}
	if strings.Contains(drawn, "  7: ") {
		t.Error("the drawing shows a step after the one that failed")
	}
}

// brokenIsDrawn: the mesh refuses the file; what came before is drawn.
func brokenIsDrawn(t *testing.T, w *netns) {
	trace, err := runIn(t, w, mustParse(t, "testdata/broken.txtar", `deploy server on n2
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
