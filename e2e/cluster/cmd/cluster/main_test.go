package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestMain is the command itself, too, when a test runs it.
func TestMain(m *testing.M) {
	if os.Getenv("CLUSTER_TEST_RUNS_COMMAND") != "" {
		main()
	}
	testenv.Main(m)
}

// invoke runs the command and returns its exit code and all that it prints.
func invoke(t *testing.T, args ...string) (int, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), self, args...)
	command.Env = append(os.Environ(), "CLUSTER_TEST_RUNS_COMMAND=1")
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	err = command.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), out.String()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, out.String()
}

func TestExitCodesAndRemedies(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"--help", 0, "node reboot n1"},
		{"up --help", 0, "--service-range"},
		{"down --name gone --dir " + dir, 0, "there is no cluster gone"},
		{"down --all --dir " + dir, 0, ""},
		{"status --name gone --dir " + dir, exitFailed, "cluster up --name gone"},
		{"status -o yaml --dir " + dir, exitUsage, "use text or json"},
		{"kubeconfig --dir " + dir, exitFailed, "there is no such cluster"},
		{"exec n1 --dir " + dir, exitUsage, "cluster exec --help"},
		{"exec n1 --dir " + dir + " -- true", exitFailed, "there is no such cluster"},
		{"node reboot --dir " + dir, exitUsage, "cluster node reboot --help"},
		{"load-image", exitUsage, "load-image --help"},
		{"up --no-such-flag", exitUsage, "no-such-flag"},
		{"up --pod-range 10.0.0.0 --dir " + dir, exitUsage, "--pod-range"},
		{"up --workers 1000 --dir " + dir, exitUsage, "1000 workers"},
		{"up --name Bad_Name --dir " + dir, exitUsage, "cluster name"},
		{"up --root " + dir, exitFailed, "not in a checkout"},
	} {
		code, out := invoke(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("cluster %s: exit code %d, want %d, and %q in: %s", c.args, code, c.code, c.says, out)
		}
	}
}
