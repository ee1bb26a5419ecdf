package agent_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// childVersions limits the versions of the hand-over that a child speaks, as in
// 1-1. childStops is a folder: a child that reaches a point of its hand-over makes
// a file of the point's name in it, and goes on when there is none of that name
// with .hold.
const childVersions, childStops = "HEDDLE_TEST_VERSIONS", "HEDDLE_TEST_STOPS"

func stopAt(point string) {
	dir := os.Getenv(childStops)
	if dir == "" {
		return
	}
	path := filepath.Join(dir, point)
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(path + ".hold"); err != nil {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// stops makes a folder for childStops in which a point is held until release.
func stops(t *testing.T, point string) (env string, reached func(), release func()) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, point)
	if err := os.WriteFile(path+".hold", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	release = func() { os.Remove(path + ".hold") }
	t.Cleanup(release)
	return childStops + "=" + dir, func() {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, "the successor reaches "+point, func() bool { _, err := os.Stat(path); return err == nil })
	}, release
}

// TestMidway: hand-overs during which something else happens, at a moment that
// the test chooses.
func TestMidway(t *testing.T) {
	w := newWorld(t)
	for _, pod := range w.pods {
		pod.serve(7001, echo)
	}
	for _, n := range []*node{w.n1, w.n2} {
		n.start()
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"versions", w.versions}, {"stale modes", w.staleModes}, {"a pod leaves", w.podLeaves}, {"policy and enrolment", w.changesMidway},
		{"the successor is killed", w.successorKilledMidway}, {"the donor is killed", w.donorKilledMidway}, {"two at once", w.twoAtOnce},
	} {
		if !t.Run(step.name, step.run) {
			return // the agents are not those that the next one expects
		}
	}
}

// conversations are several of each kind, so that they move in several batches.
func (w *world) conversations(t *testing.T) (all []*talk) {
	t.Helper()
	web, db := w.pods["web"], w.pods["db"]
	for range 8 {
		all = append(all, w.talk(t, web, "10.96.0.2:70"), w.talk(t, web, "10.96.0.1:70"), w.talk(t, db, net.JoinHostPort(web.v4, "7001")))
	}
	return all
}

func hangUp(all []*talk) {
	for _, k := range all {
		k.c.Close()
	}
}

// replaced waits for the end of a donor that has handed over.
func (n *node) replaced(t *testing.T, donor *exec.Cmd) {
	t.Helper()
	if err := ended(t, donor); err != nil {
		log, _ := os.ReadFile(n.log)
		t.Fatalf("the donor: %v\n%s", err, log)
	}
	n.await("enrolled")
}

// versions: agents of version 1 and of this one take over from each other.
func (w *world) versions(t *testing.T) {
	n := w.n1
	live := w.conversations(t)
	defer hangUp(live)
	for i, step := range []struct {
		speaks string
		want   uint32
	}{{"1-1", 1}, {"", 1}, {"1-1", 1}, {"1-1", 1}, {"", 1}, {"", 2}} {
		old := n.cmd
		n.env = []string{childVersions + "=" + step.speaks}
		n.start(func(c *agent.Config) { c.TakeOver = agent.TakeOverRequire })
		n.replaced(t, old)
		if h := n.status().GetHandOver(); h.GetProtocol() != step.want || h.GetFailed() != 0 || h.GetLeft() != 0 || h.GetConnections() < uint32(len(live)) {
			t.Errorf("step %d: %v, want version %d", i, h, step.want)
		}
		for _, k := range live {
			k.ask(t)
		}
	}
}

// staleModes: a successor whose last good configuration is older than the
// donor's puts none of its modes in force.
func (w *world) staleModes(t *testing.T) {
	n, web := w.n1, w.pods["web"]
	permissive := `apiVersion: heddle.dev/v1alpha1
kind: PeerAuthentication
metadata: {namespace: shop, name: default}
spec: {mode: PERMISSIVE}
`
	plain := func() error {
		var c net.Conn
		err := w.n2.ns.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", net.JoinHostPort(web.v4, "7001"), 40*time.Millisecond)
			return err
		})
		if err == nil {
			c.Close()
		}
		return err
	}
	w.write("modes.yaml", permissive)
	testenv.Eventually(t, 10*time.Second, "plaintext is let in", func() bool { return plain() == nil })
	stale := filepath.Join(w.dir, n.name, "stale")
	if out, err := exec.Command("cp", "-a", filepath.Join(w.dir, n.name, "state"), stale).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.write("modes.yaml", strings.Replace(permissive, "PERMISSIVE", "STRICT", 1))
	refused := 0 // in a row: a busy machine may be late for one
	testenv.Eventually(t, 20*time.Second, "plaintext is refused", func() bool {
		if refused++; plain() == nil {
			refused = 0
		}
		return refused > 15
	})

	var stop atomic.Bool
	var tries, leaks atomic.Int64
	var trying sync.WaitGroup
	for range 16 {
		trying.Go(func() {
			for !stop.Load() {
				tries.Add(1)
				if plain() == nil {
					leaks.Add(1)
				}
			}
		})
	}
	old := n.cmd
	n.start(func(c *agent.Config) { c.TakeOver = agent.TakeOverRequire; c.StateDir = stale })
	n.replaced(t, old)
	stop.Store(true)
	trying.Wait()
	t.Logf("%d tries", tries.Load())
	if leaks.Load() > 0 || tries.Load() < 100 {
		t.Errorf("plaintext was let in %d times of %d", leaks.Load(), tries.Load())
	}
}

