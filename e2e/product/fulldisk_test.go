package product

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// stateDir is the agent's on a node.
const stateDir = "/var/lib/heddle"

// testFullDisk: the file system of n1's agent's state has no room. Traffic goes on, new pods
// are enrolled, `heddle status`, `heddle check` and the agent's log say what is wrong and what
// to do, and nothing does once there is room.
func (w *world) testFullDisk(t *testing.T, server string) {
	onTmpfs := w.stateOnTmpfs(t)
	defer onTmpfs()
	w.apply(t, podYAML("carried", "n1", itsShare, "load", server+":7000", "2", "10"))
	w.waitReady(t, "carried")
	w.enrolled(t, "n1", "shop/carried")
	w.onN1(t, "fill it", "dd if=/dev/zero of="+stateDir+"/filler bs=4k 2>/dev/null; test -s "+stateDir+"/filler")

	w.apply(t, podYAML("late", "n1", "", "wait")) // which is something to keep
	w.waitReady(t, "late")
	w.works(t, "late", server+":7000")
	w.agentSays(t, "late")
	w.agentSays(t, "last good configuration", "no space left on device")
	w.agentSays(t, "make room in the agent's state directory")
	eventually(t, patience, "status names the node and says what is wrong with it", func() error {
		out, err := exec.CommandContext(t.Context(), w.heddle, "status", "--kubeconfig", w.Kubeconfig()).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if err != nil && strings.Contains(line, "n1: last good configuration") && strings.Contains(line, "no space left on device") {
				return nil
			}
		}
		return fmt.Errorf("%w: %s", err, out)
	})
	if logs := w.kubectl(t, "-n", "heddle-system", "logs", "-l", "app.kubernetes.io/component=agent", "--tail=-1"); !strings.Contains(logs, "last good configuration is not saved") {
		t.Error("no agent's log says that its configuration is not on disk")
	}
	w.unharmed(t, "n1", "carried", true)

	w.onN1(t, "make room", "rm "+stateDir+"/filler")
	w.well(t)
	w.agentSays(t, "late") // as before
	w.unharmed(t, "n1", "carried", true)
	w.kubectl(t, "-n", "shop", "delete", "pod", "carried", "late", "--now")
}

// stateOnTmpfs has n1's agent keep its state on a small file system of its own, from its next
// start on, until the function that it returns is called.
func (w *world) stateOnTmpfs(t *testing.T) (back func()) {
	t.Helper()
	const copies = "/run/heddle-state-of-a-test"
	restart := func() {
		t.Helper()
		before := w.agentStarts(t)
		// Killed, it would wait for the kubelet, which after the kills of the tests before takes minutes to restart it.
		w.kubectl(t, "-n", "heddle-system", "delete", "pods", "-l", "app.kubernetes.io/component=agent", "--field-selector", "spec.nodeName=n1", "--now")
		eventually(t, patience, "another agent runs on n1", func() error {
			if now := w.agentStarts(t); now == before {
				return fmt.Errorf("still process %s", now)
			}
			return nil
		})
		w.enrolled(t, "n1", "shop/client")
	}
	w.onN1(t, "mount a small file system", fmt.Sprintf("cp -a %[1]s %[2]s && mount -t tmpfs -o size=32m,mode=0700 tmpfs %[1]s && cp -a %[2]s/. %[1]s/", stateDir, copies))
	restart()
	return func() {
		t.Helper()
		// The agent may write once more into what is taken away: the operator tells the next one.
		w.onN1(t, "take it away", fmt.Sprintf("rm -rf %[2]s %[1]s/filler && cp -a %[1]s %[2]s && umount -l %[1]s && cp -a %[2]s/. %[1]s/; code=$?; rm -rf %[2]s; exit $code", stateDir, copies))
		restart()
	}
}

// agentStarts tells one process of n1's agent from the next; "" while there is none.
func (w *world) agentStarts(t *testing.T) string {
	t.Helper()
	pid, err := w.node(t, "n1").Exec(t.Context(), "bash", "-c", agentPID+"; echo $pid")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(pid)
}

// onN1 runs a script on the node.
func (w *world) onN1(t *testing.T, what, script string) {
	t.Helper()
	if out, err := w.node(t, "n1").Exec(t.Context(), "sh", "-c", script); err != nil {
		t.Fatalf("%s: %v %s", what, err, out)
	}
}
