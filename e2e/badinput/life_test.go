package badinput

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/local"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func asExit(err error, exit **exec.ExitError) bool { return errors.As(err, exit) }

// token uses a join token again: that of a node that has joined with it.
func (w *world) token(t *testing.T) {
	used := filepath.Join(local.DefaultStateDir, meshName, "nodes", "n1", "join-token")
	const joins = `heddle_issuing_requests_total{method="join",reason="TokenUsed"}`
	t.Run("a second time", func(t *testing.T) {
		w.counts(t, "operator", joins, func() {
			out := w.join(t, "n1", used)
			if !hasAll(out, []string{"join token was used already", "n1", "remedy: make a new one"}) {
				t.Errorf("the agent that may not join says:\n%s", out)
			}
		})
		w.logSays(t, "operator", "refuse SVID", "TokenUsed", "node=n1")
		w.served(t)
	})
	t.Run("by another node", func(t *testing.T) {
		if out := w.join(t, "n9", used); !hasAll(out, []string{"join token is for another node", "n1", "n9"}) {
			t.Errorf("the agent that may not join says:\n%s", out)
		}
	})
	t.Run("revoked", func(t *testing.T) {
		fresh := filepath.Join(t.TempDir(), "token")
		text, err := w.Heddle("join-token", "--name", meshName, "create", "n9")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(fresh, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := w.Heddle("join-token", "--name", meshName, "list")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(list) {
			if f := strings.Fields(line); len(f) > 2 && f[1] == "n9" {
				if _, err := w.Heddle("join-token", "--name", meshName, "revoke", f[0]); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.counts(t, "operator", strings.Replace(joins, "TokenUsed", "TokenRevoked", 1), func() {
			if out := w.join(t, "n9", fresh); !hasAll(out, []string{"join token is revoked", "n9"}) {
				t.Errorf("the agent that may not join says:\n%s", out)
			}
		})
	})
	t.Run("changed", func(t *testing.T) {
		text, err := os.ReadFile(used)
		if err != nil {
			t.Fatal(err)
		}
		text[len(text)/2] ^= 1
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if out := w.join(t, "n1", path); !strings.Contains(out, "not a join token") {
			t.Errorf("the agent that may not join says:\n%s", out)
		}
	})
	list, err := w.Heddle("join-token", "--name", meshName, "list")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(list, " used ") != 2 || !strings.Contains(list, " revoked ") {
		t.Errorf("the list of tokens:\n%s", list)
	}
}

// join runs an agent that has not joined, with a token that it may not use,
// where the operator can be reached. It returns what the agent said when it had
// ended.
func (w *world) join(t *testing.T, node, token string) string {
	t.Helper()
	dir, pins := t.TempDir(), "/sys/fs/bpf/heddle/"+meshName+"-thief"
	defer func() {
		if err := os.RemoveAll(pins); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	group, err := os.Open(thiefCgroup(t))
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	cmd := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/heddle-"+meshName+"-n1",
		filepath.Join(w.Binaries, "heddle-agent"), "--node", node, "--join-token-file", token, "--operator", w.Mesh.Plan.OperatorAddress(),
		"--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run"), "--keys-dir", filepath.Join(dir, "keys"),
		"--admin-socket", filepath.Join(dir, "agent.sock"), "--pin-dir", pins, "--cgroup", group.Name(), "--metrics", "")
	// An agent must be alone in its cgroup from its start.
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); !asExit(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the agent: %v, want exit status 1\n%s", err, out)
	}
	return string(out)
}

// thiefCgroup is beside those of the mesh's agents, and goes away with them.
func thiefCgroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if before, after, ok := strings.Cut(line, " - "); ok && strings.HasPrefix(after, "cgroup2 ") {
			path := filepath.Join(strings.Fields(before)[4], "heddle-"+meshName, "thief")
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	t.Fatal("no cgroup2")
	return ""
}

// lastGood damages the file that a node starts from while its agent is down,
// with and without an operator.
func (w *world) lastGood(t *testing.T) {
	const refused = "heddle_discovery_last_good_refused_total"
	path := filepath.Join(local.DefaultStateDir, meshName, "nodes", "n2", "state", "last-good")
	damage := func() {
		w.Kill(t, "n2")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 0x40
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		w.StartAgentAlone(t, "n2")
	}
	said := func() {
		w.logSays(t, "n2", "last good configuration is not used", path)
		if got := w.metric(t, "n2", refused); got != 1 {
			t.Errorf("%s is %v, want 1", refused, got)
		}
		if _, err := os.Stat(path + ".refused"); err != nil {
			t.Errorf("the file is not kept aside: %v", err)
		}
	}
	t.Run("operator runs", func(t *testing.T) {
		damage()
		w.healthy(t)
		said()
		w.served(t)
	})
	t.Run("refused while the agent is down", func(t *testing.T) {
		w.Kill(t, "n2")
		if c, err := w.Dial("plain/talker", server+":7001", 300*time.Millisecond); err == nil {
			c.Close()
			t.Error("plaintext reaches a STRICT pod whose agent is down")
		}
		w.StartAgentAlone(t, "n2")
		w.healthy(t)
		w.flowSays(t, "KernelPlaintextInbound", []string{server + ":7001"})
	})
	t.Run("operator is gone", func(t *testing.T) {
		if err := syscall.Kill(w.Mesh.Operator.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		damage()
		w.checkSays(t, "fail  n2", "configuration", "none yet", path)
		said()
		// Without a configuration the node's pods are closed; the others go on.
		if err := w.exchange("shop/client", server+":7000"); err == nil {
			t.Error("an agent without a configuration carries connections")
		}
		if err := w.exchange("plain/talker", server+":7000"); err == nil {
			t.Error("an agent without a configuration lets plaintext in")
		}
		if err := w.exchange("shop/client", "10.244.1.11:7000"); err != nil {
			t.Errorf("the other node does not go on: %v", err)
		}
		w.Restart(t)
		w.healthy(t)
		w.served(t)
	})
}

// flood opens more connections than one pod may have, as a pod of the mesh and
// as a client of the tunnel's port, while a neighbour on the same nodes is
// served.
func (w *world) flood(t *testing.T) {
	t.Run("of a pod", func(t *testing.T) {
		var open int
		w.counts(t, "n1", denials("outbound", "BudgetExceeded"), func() {
			for range 2 * budget {
				c, err := w.Dial("shop/flooder", busy+":7000", 5*time.Second)
				if err != nil {
					continue // reset at once
				}
				defer c.Close()
				if say(c) == nil {
					open++
				}
			}
			w.served(t)
		})
		if open == 0 || open > budget {
			t.Errorf("%d connections of a pod are carried, its budget is %d", open, budget)
		}
		w.flowHas(t, "BudgetExceeded", `"shop/flooder"`)
	})
	t.Run("of tunnel connections", func(t *testing.T) {
		w.counts(t, "n2", denials("inbound", "BudgetExceeded"), func() {
			for range 2 * budget {
				// Silent ones: each waits for a handshake.
				c, err := w.Dial("plain/talker", busy+":15008", 5*time.Second)
				if err != nil {
					continue // reset at once
				}
				defer c.Close()
			}
			w.served(t)
		})
		w.flowHas(t, "BudgetExceeded", "10.244.1.90", `"shop/busy"`)
	})
	testenv.Eventually(t, 20*time.Second, "the pod is served after the flood", func() bool {
		return w.exchange("shop/flooder", busy+":7000") == nil
	})
}
