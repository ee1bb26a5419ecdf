package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/result"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestOptions(t *testing.T) {
	full, err := options(nil)
	if err != nil || full.repeats != 5 || full.held != 8000 || full.duration != 3*time.Second || len(full.tests) != len(measurements()) || full.within > 12*time.Minute {
		t.Errorf("without flags: %+v, %v", full, err)
	}
	quick, err := options([]string{"-quick", "-tests", "h1,lat", "-held", "7"})
	if err != nil || quick.repeats != 2 || quick.held != 7 || quick.duration != time.Second || !slices.Equal(quick.tests, []string{"h1", "lat"}) {
		t.Errorf("quick: %+v, %v", quick, err)
	}
	if _, err := options([]string{"-tests", "h1,joy"}); err == nil || !strings.Contains(err.Error(), "joy") {
		t.Errorf("a test that is not there: %v", err)
	}
}

// TestParse is of what the generators print, as it was printed.
func TestParse(t *testing.T) {
	wrk := "Running 1s test @ http://127.0.0.1:1/\n  1 threads and 32 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   603.40us  335.52us   9.79ms   93.75%\n" +
		"    Req/Sec    53.95k     3.10k   58.17k    80.00%\n  53687 requests in 1.00s, 11.47MB read\n"
	for more, want := range map[string]int{"": 0, "  Non-2xx or 3xx responses: 12\n": 12, "  Socket errors: connect 1, read 2, write 3, timeout 4\n": 10} {
		r, err := parseWrk(wrk + more + "Requests/sec:  53601.05\nTransfer/sec:     11.45MB\n")
		if err != nil || r != (outcome{53601.05, 53687, want}) {
			t.Errorf("wrk, %q: %+v, %v", more, r, err)
		}
	}
	h2load := "finished in 1.00s, 31231.00 req/s, 3.63MB/s\nrequests: 31311 total, 31311 started, 31231 done, 31231 succeeded, FAILED failed, 0 errored, 0 timeout\n" +
		"status codes: OK 2xx, 0 3xx, 0 4xx, 0 5xx\ntraffic: 3.63MB (3810358) total, 701.96KB (718811) headers (space savings 82.03%), 1.91MB (1998784) data\n"
	for _, c := range []struct {
		failed, ok string
		want       int
	}{{"0", "31231", 0}, {"5", "31231", 5}, {"0", "31230", 1}} {
		r, err := parseH2load(strings.NewReplacer("FAILED", c.failed, "OK", c.ok).Replace(h2load))
		if err != nil || r != (outcome{31231, 31231, c.want}) {
			t.Errorf("h2load, %s failed and %s good: %+v, %v", c.failed, c.ok, r, err)
		}
	}
	for _, none := range []string{"", "finished in 1.00s, 0.00 req/s, 0B/s\n", strings.ReplaceAll(h2load, "req/s", "cats")} {
		if _, err := parseWrk(none); err == nil {
			t.Errorf("wrk: %q was understood", none)
		}
		if _, err := parseH2load(none); err == nil {
			t.Errorf("h2load: %q was understood", none)
		}
	}
}

func TestPercentile99(t *testing.T) {
	var log strings.Builder
	for i := range 200 {
		fmt.Fprintf(&log, "1700000000000000\t200\t%d\n", 200-i)
	}
	log.WriteString("1700000000000000\t-1\t900000\n") // no answer
	if got, err := percentile99(strings.NewReader(log.String())); err != nil || got != 199 {
		t.Errorf("of 1 to 200 it is %v, %v, want 199", got, err)
	}
	for _, bad := range []string{"", "1\t200\n", "1\t200\tsoon\n", "1\t503\t7\n"} {
		if got, err := percentile99(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}

func TestTimely(t *testing.T) {
	log := "1\t200\t50000\n1\t503\t9\n1\t200\t1000001\n1\t200\t1000000\n1\t-1\t7\n1\t502\t7\n"
	if good, failed, err := timely(strings.NewReader(log)); good != 2 || failed != 2 || err != nil {
		t.Errorf("%d in time, %d failed, %v, want 2 and 2", good, failed, err)
	}
	for _, bad := range []string{"1\t200\n", "1\t200\tsoon\n"} {
		if good, _, err := timely(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is read as %d", bad, good)
		}
	}
}

// TestMetrics: what is measured has a place in the document, by its name.
func TestMetrics(t *testing.T) {
	var known []string
	for _, m := range result.WaypointMetrics() {
		known = append(known, m.ID)
	}
	for _, m := range measurements() {
		if !slices.Contains(known, m.metric) {
			t.Errorf("%s measures %s, which nobody knows", m.name, m.metric)
		}
	}
}

// program builds this program and the one that it measures, and returns a command that runs it.
func program(t *testing.T, folder string, args ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	self := filepath.Join(dir, "bench-waypoint")
	testenv.Build(t, ".", self, ".")
	testenv.Build(t, "../../..", filepath.Join(dir, "heddle-waypoint"), "./cmd/heddle-waypoint")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, append([]string{"-root", "../../..", "-bin", dir}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+folder)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// nothingLeft looks for what a run should have taken away: its folder, and processes that were started with it.
func nothingLeft(t *testing.T, folder string) {
	t.Helper()
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if text, err := os.ReadFile(line); err == nil && strings.Contains(string(text), folder) {
			t.Errorf("%s is still there: %q", line, text)
		}
	}
}

// TestSmoke measures all for an instant, and looks that each of both answered.
func TestSmoke(t *testing.T) {
	folder := t.TempDir()
	out, err := program(t, folder, "-quick", "-repeats", "1", "-held", "200", "-docs", t.TempDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("bench-waypoint: %v: %s", err, out)
	}
	for _, wrong := range []string{"failed", "errors)", "ERRORS"} {
		if strings.Contains(string(out), wrong) {
			t.Errorf("it said %q", wrong)
		}
	}
	for _, m := range result.WaypointMetrics() {
		if n := strings.Count(string(out), " "+m.ID+" "); n != 2 {
			t.Errorf("%s was measured %d times, want 2", m.ID, n)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
	nothingLeft(t, folder)
}

// TestInterrupted has the program end in the middle of a load.
func TestInterrupted(t *testing.T) {
	folder := t.TempDir()
	cmd := program(t, folder, "-tests", "h1", "-duration", "60s")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "both proxies have started", func() bool {
		logs, _ := filepath.Glob(folder + "/*/envoy/access.log")
		return len(logs) == 1
	})
	time.Sleep(time.Second) // somewhere between checking and the first load
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("an interrupted run is no success")
	}
	nothingLeft(t, folder)
}