// podLeaves: a pod that leaves the mesh while the successor tests itself is not
// waited for.
func (w *world) podLeaves(t *testing.T) {
	n := w.n1
	old := n.cmd
	env, reached, release := stops(t, "fit")
	n.env = []string{env}
	begun := time.Now()
	n.start(func(c *agent.Config) { c.TakeOver = agent.TakeOverRequire })
	reached()
	w.workload("api", "n1", "disabled")
	time.Sleep(500 * time.Millisecond) // both agents hear of it
	release()
	n.replaced(t, old)
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("the hand-over took %v", took)
	}
	testenv.Eventually(t, 10*time.Second, "api has left", func() bool { return len(n.status().GetPods()) == 1 })
	w.workload("api", "n1", "enabled")
	testenv.Eventually(t, 10*time.Second, "api is back", func() bool { return len(n.status().GetPods()) == 2 })
	n.await("enrolled")
}

// changesMidway: a policy changes, and a pod is enrolled, while the connections
// of both nodes move. What is denied then ends, wherever it is, and nothing else.
func (w *world) changesMidway(t *testing.T) {
	w.workload("six", "n2", "disabled")
	testenv.Eventually(t, 10*time.Second, "six has left", func() bool { return len(w.n2.status().GetPods()) == 1 })
	live := w.conversations(t)
	defer hangUp(live)
	denied := func(k *talk) bool { return k.what == "10.96.0.1:70" }
	var olds []*exec.Cmd
	var releases []func()
	for _, n := range []*node{w.n1, w.n2} {
		olds = append(olds, n.cmd)
		env, reached, release := stops(t, "thaw")
		n.env = []string{env}
		n.start(func(c *agent.Config) { c.TakeOver = agent.TakeOverRequire })
		reached()
		releases = append(releases, release)
	}
	w.write("deny.yaml", `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: no-web}
spec:
  selector: {matchLabels: {app: db}}
  action: DENY
  rules: [{from: [{identities: ["spiffe://test.heddle.dev/ns/shop/sa/web"]}]}]
`)
	w.workload("six", "n2", "enabled")
	time.Sleep(500 * time.Millisecond) // all four agents hear of it
	for _, release := range releases {
		release()
	}
	for i, n := range []*node{w.n1, w.n2} {
		n.replaced(t, olds[i])
	}
	for _, k := range live {
		if denied(k) {
			k.mustEnd(t)
		} else {
			k.ask(t)
		}
	}
	w.n2.expectFlow("ended by policy", func(r *flow.Record) bool {
		return r.Reason == mesh.ReasonPolicyChanged && r.Destination.Workload.Name == "db"
	})
	if err := os.Remove(filepath.Join(w.dir, "mesh", "deny.yaml")); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "six is enrolled", func() bool { return len(w.n2.status().GetPods()) == 2 })
	w.n2.await("enrolled")
	testenv.Eventually(t, 10*time.Second, "db answers again", func() bool {
		c, err := w.pods["web"].dial("10.96.0.1:70")
		if err != nil {
			return false
		}
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
		return err == nil
	})
	w.exchange(t, w.pods["web"], "[fd96::3]:70")
}

// mustEnd waits for the end of a connection, which says so.
func (k *talk) mustEnd(t *testing.T) {
	t.Helper()
	if err := k.c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := k.in.ReadString('\n')
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: it hangs", k.what)
		}
		if err != nil {
			return
		}
	}
}

// alive asks without failing: false means that the connection has ended.
func (k *talk) alive() bool {
	if k.c.SetDeadline(time.Now().Add(10*time.Second)) != nil {
		return false
	}
	if _, err := fmt.Fprintln(k.c, "alive?"); err != nil {
		return false
	}
	_, err := k.in.ReadString('\n')
	return err == nil
}

// moved says which connections have ended, none of which hangs.
func moved(t *testing.T, all []*talk) (ended, live []*talk) {
	t.Helper()
	for _, k := range all {
		begun := time.Now()
		if k.alive() {
			live = append(live, k)
		} else {
			ended = append(ended, k)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s: it took %v to know", k.what, took)
		}
	}
	return ended, live
}

