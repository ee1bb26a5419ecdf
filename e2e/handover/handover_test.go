package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/handover"
	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/local"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const meshName = "ho"

const meshYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: ho.heddle.dev
  clusterRanges: ["10.246.0.0/16", "fd00:246::/32"]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: plain, name: asks}
spec: {node: n1, addresses: ["10.246.1.90"], networkNamespace: /run/netns/heddle-ho-asks}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: plain, name: answers}
spec: {node: n2, addresses: ["10.246.2.90"], networkNamespace: /run/netns/heddle-ho-answers}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {node: n1, addresses: ["10.246.1.10", "fd00:246:1::10"], networkNamespace: /run/netns/heddle-ho-web}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: api}
spec: {node: n1, addresses: ["10.246.1.11", "fd00:246:1::11"], networkNamespace: /run/netns/heddle-ho-api}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: db}
spec: {node: n2, addresses: ["10.246.2.10", "fd00:246:2::10"], networkNamespace: /run/netns/heddle-ho-db}
`

// size is how much of everything there is: a tenth of `make handover`.
type size struct{ handOvers, connections, rate int }

func sizeOf(t *testing.T) size {
	s := size{2, 200, 200}
	for name, value := range map[string]*int{
		"HEDDLE_HANDOVERS": &s.handOvers, "HEDDLE_HANDOVER_CONNECTIONS": &s.connections, "HEDDLE_HANDOVER_RATE": &s.rate,
	} {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 {
				t.Fatalf("%s: %q is no number of them", name, text)
			}
			*value = n
		}
	}
	return s
}

// maxPause is how long a connection may stand still.
const maxPause = 100 * time.Millisecond

// TestHandOver replaces agents under long-lived connections in both directions,
// across nodes and within one, under bulk transfers and steady requests. Nothing
// of it may be reset, fail, or be other bytes; and nothing of it notices
// successors that are not fit, are killed, or are of another time.
func TestHandOver(t *testing.T) {
	n := sizeOf(t)
	t.Setenv("HEDDLE_ENGINE", "loop")
	// Registered first, so that it looks when the mesh is down.
	t.Cleanup(func() { nothingLeft(t) })
	b := testbed.Up(t, "../..", meshName, meshYAML)
	next := filepath.Join(t.TempDir(), "heddle-agent")
	testenv.Go(t, "../..", "build", "-trimpath", "-ldflags", "-X main.version=next", "-o", next, "./cmd/heddle-agent")
	res := &results{}
	for _, pod := range []string{"shop/web", "shop/api", "shop/db", "plain/answers"} {
		go echo(res, b.Listen(t, pod, ":7000"))
	}
	end := begin(t, b, res, n.connections, n.rate, path{pastAgents, "plain/asks", "10.246.2.90:7000"}, []path{
		{"out of n1", "shop/web", "10.246.2.10:7000"},
		{"into n1", "shop/db", "[fd00:246:1::10]:7000"},
		{"within n1", "shop/web", "10.246.1.11:7000"},
		{"out of n1, IPv6", "shop/api", "[fd00:246:2::10]:7000"},
	})
	defer end()
	begun := time.Now()
	time.Sleep(3 * time.Second)
	check(t, res, "before the first hand-over")
	meshed, past := res.pauses()
	t.Logf("%d long-lived connections, %d requests/s; the longest answer without a hand-over: %v, past the agents %v", n.connections, n.rate, meshed, past)

	failures(t, b, res)
	res.forget()
	var worst upgradeDocument
	for i := range n.handOvers {
		node, binary := []string{"n1", "n2"}[i%2], next
		if i/2%2 == 1 {
			binary = filepath.Join(b.Binaries, "heddle-agent")
		}
		since := time.Now()
		worst.add(t, handOver(t, b, node, binary))
		time.Sleep(500 * time.Millisecond)
		res.tell(t, since)
		check(t, res, fmt.Sprintf("hand-over %d, of %s", i+1, node))
	}
	w := work{rate: n.rate, elapsed: time.Since(begun), requests: res.requests.Load(), control: res.control.Load(), controls: controls(n.connections)}
	end()
	check(t, res, "at the end")
	meshed, past = res.pauses()
	t.Logf("%d hand-overs: %d connections at most, at rest for %v at most; the longest answer: %v, past the agents %v; %d messages, %d requests in %v, %d connections opened, %d MB",
		n.handOvers, worst.connections, worst.pause, meshed, past, res.messages.Load(), w.requests, w.elapsed.Round(time.Millisecond), res.connections.Load(), res.bytes.Load()>>20)
	said(t, judgePauses(meshed, past), res.longest)
	if worst.pause > maxPause || worst.pause <= 0 {
		t.Errorf("the agents had a connection at rest for %v, want at most %v", worst.pause, maxPause)
	}
	said(t, w.judge(testenv.Overloaded(t)), "")
}

// said fails the test for a judgement, or logs that there is none.
func said(t *testing.T, err error, more any) {
	t.Helper()
	switch {
	case errors.Is(err, errInconclusive):
		t.Log(err)
	case err != nil:
		t.Error(err, more)
	}
}

// nothingLeft looks for agents that nobody has stopped: of all that were started,
// each must have ended.
func nothingLeft(t *testing.T) {
	t.Helper()
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range commands {
		command, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(command), "/heddle/local/"+meshName+"/nodes/") {
			t.Errorf("left behind: %s: %s", path, strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
}

func check(t *testing.T, res *results, when string) {
	t.Helper()
	failed := res.take()
	for i, err := range failed {
		if i == 10 {
			t.Errorf("%s: and %d more", when, len(failed)-i)
			break
		}
		testenv.ForGood(t, "%s: %v", when, err)
	}
	if len(failed) > 0 {
		t.FailNow()
	}
}

// upgradeDocument is the worst of several upgrades.
type upgradeDocument struct {
	connections uint32
	pause       time.Duration
}

func (d *upgradeDocument) add(t *testing.T, u local.Upgraded) {
	t.Helper()
	if u.Failed != 0 || u.Left != 0 || u.Connections == 0 || u.PID == u.FromPID {
		t.Errorf("%+v", u)
	}
	d.connections, d.pause = max(d.connections, u.Connections), max(d.pause, u.Pause)
}

// handOver runs `heddle local upgrade`, and looks at what status says then.
func handOver(t *testing.T, b *testbed.Bed, node, binary string) local.Upgraded {
	t.Helper()
	out, err := b.Heddle("local", "upgrade", "--name", meshName, "--node", node, "--agent", binary, "-o", "json")
	var said struct{ Upgraded []local.Upgraded }
	if err == nil {
		err = json.Unmarshal([]byte(out), &said)
	}
	if err != nil || len(said.Upgraded) != 1 {
		t.Fatalf("upgrade %s: %v\n%s", node, err, out)
	}
	u := said.Upgraded[0]
	t.Logf("%s: %s to %s, %d connections in %d tunnels, at rest for %v, took %v", node, u.From, u.To, u.Connections, u.Tunnels, u.Pause, u.Took)
	m, err := local.Open("", meshName)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range m.Status().Nodes {
		if n.Name == node && (n.Agent.PID != u.PID || !n.Agent.Running) {
			t.Errorf("status says that the agent of %s is %+v, want process %d", node, n.Agent, u.PID)
		}
	}
	return u
}

// failures tries successors that do not make it.
func failures(t *testing.T, b *testbed.Bed, res *results) {
	t.Helper()
	before, err := local.Open("", meshName)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what, want, binary string) {
		t.Helper()
		out, err := b.Heddle("local", "upgrade", "--name", meshName, "--node", "n1", "--agent", binary)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "goes on") {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
		time.Sleep(200 * time.Millisecond)
		check(t, res, what)
		now, err := local.Open("", meshName)
		if err != nil || now.Agents["n1"] != before.Agents["n1"] || !now.Agents["n1"].Running() {
			t.Fatalf("%s: the agent is %+v, and was %+v (%v)", what, now.Agents["n1"], before.Agents["n1"], err)
		}
	}
	own := filepath.Join(b.Binaries, "heddle-agent")
	t.Setenv("HEDDLE_KUBELET_CGROUP", "/no/such/cgroup")
	refuse("a successor with a broken configuration", "no such file", own)
	os.Unsetenv("HEDDLE_KUBELET_CGROUP")
	t.Setenv("HEDDLE_ENGINE", "reference")
	refuse("a successor that cannot take connections", "--drain", own)
	t.Setenv("HEDDLE_ENGINE", "loop")
	refuse("a successor that is no agent", "without a word", script(t, "exit 3"))
	for _, after := range []string{"0.05", "0.15", "0.25"} {
		refuse("a successor killed after "+after+" s", "without a word", script(t, "timeout -s KILL "+after+" "+own+` "$@" >/dev/null 2>&1; exit 1`))
	}
	_, err = handover.Dial(t.Context(), handover.SuccessorConfig{
		Socket: filepath.Join(filepath.Dir(b.Mesh.AgentSocket("n1")), "handover.sock"), Log: slog.New(slog.DiscardHandler),
		Versions: handover.Versions{Oldest: handover.Newest + 1, Newest: handover.Newest + 2},
	})
	var refused *handover.Refused
	if !errors.As(err, &refused) || refused.Remedy == "" {
		t.Errorf("a successor of another time: %v", err)
	}
	check(t, res, "a successor of another time")
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "heddle-agent")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
