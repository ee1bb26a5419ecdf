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
			t.Fatalf("upgrade %d: %v\n%s", n, after, grep(w.logs(t, "loaded"), "LOST|BROKEN"))
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
	t.Run("the agent is killed during CNI ADD", func(t *testing.T) {
		c := w.capture(t)
		w.apply(t, podYAML("midway", "n1", "", "dial", server+":7000"))
		for range 2 {
			time.Sleep(400 * time.Millisecond)
			w.killAgent(t, "n1")
		}
		w.waitReady(t, "midway")
		w.enrolled(t, "n1", "shop/midway")
		midway := w.pod(t, "midway").Status.PodIP
		if found := c.Stop(t, "first\n", only(midway)); found.Markers != 0 || found.PlaintextBytes != 0 {
			t.Errorf("a pod that started while agents died: %s %v", found, found.PlaintextFlows)
		}
	})
}

// killAgent kills a node's agent; kubelet starts it again.
func (w *world) killAgent(t *testing.T, node string) {
	t.Helper()
	_, _ = w.node(t, node).Exec(t.Context(), "bash", "-c", agentPID+"; kill -9 $pid") // it may be on its way
}
