// Package measure takes the measurements: each runs its load in one world and
// returns what it saw, with what went wrong counted beside it. It starts and
// judges nothing else. Measurements run one at a time.
package measure

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/load"
	"github.com/heddle-mesh/heddle/e2e/bench/machine"
	"github.com/heddle-mesh/heddle/e2e/bench/world"
)

// Sample is one value of one metric.
type Sample struct {
	Metric string
	Value  float64
	// Errors counts what failed while it was taken.
	Errors int
}

// Sizes say how long and how much.
type Sizes struct {
	// Duration is of each load but Rate's, whose tail needs more.
	Duration, RateDuration time.Duration
	// Rate is in requests per second.
	Rate int
	// Held are the numbers of idle connections, ascending.
	Held []int
	// Settle is how long memory is left to come to rest before it is looked at.
	Settle time.Duration
}

// Test is a measurement by its name.
type Test struct {
	Name string
	// Metric is the first one that it measures.
	Metric string
	// Title says what it does, for the progress.
	Title string
	// Run returns what it could measure also with an error.
	Run func(ctx context.Context, w *world.World, s Sizes) ([]Sample, error)
	// Brief ones take seconds: a moment without the cores spoils them.
	Brief bool
}

// Tests are all measurements, in the order in which they are taken.
func Tests() []Test {
	return []Test{
		{"rps", "rps", "requests on 32 kept-alive connections", requests, true},
		{"bulk1", "bulk1", "one bulk stream", bulk(1), true},
		{"bulk8", "bulk8", "eight bulk streams", bulk(8), true},
		{"conn", "conn", "a request per connection, 16 at a time", connections, true},
		{"lat", "p50", "latency at a fixed rate", latency, true},
		{"pods", "pods_rps", "requests from 20 pods to 5", manyPods, true},
		{"noise", "noise", "a quiet pod beside a loud one", noise, true},
		{"some_noise", "some_noise", "a quiet pod beside one that leaves the machine room", boundedNoise, true},
		{"wan", "wan0_1", "throughput over 50 ms, without and with loss", farAway, false},
		{"rss", "rss_idle", "memory, idle and with idle connections", memory, false},
	}
}

// cpu is the CPU time that a world's proxies have used, user and system.
func cpu(w *world.World) (sum time.Duration, err error) {
	for _, p := range w.Proxies() {
		used, err := machine.CPU(p.PID)
		if err != nil {
			return 0, fmt.Errorf("the proxy of %s is gone: %w", p.Node, err)
		}
		sum += used
	}
	return sum, nil
}

// output runs a command and returns its output; its error has what it complained
// of.
func output(cmd *exec.Cmd) (string, error) {
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		said := out.String() + complaint.String()
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args[5:], " "), err, strings.TrimSpace(said[max(0, len(said)-500):]))
	}
	return out.String(), nil
}

func seconds(d time.Duration) string { return fmt.Sprint(max(1, int(d.Seconds()+0.5))) }

// wrkResult is what wrk(1) printed.
type wrkResult struct {
	requests  float64
	perSecond float64
	errors    int
}

func wrk(ctx context.Context, w *world.World, pod string, server, connections int, d time.Duration, more ...string) (wrkResult, error) {
	args := append([]string{"wrk", "-t", "1", "-c", fmt.Sprint(connections), "-d", seconds(d), "--timeout", "5s"}, more...)
	out, err := output(w.Command(ctx, pod, append(args, "http://"+world.Address(server)+"/")...))
	if err != nil {
		return wrkResult{}, err
	}
	return parseWrk(out)
}

func parseWrk(out string) (wrkResult, error) {
	find := func(pattern string) ([]string, bool) {
		found := regexp.MustCompile(pattern).FindStringSubmatch(out)
		return found, found != nil
	}
	var r wrkResult
	var err error
	total, ok := find(`(?m)^\s*(\d+) requests in `)
	rate, okRate := find(`(?m)^Requests/sec:\s+([0-9.]+)`)
	if !ok || !okRate {
		return r, fmt.Errorf("wrk said what cannot be understood: %s", out)
	}
	if r.requests, err = strconv.ParseFloat(total[1], 64); err != nil {
		return r, err
	}
	if r.perSecond, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return r, err
	}
	failed, _ := find(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
	refused, _ := find(`Non-2xx or 3xx responses: (\d+)`)
	for _, group := range [][]string{failed, refused} {
		for i := 1; i < len(group); i++ {
			n, err := strconv.Atoi(group[i])
			if err != nil {
				return r, err
			}
			r.errors += n
		}
	}
	if r.requests == 0 {
		r.errors++
	}
	return r, nil
}

