package soak

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The quantities that must not grow.
const (
	rss        = iota // bytes
	files             // descriptors
	goroutines        // of the Go runtime
	heap              // bytes at which the collector begins: about twice what is live
	quantities
)

// sample is one look at a process.
type sample struct {
	at    time.Duration // since the traffic began
	pid   int
	value [quantities]float64
}

// bound says how much a quantity's highest value of the last third may be above
// that of the middle third. The first third is for warming up.
type bound struct {
	name   string
	unit   float64
	factor float64
	more   float64 // in units, added to the factor's share
	hourly float64 // in units: what it may grow in an hour, after warming up
}

// steadyRun is from when a slope says something: in less, the least squares of
// what goes up and down come to as much as a leak.
const steadyRun = 10 * time.Minute

// bounds are tight for long runs; a short one is still warming up: buffers are
// made, and the collector has not found its pace.
func bounds(long bool) [quantities]bound {
	b := [quantities]bound{
		rss:        {"RSS MiB", 1 << 20, 1.10, 3, 30},
		files:      {"fds", 1, 1.10, 12, 100},
		goroutines: {"goroutines", 1, 1.10, 20, 40},
		heap:       {"heap goal MiB", 1 << 20, 1.15, 3, 30},
	}
	if !long {
		b[rss].factor, b[rss].more = 1.25, 12
		b[heap].factor, b[heap].more = 1.25, 12
		b[files].more, b[goroutines].more = 30, 60
	}
	return b
}

// thirds are the highest values of each third of a run.
func thirds(samples []sample, q int) (highest [3]float64) {
	for i, s := range samples {
		third := min(i*3/len(samples), 2)
		highest[third] = max(highest[third], s.value[q])
	}
	return highest
}

// slope is the growth per hour of the samples after warming up, by least squares.
func slope(samples []sample, q int) float64 {
	samples = samples[len(samples)/3:]
	var n, x, y, xx, xy float64
	for _, s := range samples {
		hours := s.at.Hours()
		n, x, y, xx, xy = n+1, x+hours, y+s.value[q], xx+hours*hours, xy+hours*s.value[q]
	}
	if d := n*xx - x*x; d != 0 {
		return (n*xy - x*y) / d
	}
	return 0
}

// one reports whether all samples are of one process. The sawtooth of several that follow each other has a slope by
// where it is cut off; what each leaves to the next is seen in the thirds.
func one(samples []sample) bool {
	return !slices.ContainsFunc(samples, func(s sample) bool { return s.pid != samples[0].pid })
}

// judge says what grew beyond its bound, and a table of everything.
func judge(runs map[string][]sample, order []string, long bool) (table string, err error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-12s %-14s %10s %10s %10s %12s %8s\n", "process", "quantity", "1st third", "2nd", "3rd", "per hour", "samples")
	for _, name := range order {
		samples := runs[name]
		if len(samples) < 9 {
			err = errors.Join(err, fmt.Errorf("%s: %d samples say nothing", name, len(samples)))
			continue
		}
		steady := samples[len(samples)-1].at-samples[0].at >= steadyRun-steadyRun/10 && one(samples)
		for q, limit := range bounds(long) {
			h, hourly := thirds(samples, q), slope(samples, q)/limit.unit
			fmt.Fprintf(&b, "%-12s %-14s %10.1f %10.1f %10.1f %+12.1f %8d\n", name, limit.name,
				h[0]/limit.unit, h[1]/limit.unit, h[2]/limit.unit, hourly, len(samples))
			if most := h[1]*limit.factor + limit.more*limit.unit; h[2] > most {
				err = errors.Join(err, fmt.Errorf("%s: %s grew from %.1f to %.1f, beyond %.1f", name, limit.name, h[1]/limit.unit, h[2]/limit.unit, most/limit.unit))
			}
			if steady && hourly > limit.hourly {
				err = errors.Join(err, fmt.Errorf("%s: %s grew by %.1f an hour, beyond %.1f", name, limit.name, hourly, limit.hourly))
			}
		}
	}
	return b.String(), err
}

// look reads a process's RSS and descriptors from the kernel, and its
// goroutines and heap from its metrics, by a client that reaches them; nil leaves
// them out.
func look(pid int, client *http.Client, metrics string) (s sample, err error) {
	s.pid = pid
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				return s, err
			}
			s.value[rss] = kib * 1024
		}
	}
	list, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		return s, err
	}
	s.value[files] = float64(len(list))
	if client == nil {
		return s, nil
	}
	if s.value[goroutines], err = metric(client, metrics, "go_goroutines"); err != nil {
		return s, err
	}
	s.value[heap], err = metric(client, metrics, "go_memstats_next_gc_bytes")
	return s, err
}

// metric reads one value of a Prometheus endpoint.
func metric(client *http.Client, url, name string) (float64, error) {
	answer, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("no %s at %s", name, url)
}
