package scenario

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/scenario/drawn"
	"github.com/heddle-mesh/heddle/e2e/scenario/script"
	"github.com/heddle-mesh/heddle/e2e/wire"
)

// paper is a World in which everything works but what a test says: the program is a
// shell script.
type paper struct {
	script string
	found  wire.Findings
	flows  []Flow
	in     []string   // the mesh
	follow [][]string // what in becomes with each Label
	did    []string
	fail   error // of Apply
}

var _ World = (*paper)(nil)

func (*paper) Name() string { return "paper" }
func (p *paper) Deploy(_ context.Context, _ string, workloads []script.Workload) error {
	var names []string
	for _, w := range workloads {
		names = append(names, w.Name)
	}
	p.did = append(p.did, "deploy "+strings.Join(names, ","))
	return nil
}
func (p *paper) Label(_ context.Context, _, workload, value string) error {
	p.did = append(p.did, "label "+workload+" "+value)
	p.in, p.follow = p.follow[0], p.follow[1:]
	return nil
}
func (p *paper) Enrolled(context.Context, string) ([]string, error) { return slices.Clone(p.in), nil }
func (p *paper) Apply(context.Context, string, script.File) error   { return p.fail }
func (p *paper) Delete(context.Context, string, script.File) error  { return p.fail }
func (*paper) Address(context.Context, string, string) (netip.Addr, error) {
	return netip.MustParseAddr("10.0.0.1"), nil
}
func (p *paper) Command(ctx context.Context, _, _ string, args ...string) (*exec.Cmd, error) {
	if args[1] == "127.0.0.1:7000" { // whether it listens
		return exec.CommandContext(ctx, "echo", marker), nil
	}
	return exec.CommandContext(ctx, "sh", "-c", p.script), nil
}
func (p *paper) Flows(context.Context, string) ([]Flow, error) { return p.flows, nil }
func (p *paper) Capture(context.Context) (func(string, netip.Addr) (wire.Findings, error), error) {
	return func(string, netip.Addr) (wire.Findings, error) {
		p.did = append(p.did, "stop the capture")
		return p.found, nil
	}, nil
}
func (p *paper) KillAgent(_ context.Context, node string) error {
	p.did = append(p.did, "kill "+node)
	return nil
}
func (p *paper) StartAgent(_ context.Context, node string) error {
	p.did = append(p.did, "start "+node)
	return nil
}
func (p *paper) Clear(context.Context, string) error {
	p.did = append(p.did, "clear")
	return nil
}

// outcome runs a scenario on paper after two workloads are deployed.
func (p *paper) outcome(t *testing.T, steps string) error {
	t.Helper()
	_, err := runThen(t.Context(), p, drawn.Parse(t, "x.txtar", "deploy a on n1\ndeploy b on n2\n"+steps), 0)
	return err
}

// TestRefused: what the network said is a refusal, that nothing could be run is not.
func TestRefused(t *testing.T) {
	refusals := []string{
		"dial tcp 10.0.0.1:7000: connect: connection refused", "read tcp 10.0.0.2:1->10.0.0.1:7000: read: connection reset by peer",
		"dial tcp 10.0.0.1:7000: i/o timeout", "write tcp 10.0.0.2:1->10.0.0.1:7000: write: broken pipe", "EOF",
	}
	for _, said := range append(refusals, "heddle: no pod", "exec format error", `sent "x", got "y"`) {
		p := &paper{script: "echo '" + said + "' >&2; exit 1"}
		err := p.outcome(t, "connect a b:7000 refused\n")
		if slices.Contains(refusals, said) != (err == nil) {
			t.Errorf("%q: %v", said, err)
		}
		if err := p.outcome(t, "connect a b:7000 echo\n"); err == nil {
			t.Errorf("%q is an echo", said)
		}
	}
	answers := &paper{script: "echo " + marker}
	if err := answers.outcome(t, "connect a b:7000 echo\n"); err != nil {
		t.Error(err)
	}
	if err := answers.outcome(t, "connect a b:7000 refused\n"); err == nil {
		t.Error("an echo is a refusal")
	}
	if err := (&paper{script: "echo something else"}).outcome(t, "connect a b:7000 echo\n"); err == nil {
		t.Error("something else is an echo")
	}
}

// TestHeld: a held connection that ends is not alive, and one that goes on has not
// ended; one that never begins is said at once.
func TestHeld(t *testing.T) {
	lives := &paper{script: "while echo held; do sleep 0.05; done"}
	ends := &paper{script: "echo held; echo held; sleep 0.1; echo 'broken after 2: EOF' >&2; exit 1"}
	for _, test := range []struct {
		world *paper
		steps string
		holds bool
	}{
		{lives, "hold h a b:7000\nalive h for 200ms\n", true},
		{lives, "hold h a b:7000\nended h within 200ms\n", false},
		{ends, "hold h a b:7000\nended h within 3s\n", true},
		{ends, "hold h a b:7000\nended h within 3s\nalive h\n", false},
		{&paper{script: "echo 'dial tcp 10.0.0.1:7000: i/o timeout' >&2; exit 1"}, "hold h a b:7000\nended h\n", false},
		{&paper{script: "echo held; echo held; echo 'heddle: no pod' >&2; exit 1"}, "hold h a b:7000\nended h within 1s\n", false},
	} {
		if err := test.world.outcome(t, test.steps); (err == nil) != test.holds {
			t.Errorf("%s with %q: %v", test.steps, test.world.script, err)
		}
	}
}