func requests(ctx context.Context, w *world.World, s Sizes) ([]Sample, error) {
	return wrkWithCPU(ctx, w, s, "rps", "cpu_request", 32)
}

// connections has every request on a connection of its own.
func connections(ctx context.Context, w *world.World, s Sizes) ([]Sample, error) {
	return wrkWithCPU(ctx, w, s, "conn", "cpu_conn", 16, "-H", "Connection: close")
}

func wrkWithCPU(ctx context.Context, w *world.World, s Sizes, metric, cpuMetric string, connections int, more ...string) ([]Sample, error) {
	before, err := cpu(w)
	if err != nil {
		return nil, err
	}
	r, err := wrk(ctx, w, world.Client(0), 0, connections, s.Duration, more...)
	if err != nil {
		return nil, err
	}
	samples := []Sample{{metric, r.perSecond, r.errors}}
	after, err := cpu(w)
	if err != nil || len(w.Proxies()) == 0 || r.requests == 0 {
		return samples, err
	}
	return append(samples, Sample{cpuMetric, float64((after - before).Microseconds()) / r.requests, r.errors}), nil
}

// iperfReport is what is read of iperf3's JSON.
type iperfReport struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Bytes         float64 `json:"bytes"`
			BitsPerSecond float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	} `json:"end"`
}

// serverFree is how long iperf3's server may take to be done with the run before.
const serverFree = 10 * time.Second

func iperf(ctx context.Context, w *world.World, pod string, streams int, d time.Duration, more ...string) (iperfReport, error) {
	var r iperfReport
	args := append([]string{"iperf3", "-c", world.Address(world.Bulk)[:strings.IndexByte(world.Address(world.Bulk), ':')], "-p", fmt.Sprint(world.Port),
		"-t", seconds(d), "-P", fmt.Sprint(streams), "-J"}, more...)
	// The server is busy for a moment after the run before, and then says so or resets
	// the connection, whichever arrives first.
	for began, again := time.Now(), true; again; {
		attempt := time.Now()
		r = iperfReport{}
		out, err := output(w.Command(ctx, pod, args...))
		if jsonErr := json.Unmarshal([]byte(out), &r); jsonErr != nil {
			return r, errors.Join(err, jsonErr)
		}
		busy := strings.Contains(r.Error, "busy") || strings.Contains(r.Error, "reset by peer") && time.Since(attempt) < time.Second
		if again = busy && time.Since(began) < serverFree; again {
			time.Sleep(100 * time.Millisecond)
		}
	}
	if r.Error != "" {
		return r, fmt.Errorf("iperf3: %s", r.Error)
	}
	return r, nil
}

func bulk(streams int) func(context.Context, *world.World, Sizes) ([]Sample, error) {
	return func(ctx context.Context, w *world.World, s Sizes) ([]Sample, error) {
		before, err := cpu(w)
		if err != nil {
			return nil, err
		}
		r, err := iperf(ctx, w, world.Client(0), streams, s.Duration)
		if err != nil {
			return nil, err
		}
		samples := []Sample{{fmt.Sprintf("bulk%d", streams), r.End.Received.BitsPerSecond / 1e9, 0}}
		after, err := cpu(w)
		if err != nil || len(w.Proxies()) == 0 || r.End.Received.Bytes == 0 {
			return samples, err
		}
		return append(samples, Sample{fmt.Sprintf("cpu_gb%d", streams), (after - before).Seconds() / (r.End.Received.Bytes / 1e9), 0}), nil
	}
}

func rate(ctx context.Context, w *world.World, perSecond int, d time.Duration) (load.Timed, error) {
	var timed load.Timed
	out, err := output(w.Load(ctx, world.Client(0), "rate", "-address", world.Address(0), "-rate", fmt.Sprint(perSecond), "-duration", d.String()))
	if err != nil {
		return timed, err
	}
	return timed, json.Unmarshal([]byte(out), &timed)
}

func latency(ctx context.Context, w *world.World, s Sizes) ([]Sample, error) {
	timed, err := rate(ctx, w, s.Rate, s.RateDuration)
	if err != nil {
		return nil, err
	}
	return []Sample{{"p50", timed.P50, timed.Errors}, {"p99", timed.P99, timed.Errors}}, nil
}
