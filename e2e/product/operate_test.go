package product

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// testUpgrade replaces every agent, again and again, under connections that stay
// open and connections that come: none is lost, and none is reset.
func (w *world) testUpgrade(t *testing.T, server string) {
	w.apply(t, podYAML("loaded", "n1", itsShare, "load", server+":7000", "20", "20"))
	w.waitReady(t, "loaded")
	for n := range fromEnvironment(t, "HEDDLE_UPGRADES", 2) { // `make upgrades` sets more
		before := w.counted(t, "loaded")
		w.cli(t, "upgrade", "--set", fmt.Sprintf("agent.podAnnotations.run=r%d", n), "--wait", "3m")
		testenv.Eventually(t, patience, "the old agents are gone", func() bool {
			return strings.Count(w.kubectl(t, "-n", "heddle-system", "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o", "name"), "\n") == 2
		})
		time.Sleep(time.Second)
		after := w.counted(t, "loaded")
		if after["exchanges"] <= before["exchanges"] || after["opened"] <= before["opened"] {
			t.Errorf("upgrade %d: no traffic: %v, then %v", n, before, after)
		}
		if after["lost"] > 0 || after["broken"] > 0 {
			testenv.ForGood(t, "upgrade %d: %v\n%s", n, after, grep(w.logs(t, "loaded"), "LOST|BROKEN"))
			t.FailNow()
		}
		t.Logf("upgrade %d: %v", n, after)
	}
	w.notBroken(t, "holder")
	w.kubectl(t, "-n", "shop", "delete", "pod", "loaded", "--now")
}

// counted reads the last line of a pod under load.
func (w *world) counted(t *testing.T, pod string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	eventually(t, 20*time.Second, "the pod under load counts", func() error {
		all := regexp.MustCompile(`(?m)^exchanges (\d+) opened (\d+) lost (\d+) broken (\d+)$`).FindAllStringSubmatch(w.kubectl(t, "-n", "shop", "logs", pod, "--tail=3"), -1)
		if len(all) == 0 {
			return fmt.Errorf("%s", w.logs(t, pod))
		}
		for i, name := range []string{"exchanges", "opened", "lost", "broken"} {
			counts[name], _ = strconv.Atoi(all[len(all)-1][i+1]) // digits
		}
		return nil
	})
	return counts
}

func grep(text, pattern string) string {
	re := regexp.MustCompile(pattern)
	var out []string
	for line := range strings.Lines(text) {
		if re.MatchString(line) && len(out) < 20 {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// works waits until a pod reaches an address.
func (w *world) works(t *testing.T, pod, address string) {
	t.Helper()
	eventually(t, patience, pod+" reaches "+address, func() error {
		_, err := w.inPod(t, pod, "once", address, marker)
		return err
	})
}

// testFaults: what fails is said, and recovers by itself.
func (w *world) testFaults(t *testing.T, server string) {
	t.Run("a label flaps", w.testFlapping)
	t.Run("the API server", w.testAPIServer)
	t.Run("the operator is gone", func(t *testing.T) { w.testOutage(t, server) })
	t.Run("containerd is restarted", func(t *testing.T) { w.testRuntimeRestart(t, server) })
	t.Run("the CNI configuration is written anew", func(t *testing.T) { w.testRewrite(t, server) })
	t.Run("the agent is killed during CNI ADD", func(t *testing.T) { w.testKilledMidway(t, server) })
	t.Run("a disk is full", func(t *testing.T) { w.testFullDisk(t, server) })
}

// testKilledMidway kills a node's agent while heddle-cni waits for its answer about a
// new pod, before the agent has read the question and after it has put the gate: the pod
// starts behind its gate all the same, and nothing is left of the first try when it is gone.
func (w *world) testKilledMidway(t *testing.T, server string) {
	before := w.steady(t, "n1")
	for _, when := range []struct {
		name string
		kill func(*testing.T, string, func())
	}{{"unread", w.killUnread}, {"gated", w.killGated}} {
		c := w.capture(t)
		when.kill(t, when.name, func() { w.apply(t, podYAML(when.name, "n1", "", "dial", server+":7000")) })
		w.waitReady(t, when.name)
		w.enrolled(t, "n1", "shop/"+when.name)
		pod := w.pod(t, when.name).Status.PodIP
		onlyInTheTunnel(t, "a pod whose agent died while it started", c.Stop(t, "first\n", only(pod)))
		w.kubectl(t, "-n", "shop", "delete", "pod", when.name, "--now")
	}
	eventually(t, patience, "nothing is left of the pods", func() error {
		now, err := w.held(t, "n1")
		if err != nil {
			return err
		}
		// Each container of the agent has a stamp of its own cgroup. The kernel lets go of a
		// dead one's in its own time, and the next agent to start collects it.
		stamps := regexp.MustCompile(`(?m)^.*/sock_create_\d+\n`)
		before.pins, now.pins = stamps.ReplaceAllString(before.pins, ""), stamps.ReplaceAllString(now.pins, "")
		return now.above(before)
	})
}

// killUnread stops n1's agent, has a pod start, and kills it when heddle-cni has asked.
func (w *world) killUnread(t *testing.T, _ string, start func()) {
	t.Helper()
	n1 := w.node(t, "n1")
	if out, err := n1.Exec(t.Context(), "bash", "-c", agentPID+"; kill -STOP $pid"); err != nil {
		t.Fatal(err, out)
	}
	start()
	eventually(t, patience, "heddle-cni asks the agent", func() error {
		out, err := n1.Exec(t.Context(), "pgrep", "-x", "heddle-cni")
		if err != nil {
			err = fmt.Errorf("%w %s", err, out)
		}
		return err
	})
	time.Sleep(200 * time.Millisecond) // it has started: now it has asked
	if out, err := n1.Exec(t.Context(), "bash", "-c", "pgrep -x heddle-cni && "+agentPID+" && kill -9 $pid"); err != nil {
		t.Fatalf("kill the agent while heddle-cni waits: %v %s", err, out)
	}
}

// killGated kills n1's agent as soon as it puts the last filters of a pod's gate, while
// heddle-cni waits: the test packet, the rules and the answer are still to come, and so are the
// links that take the filters' place.
func (w *world) killGated(t *testing.T, name string, start func()) {
	t.Helper()
	ready, killed := make(chan struct{}), make(chan error, 1)
	go func() {
		close(ready)
		out, err := w.node(t, "n1").Exec(t.Context(), "timeout", "120", "bash", "-c", agentPID+`
			until compgen -G "/sys/fs/bpf/heddle/*/v1/pods/shop_`+name+`/clsact_pod" >/dev/null; do :; done
			kill -STOP $pid; pgrep -x heddle-cni; asked=$?; kill -9 $pid; exit $asked`)
		if err != nil {
			err = fmt.Errorf("%w %s", err, out)
		}
		killed <- err
	}()
	<-ready
	start()
	if err := <-killed; err != nil {
		t.Fatalf("kill the agent between the gate and its answer: %v", err)
	}
}

// killAgent kills a node's agent; kubelet starts it again.
func (w *world) killAgent(t *testing.T, node string) {
	t.Helper()
	_, _ = w.node(t, node).Exec(t.Context(), "bash", "-c", agentPID+"; kill -9 $pid") // it may be on its way
}