// TestWire: each verdict is wrong of what the others are right of.
func TestWire(t *testing.T) {
	for verdict, found := range map[string]wire.Findings{
		script.WireEncrypted: {TLSBytes: 10}, script.WireMixed: {TLSBytes: 10, PlaintextBytes: 5}, script.WirePlaintext: {PlaintextBytes: 5, Markers: 1},
	} {
		for _, said := range script.WireVerdicts() {
			err := (&paper{found: found}).outcome(t, "capture\nwire "+said+" b\n")
			if (err == nil) != (said == verdict) {
				t.Errorf("%s, said to be %s: %v", verdict, said, err)
			}
		}
		if err := (&paper{}).outcome(t, "capture\nwire "+verdict+" b\n"); err == nil {
			t.Errorf("an empty wire is %s", verdict)
		}
	}
}

// TestFailureLeavesNothing: agents that were killed are started, captures and the
// namespace go, also when a step fails.
func TestFailureLeavesNothing(t *testing.T) {
	p := &paper{fail: errors.New("no such field")}
	err := p.outcome(t, `kill agent on n1
capture
apply f.yaml
start agent on n1
wire encrypted b
-- f.yaml --
apiVersion: heddle.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: f}
spec: {mode: STRICT}
`)
	if err == nil || err.Error() != "x.txtar:5: apply f.yaml: no such field" {
		t.Errorf("the error is %v", err)
	}
	want := []string{"deploy a,b", "kill n1", "stop the capture", "start n1", "clear"}
	if !slices.Equal(p.did, want) {
		t.Errorf("did %q, want %q", p.did, want)
	}
}

// TestEnrolledExactly: those in the mesh must be those who should be, and a
// workload's own label counts more than the namespace's.
func TestEnrolledExactly(t *testing.T) {
	const steps = "deploy c on n1 outside\nenroll\nunenroll a\nenroll c\nunenroll\nconnect a b:7000 echo\n"
	p := &paper{script: "echo " + marker, follow: [][]string{{"a", "b"}, {"b"}, {"c", "b"}, {"c"}}}
	if err := p.outcome(t, steps); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	p = &paper{script: "echo " + marker, follow: [][]string{{"a", "b", "c"}}}
	_, err := runThen(ctx, p, drawn.Parse(t, "x.txtar", "deploy a on n1\ndeploy b on n2\n"+steps), 0)
	if err == nil || !strings.Contains(err.Error(), "x.txtar:4: enroll: in the mesh are [a b c], want [a b]") {
		t.Errorf("one too many is in the mesh: %v", err)
	}
}

// TestFlows: a flow is one of the pair and of its last connection.
func TestFlows(t *testing.T) {
	const connect = "connect a b:7000 echo\n"
	flowOf := func(change func(*Flow)) *paper {
		f := Flow{Verdict: "allow", Reason: "NoPolicy", Direction: "inbound", Transport: "tunnel", Node: "n2", Policy: "x/p",
			Time:        time.Now().Add(time.Hour),
			Source:      Endpoint{Identity: "spiffe://t/ns/x/sa/a", Address: "10.0.0.1:5"},
			Destination: Endpoint{Identity: "spiffe://t/ns/x/sa/b", Address: "10.0.0.1:7000"}}
		change(&f)
		return &paper{script: "echo " + marker, flows: []Flow{f}}
	}
	all := "flow a b:7000 verdict=allow reason=NoPolicy direction=inbound transport=tunnel policy=p source=a destination=b node=n2 within 1ms\n"
	for name, test := range map[string]struct {
		change func(*Flow)
		holds  bool
	}{
		"it":                {func(*Flow) {}, true},
		"other verdict":     {func(f *Flow) { f.Verdict = "deny" }, false},
		"other reason":      {func(f *Flow) { f.Reason = "PolicyAllow" }, false},
		"other direction":   {func(f *Flow) { f.Direction = "outbound" }, false},
		"other transport":   {func(f *Flow) { f.Transport = "splice" }, false},
		"other policy":      {func(f *Flow) { f.Policy = "x/q" }, false},
		"other source":      {func(f *Flow) { f.Source.Identity = "spiffe://t/ns/y/sa/a" }, false},
		"no destination":    {func(f *Flow) { f.Destination.Identity = "" }, false},
		"other node":        {func(f *Flow) { f.Node = "n1" }, false},
		"other port":        {func(f *Flow) { f.Destination.Address = "10.0.0.1:7001" }, false},
		"other client":      {func(f *Flow) { f.Source.Address = "10.0.0.9:5" }, false},
		"before it began":   {func(f *Flow) { f.Time = f.Time.AddDate(-1, 0, 0) }, false},
		"through a Service": {func(f *Flow) { f.Service, f.Destination.Address = "x/b", "10.0.0.7:80" }, true},
	} {
		if err := flowOf(test.change).outcome(t, connect+all); (err == nil) != test.holds {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSpans: what must hold for a time is asked more than once, and what is awaited
// no longer than that.
func TestSpans(t *testing.T) {
	tries := 0
	if err := meet(t.Context(), script.Span{Throughout: 250 * time.Millisecond}, 0, func(context.Context) error { tries++; return nil }); err != nil || tries < 2 {
		t.Errorf("for 250ms: %d tries, %v", tries, err)
	}
	third := errors.New("the third")
	tries = 0
	if err := meet(t.Context(), script.Span{Throughout: time.Minute}, 0, func(context.Context) error {
		if tries++; tries == 3 {
			return third
		}
		return nil
	}); !errors.Is(err, third) {
		t.Errorf("for a minute: %v", err)
	}
	began := time.Now()
	if err := meet(t.Context(), script.Span{Within: 250 * time.Millisecond}, time.Hour, func(context.Context) error { return third }); !errors.Is(err, third) || time.Since(began) > 5*time.Second {
		t.Errorf("within 250ms: %v after %v", err, time.Since(began))
	}
}