// successorKilledMidway: what was committed to it is lost, the rest goes on where
// it is, and so do the pods.
func (w *world) successorKilledMidway(t *testing.T) {
	n := w.n1
	live := w.conversations(t)
	defer hangUp(live)
	failures, donor, pid := n.failures(), n.cmd, n.status().GetPid()
	env, reached, _ := stops(t, "thaw")
	n.env = []string{env}
	n.start(func(c *agent.Config) { c.TakeOver = agent.TakeOverRequire })
	reached() // the first batch is its own
	if err := n.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	n.cmd.Wait()
	n.cmd = donor
	n.goesOn(t, failures)
	gone, on := moved(t, live)
	t.Logf("%d of %d connections were lost with the successor", len(gone), len(live))
	if len(gone) == 0 || len(on) == 0 {
		t.Errorf("%d ended, %d go on: the moment was missed", len(gone), len(on))
	}
	if now := n.status().GetPid(); now != pid {
		t.Errorf("the agent is %d, and was %d", now, pid)
	}
	n.await("enrolled")
	w.exchange(t, w.pods["web"], "10.96.0.1:70")
	w.exchange(t, w.pods["web"], "10.96.0.2:70")
	w.exchange(t, w.pods["db"], net.JoinHostPort(w.pods["web"].v4, "7001"))
	w.handOver(t, n)
	for _, k := range on {
		if !k.alive() {
			t.Errorf("%s: it is lost in the next hand-over", k.what)
		}
	}
}

// donorKilledMidway: the successor is the agent with what it has.
func (w *world) donorKilledMidway(t *testing.T) {
	n := w.n1
	live := w.conversations(t)
	defer hangUp(live)
	donor := n.cmd
	env, reached, release := stops(t, "thaw")
	n.env = []string{env}
	n.start(func(c *agent.Config) { c.TakeOver = agent.TakeOverRequire })
	reached()
	if err := donor.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	donor.Wait()
	release()
	testenv.Eventually(t, 20*time.Second, "the successor answers", func() bool {
		log, err := os.ReadFile(n.log)
		return err == nil && strings.Contains(string(log), "alone=true")
	})
	n.await("enrolled")
	if pid := n.status().GetPid(); pid != int64(n.cmd.Process.Pid) {
		t.Errorf("the agent is %d, want %d", pid, n.cmd.Process.Pid)
	}
	gone, on := moved(t, live)
	t.Logf("%d of %d connections were lost with the donor", len(gone), len(live))
	if len(gone) == 0 || len(on) == 0 {
		t.Errorf("%d ended, %d go on: the moment was missed", len(gone), len(on))
	}
	w.exchange(t, w.pods["web"], "10.96.0.1:70")
	w.exchange(t, w.pods["web"], "10.96.0.2:70")
	w.exchange(t, w.pods["db"], net.JoinHostPort(w.pods["web"].v4, "7001"))
}

// twoAtOnce: of two agents that start at one instant, one is the node's, and the
// other says whose it is and what to do.
func (w *world) twoAtOnce(t *testing.T) {
	n := w.n1
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var both [2]*exec.Cmd
	for i := range both {
		n.start()
		both[i] = n.cmd
	}
	type end struct {
		i   int
		err error
	}
	ends := make(chan end, 2)
	for i, cmd := range both {
		go func() { ends <- end{i, cmd.Wait()} }()
	}
	var first end
	select {
	case first = <-ends:
	case <-time.After(20 * time.Second):
		t.Fatal("both run")
	}
	group := cgroupFolder(t, n.ns.Name)
	t.Cleanup(func() {
		<-ends
		// It may have found the other in its cgroup, and made one of its own below.
		below, _ := filepath.Glob(group + "/*/cgroup.procs") // the pattern is well-formed
		for _, procs := range below {
			if err := os.Remove(filepath.Dir(procs)); err != nil {
				t.Error(err)
			}
		}
	})
	winner := both[1-first.i]
	n.cmd = nil
	t.Cleanup(func() { winner.Process.Signal(unix.SIGTERM) })
	log, err := os.ReadFile(n.log)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("process %d is this node's agent", winner.Process.Pid); first.err == nil || !strings.Contains(string(log), want) || !strings.Contains(string(log), fmt.Sprintf("kill %d", winner.Process.Pid)) {
		t.Errorf("it ended with %v, and the log lacks %q:\n%s", first.err, want, log)
	}
	n.await("enrolled")
	if pid := n.status().GetPid(); pid != int64(winner.Process.Pid) {
		t.Errorf("the agent is %d, want %d", pid, winner.Process.Pid)
	}
}
