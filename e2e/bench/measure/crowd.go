package measure

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/load"
	"github.com/heddle-mesh/heddle/e2e/bench/machine"
	"github.com/heddle-mesh/heddle/e2e/bench/world"
)

// manyPods has all clients' pods ask the web servers at once.
func manyPods(ctx context.Context, w *world.World, s Sizes) ([]Sample, error) {
	var mu sync.Mutex
	sum := Sample{Metric: "pods_rps"}
	var errs []error
	var group sync.WaitGroup
	for i := range world.Clients {
		group.Go(func() {
			r, err := wrk(ctx, w, world.Client(i), i%world.WebServers, 4, s.Duration)
			mu.Lock()
			defer mu.Unlock()
			sum.Value += r.perSecond
			sum.Errors += r.errors
			errs = append(errs, err)
		})
	}
	group.Wait()
	return []Sample{sum}, errors.Join(errs...)
}

// quietRate is what the quiet pod asks for: little, so that what it waits for is
// others.
const quietRate = 400

// errEarly is of a load that ended without an error, and too soon.
var errEarly = errors.New("it ended by itself")

// noise compares a quiet pod's p99 without and with a loud neighbour on its
// node, which floods other servers with bulk and with connections: with all that it can.
func noise(ctx context.Context, w *world.World, s Sizes) ([]Sample, error) {
	return beside(ctx, w, s, "noise",
		func(ctx context.Context, long time.Duration) error {
			_, err := iperf(ctx, w, world.Client(1), 4, long)
			return err
		},
		func(ctx context.Context, long time.Duration) error {
			_, err := wrk(ctx, w, world.Client(1), 1, 16, long, "-H", "Connection: close")
			return err
		})
}

// boundedNoise has a neighbour that leaves the machine room: 2 Gbit/s of bulk, and some 450 connections/s. What it does to the
// quiet pod is its subject's doing more than the scheduler's.
func boundedNoise(ctx context.Context, w *world.World, s Sizes) ([]Sample, error) {
	script, err := w.File("delay.lua", "function delay() return 33 end\n") // ms of each of wrk's connections before its request
	if err != nil {
		return nil, err
	}
	return beside(ctx, w, s, "some_noise",
		func(ctx context.Context, long time.Duration) error {
			_, err := iperf(ctx, w, world.Client(1), 4, long, "-b", "500M") // of each stream
			return err
		},
		func(ctx context.Context, long time.Duration) error {
			_, err := wrk(ctx, w, world.Client(1), 1, 16, long, "-H", "Connection: close", "-s", script)
			return err
		})
}

// beside compares a quiet pod's p99 with and without loads beside it, which go on until they are cut short.
func beside(ctx context.Context, w *world.World, s Sizes, metric string, loads ...func(context.Context, time.Duration) error) ([]Sample, error) {
	quiet, err := rate(ctx, w, quietRate, s.RateDuration)
	if err != nil {
		return nil, err
	}
	loudCtx, hush := context.WithCancel(ctx)
	var group sync.WaitGroup
	early := make([]error, len(loads)) // of a load that ended before it was cut short, as it always is
	for i, load := range loads {
		group.Go(func() {
			if err := load(loudCtx, s.RateDuration+time.Minute); loudCtx.Err() == nil {
				early[i] = fmt.Errorf("the loud neighbour has fallen silent: %w", cmp.Or(err, errEarly))
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	noisy, err := rate(ctx, w, quietRate, s.RateDuration)
	hush()
	group.Wait()
	if err = errors.Join(err, errors.Join(early...)); err != nil {
		return nil, err
	}
	failed := quiet.Errors + noisy.Errors
	return []Sample{{metric, noisy.P99 / quiet.P99, failed}, {metric + "_p99", noisy.P99, failed}}, nil
}

// DefaultSettle is long enough for Heddle, which gives back what it does not need
// after three quiet seconds.
const DefaultSettle = 7 * time.Second

// memory measures fresh proxies: idle, and with more and more idle connections
// from eight pods to one.
func memory(ctx context.Context, w *world.World, s Sizes) ([]Sample, error) {
	if len(w.Proxies()) == 0 {
		return nil, nil
	}
	if err := w.RestartProxies(ctx); err != nil {
		return nil, err
	}
	time.Sleep(s.Settle)
	idle, err := resident(w)
	if err != nil {
		return nil, err
	}
	// The second node has ten pods.
	samples := []Sample{{"rss_idle", mb(idle[1]), 0}, {"rss_idle_both", mb(idle[0] + idle[1]), 0}}
	var held []*holder
	defer func() {
		for _, h := range held {
			h.release()
		}
	}()
	open, failed := 0, 0
	var perConnection []Sample // of the last, largest count
	for _, count := range s.Held {
		for i := range holders {
			h, err := hold(ctx, w, world.Client(i), (count-open)/holders)
			if err != nil {
				return nil, err
			}
			held = append(held, h)
			failed += h.held.Errors
		}
		open = count
		time.Sleep(s.Settle)
		now, err := resident(w)
		if err != nil {
			return nil, err
		}
		samples = append(samples, Sample{fmt.Sprintf("rss_%d", count), mb(now[0] + now[1]), failed})
		perConnection = []Sample{
			{"conn_kib_out", float64(now[0]-idle[0]) / 1024 / float64(count), failed},
			{"conn_kib_in", float64(now[1]-idle[1]) / 1024 / float64(count), failed},
		}
	}
	return append(samples, perConnection...), nil
}

func mb(bytes int) float64 { return float64(bytes) / 1e6 }

// holders is how many pods hold connections.
const holders = 8

// resident is the memory of each proxy in bytes (VmRSS of proc(5)).
func resident(w *world.World) ([]int, error) {
	var sizes []int
	for _, p := range w.Proxies() {
		size, err := machine.Resident(p.PID)
		if err != nil {
			return nil, fmt.Errorf("the proxy of %s: %w", p.Node, err)
		}
		sizes = append(sizes, size)
	}
	return sizes, nil
}

// holder is a process that holds connections.
type holder struct {
	held   load.Held
	stdin  io.Closer
	cmd    *exec.Cmd
	cancel context.CancelFunc
}

func hold(ctx context.Context, w *world.World, pod string, count int) (*holder, error) {
	ctx, cancel := context.WithCancel(ctx)
	h := &holder{cancel: cancel}
	h.cmd = w.Load(ctx, pod, "hold", "-address", world.Address(world.Holder), "-connections", fmt.Sprint(count))
	stdin, err := h.cmd.StdinPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	h.stdin = stdin
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	if err := h.cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &h.held)
	}
	if err != nil {
		h.release()
		return nil, fmt.Errorf("hold connections from %s: %w", pod, err)
	}
	return h, nil
}

func (h *holder) release() {
	_ = h.stdin.Close() // its end is what it waits for
	defer h.cancel()
	_ = h.cmd.Wait() // what it had to say, it has said
}
