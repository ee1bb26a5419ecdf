package scenario

import (
	"errors"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/e2e/scenario/drawn"
	"github.com/heddle-mesh/heddle/e2e/scenario/script"
)

// update rewrites the golden drawings: go test ./e2e/scenario -run TestDraw -update
var update = flag.Bool("update", false, "rewrite golden files")

// story is a trace whose clock the test turns.
type story struct {
	*Trace
	at time.Time
}

func newStory(t *testing.T, text string) *story {
	s := &story{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	s.Trace = newTrace(drawn.Parse(t, "testdata/story.txtar", text), "a story")
	s.now = func() time.Time { return s.at }
	s.began = s.at
	return s
}

func (s *story) after(ms int) *story {
	s.at = s.at.Add(time.Duration(ms) * time.Millisecond)
	return s
}

func (s *story) flow(direction, node, verdict, reason, source, destination string) Flow {
	end := func(name string) Endpoint {
		return Endpoint{Workload: "story/" + name, Identity: "spiffe://example.org/ns/story/sa/" + name, Address: "10.0.0.1:7000"}
	}
	f := Flow{Time: s.at, Direction: direction, Node: node, Verdict: verdict, Reason: reason, Transport: "tunnel",
		Source: end(source), Destination: end(destination)}
	if verdict == "deny" {
		f.Transport, f.Policy = "none", "story/deny"
	}
	return f
}

// TestDraw draws a run that fails after tries that all came to the same, and in which
// what happened at a step's end was recorded late.
func TestDraw(t *testing.T) {
	s := newStory(t, `deploy server on n2
deploy client on n1
deploy outsider on n1 outside
enroll
connect client server:7000 echo
connect outsider server:7000 refused StrictPlaintext
connect client server:7000 refused PolicyDeny within 10s
kill agent on n1
start agent on n1
`)
	s.begin(0)
	s.arrow(script.You, "server", "deploy on n2")
	s.begin(1)
	s.arrow(script.You, "client", "deploy on n1")
	s.begin(2)
	s.arrow(script.You, "outsider", "deploy on n1")
	s.after(312).note("server", "listens")
	s.after(100).begin(3)
	s.arrow(script.You, script.Operator, "the namespace into the mesh")
	s.after(420).note(script.Operator, "in the mesh after 420ms: client, server")
	s.begin(4)
	s.arrow("client", "server", "connect to 10.0.0.2:7000")
	s.after(3)
	flows := []Flow{s.flow("outbound", "n1", "allow", "NoPolicy", "client", "server")}
	flows = append(flows, s.after(2).flow("inbound", "n2", "allow", "NoPolicy", "client", "server"))
	s.after(4).arrow("server", "client", "echo after 9ms")
	s.after(1).begin(5)
	s.arrow("outsider", "server", "connect to 10.0.0.2:7000")
	dropped := s.after(1).flow("kernel", "n2", "deny", "KernelPlaintextInbound", "outsider", "server")
	dropped.Source.Identity, dropped.Policy, dropped.Packets = "", "", 3
	flows = append(flows, dropped)
	s.after(2999).cut("outsider", "server", "no answer in 3s after 3s")
	s.begin(6)
	for range 3 {
		s.arrow("client", "server", "connect to 10.0.0.2:7000")
		flows = append(flows, s.after(2).flow("inbound", "n2", "allow", "NoPolicy", "client", "server"))
		s.after(6).arrow("server", "client", "echo after 8ms")
		s.after(100)
	}
	flows = append(flows, s.after(2).flow("inbound", "n2", "deny", "PolicyDeny", "client", "server"))
	s.fail(errors.New("want a refusal:\nthe server answered"))
	s.addFlows(flows)
	s.addFlows(flows) // nothing twice
	golden(t, "testdata/failed.golden", s.Draw())
}

// TestDrawWhatHeld: a drawing of what went well says so, and marks nothing.
func TestDrawWhatHeld(t *testing.T) {
	s := newStory(t, "deploy a on n2\nconnect a a:7000 echo\n")
	s.begin(0)
	s.arrow(script.You, "a", "deploy on n2")
	s.after(1500).begin(1)
	s.arrow("a", "a", "connect to 10.0.0.2:7000")
	golden(t, "testdata/held.golden", s.Draw())
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got (go test ./e2e/scenario -run TestDraw -update accepts it):\n%s\n%s", diff, got)
	}
}
