package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/world"
	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestOptions(t *testing.T) {
	full, err := options(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(full.subjects, world.Subjects()) || full.repeats != 5 || len(full.metrics) != 10 {
		t.Errorf("without flags: %+v", full)
	}
	if full.repeatsOf("lat") != 9 || full.repeatsOf("rps") != 5 {
		t.Errorf("lat is measured %d times and rps %d, want 9 and 5", full.repeatsOf("lat"), full.repeatsOf("rps"))
	}
	if two, err := options([]string{"-repeats", "2", "-metrics", "lat"}); err != nil || two.repeatsOf("lat") != 2 || two.repeatsOf("rps") != 0 {
		t.Errorf("two repeats of lat: %+v, %v", two, err)
	}
	quick, err := options([]string{"-quick", "-subjects", "envoy"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(quick.subjects, []string{"envoy"}) || quick.repeats != 3 || strings.Join(quick.metrics, ",") != quickMetrics {
		t.Errorf("quick: %+v", quick)
	}
	other, err := options([]string{"-congestion", "cubic"})
	if err != nil {
		t.Fatal(err)
	}
	if document, figures := fileNames(other.congestion); document != "benchmarks-cubic.md" || figures != "bench-cubic.json" {
		t.Errorf("another congestion control is written to %s and %s", document, figures)
	}
	if strings.Join(other.metrics, ",") != quickMetrics || other.repeats != 5 || other.wentBy() != "cubic" || full.wentBy() == "cubic" {
		t.Errorf("another congestion control: %+v", other)
	}
	for _, args := range [][]string{{"-subjects", "linkerd"}, {"-metrics", "rps,joy"}, {"-repeats", "x"}} {
		if _, err := options(args); err == nil {
			t.Errorf("%q were taken", args)
		}
	}
}

// programs builds the programs and this one, and returns a command that runs it
// with meshes of the given name.
func programs(t *testing.T, mesh string, args ...string) *exec.Cmd {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	self := filepath.Join(dir, "bench")
	testenv.Build(t, ".", self, ".")
	binaries := filepath.Join(dir, "bin")
	if err := os.Mkdir(binaries, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := testbed.Build("../..", binaries); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, append([]string{"-root", "../..", "-bin", binaries, "-name", mesh}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// nothingLeft looks for what a run should have taken away.
func nothingLeft(t *testing.T, mesh string) {
	t.Helper()
	for _, pattern := range []string{"/run/netns/heddle-" + mesh + "*", "/run/heddle/local/" + mesh + "*", "/sys/fs/bpf/heddle/" + mesh + "*"} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

// TestSmoke measures every subject for an instant, and looks that each answered.
func TestSmoke(t *testing.T) {
	const mesh = "benchsmoke"
	out, err := programs(t, mesh, "-metrics", "rps", "-repeats", "1", "-duration", "1s").CombinedOutput()
	if err != nil {
		t.Fatalf("bench: %v: %s", err, out)
	}
	if n := strings.Count(string(out), " rps "); n != len(world.Subjects()) {
		t.Errorf("%d subjects were measured, want %d", n, len(world.Subjects()))
	}
	for _, wrong := range []string{"failed", "errors)", "ERRORS"} {
		if strings.Contains(string(out), wrong) {
			t.Errorf("it said %q", wrong)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
	nothingLeft(t, mesh)
}

// TestInterrupted has the program end in the middle of a load.
func TestInterrupted(t *testing.T) {
	const mesh = "benchcut"
	cmd := programs(t, mesh, "-metrics", "rps", "-subjects", "none,envoy", "-duration", "30s")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, "both worlds are there", func() bool {
		_, noneErr := os.Stat("/run/netns/heddle-" + mesh + "-none-s9")
		_, envoyErr := os.Stat("/run/netns/heddle-" + mesh + "-envoy-s9")
		return noneErr == nil && envoyErr == nil
	})
	time.Sleep(3 * time.Second) // somewhere between setting up and the first load
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("an interrupted run is no success")
	}
	nothingLeft(t, mesh)
}

func TestOneRunAtATime(t *testing.T) {
	const mesh = "benchlock"
	unlock, err := lock(mesh)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(mesh); err == nil || !strings.Contains(err.Error(), "-name") {
		t.Errorf("a second run: %v", err)
	}
	unlock()
	again, err := lock(mesh)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
