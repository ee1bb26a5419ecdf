package measure

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/world"
	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// up sets a world of Heddle's up, with the programs of this checkout.
func up(t *testing.T) *world.World {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	self, binaries := filepath.Join(dir, "bench"), filepath.Join(dir, "bin")
	testenv.Build(t, ".", self, "..")
	if err := errors.Join(os.Mkdir(binaries, 0o755), testbed.Build("../../..", binaries)); err != nil {
		t.Fatal(err)
	}
	w, err := world.Up(t.Context(), world.Config{Name: "benchcrowd", Subject: "heddle", Root: "../../..", Binaries: binaries, Scratch: dir, Self: self})
	t.Cleanup(func() {
		if err := w.Down(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// sizes are as small as they can be.
func sizes() Sizes {
	return Sizes{Duration: time.Second, RateDuration: time.Second, Rate: 200, Held: []int{holders, 3 * holders}, Settle: 100 * time.Millisecond}
}

// taken are samples by their metric. None may have an error.
func taken(t *testing.T, samples []Sample, err error, want ...string) map[string]float64 {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	var names []string
	for _, s := range samples {
		values[s.Metric] = s.Value
		names = append(names, s.Metric)
		if s.Errors > 0 {
			t.Errorf("%s has %d errors", s.Metric, s.Errors)
		}
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		t.Fatalf("measured %q, want %q", names, want)
	}
	return values
}

// TestCrowd takes the measurements of many pods, of noise and of memory for an
// instant, and looks that each has seen what it is about.
func TestCrowd(t *testing.T) {
	w := up(t)
	t.Run("pods", func(t *testing.T) {
		samples, err := manyPods(t.Context(), w, sizes())
		if v := taken(t, samples, err, "pods_rps"); v["pods_rps"] < world.Clients {
			t.Errorf("%v", v)
		}
	})
	for metric, run := range map[string]func(context.Context, *world.World, Sizes) ([]Sample, error){"noise": noise, "some_noise": boundedNoise} {
		t.Run(metric, func(t *testing.T) {
			samples, err := run(t.Context(), w, sizes())
			v := taken(t, samples, err, metric, metric+"_p99")
			if v[metric] <= 0 || v[metric+"_p99"] <= 0 {
				t.Errorf("%v", v)
			}
		})
	}
	t.Run("silent neighbour", func(t *testing.T) { silentNeighbour(t, w) })
	t.Run("memory", func(t *testing.T) {
		before := w.Proxies()
		samples, err := memory(t.Context(), w, sizes())
		v := taken(t, samples, err, "rss_idle", "rss_idle_both", "rss_8", "rss_24", "conn_kib_out", "conn_kib_in")
		if v["rss_idle"] < 5 || v["rss_idle_both"] < v["rss_idle"]+5 || v["rss_24"] > 1000 {
			t.Errorf("megabytes: %v", v)
		}
		for i, p := range w.Proxies() {
			if p.PID == before[i].PID {
				t.Errorf("the proxy of %s is not a fresh one", p.Node)
			}
		}
	})
	t.Run("memory of a proxy that is gone", func(t *testing.T) {
		if err := syscall.Kill(w.Proxies()[0].PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 5*time.Second, "it is missed", func() bool { _, err := resident(w); return err != nil })
	})
}

// silentNeighbour: without its load the loud neighbour is no neighbour, and what was
// measured beside it is nothing.
func silentNeighbour(t *testing.T, w *world.World) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "iperf3"), []byte("#!/bin/sh\necho '{\"error\": \"out of order\"}'\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if _, err := noise(t.Context(), w, sizes()); err == nil || !strings.Contains(err.Error(), "silent") || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("got %v", err)
	}
}

// TestMemoryOfNothing: there is nothing to measure without a proxy.
func TestMemoryOfNothing(t *testing.T) {
	if samples, err := memory(t.Context(), &world.World{Subject: "none"}, sizes()); samples != nil || err != nil {
		t.Errorf("%v, %v", samples, err)
	}
}
