package agent_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/agent/ready"
	"github.com/heddle-mesh/heddle/e2e/kernelstate"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// probe asks as a probe of the node's container would.
func (n *node) probe() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if failed := n.ns.Do(func() error { err = ready.Ask(ctx, n.name); return nil }); failed != nil {
		n.w.t.Fatal(failed)
	}
	return err
}

// TestStayAfterHandOver: an agent that has handed over stays, and says so, until
// the node has no agent any more; and one that is to leave the node leaves nothing.
func TestStayAfterHandOver(t *testing.T) {
	w := newWorld(t)
	n := w.n1
	if err := n.probe(); !errors.Is(err, ready.ErrNotReady) {
		t.Errorf("before the first agent: %v", err)
	}
	n.start(func(c *agent.Config) { c.End.StayAfterHandOver = true })
	t.Cleanup(func() {
		if n.cmd != nil {
			n.leave()
		}
	})
	n.await("enrolled")
	testenv.Eventually(t, 10*time.Second, "the agent is ready", func() bool { return n.probe() == nil })
	old := n.cmd
	n.start(func(c *agent.Config) { c.TakeOver = agent.TakeOverRequire })
	testenv.Eventually(t, 20*time.Second, "the old one says that another has taken over", func() bool {
		err := n.probe()
		return errors.Is(err, ready.ErrNotReady) && strings.Contains(err.Error(), "taken this node over")
	})
	n.await("enrolled")
	if state := processState(t, old.Process.Pid); state == "Z" {
		t.Fatal("the old one has ended")
	}
	if err := n.end(syscall.SIGKILL); err == nil {
		t.Error("a killed agent ended well")
	}
	// Nobody has the node now: the old one ends, so that it is started anew.
	if err := ended(t, old); err != nil {
		t.Errorf("the old one: %v", err)
	}

	n.start(func(c *agent.Config) { c.End.Uninstall = true })
	n.await("enrolled")
	pins := "/sys/fs/bpf/" + n.ns.Name
	objects, err := kernelstate.Pinned(pins)
	if err != nil || len(objects) < 20 {
		t.Errorf("of an agent with pods, pinned are %v, %v", objects, err)
	}
	spare := filepath.Join(w.dir, n.name, "node") // where the node's credential is when its disk was full
	if err := errors.Join(os.Mkdir(spare, 0o700), os.WriteFile(filepath.Join(spare, "key"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "the kernel has none of the objects that were pinned", func() bool {
		left, err := kernelstate.Alive(objects)
		if err != nil {
			t.Fatal(err)
		}
		return len(left) == 0
	})
	for _, left := range []string{pins, filepath.Join(w.dir, n.name, "state"), filepath.Join(w.dir, n.name, "keys")} {
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left on the node: %s (%v)", left, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(w.dir, n.name)); err == nil {
		t.Errorf("left in the run directory: %v", left)
	}
}

// processState is the state letter of /proc/PID/stat.
func processState(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return rest[:1]
}
