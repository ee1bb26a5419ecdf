package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/load"
	"github.com/heddle-mesh/heddle/e2e/bench/machine"
)

// sample is one value of one metric, with what failed while it was taken.
type sample struct {
	metric string
	value  float64
	errors int
}

// measurement runs its load through a proxy, and returns what it saw.
type measurement struct {
	name, title string
	metric      string // the first one that it measures
	run         func(ctx context.Context, b *bench, p *proxy, d time.Duration) ([]sample, error)
}

// measurements are all of them, in the order in which they are taken.
func measurements() []measurement {
	return []measurement{
		{"h1", "requests of HTTP/1.1 on 32 kept-alive connections", "way_h1", plain},
		{"h2", "requests of HTTP/2 on 8 connections", "way_h2", two("way_h2", "/two/")},
		{"grpc", "calls of gRPC on 8 connections", "way_grpc", calls},
		{"down", "requests of HTTP/2 to a workload of HTTP/1.1", "way_down", two("way_down", "/")},
		{"lat", "latency at half of the slower one's requests", "way_p99", latency},
		{"own", "latency at half of its own requests", "way_own_p99", ownLatency},
		{"grpclat", "latency of gRPC at half of the slower one's calls", "way_grpc_p99", callLatency},
		{"grpcown", "latency of gRPC at half of its own calls", "way_grpc_own_p99", ownCallLatency},
		{"over", "goodput of as much as it has room for, and more", "way_good_h1_1", overload},
		{"route", "a change of a route", "way_route", change},
		{"rss", "memory, fresh and with idle connections", "way_rss", memory},
	}
}

// output runs a command that ends within a bound, and returns its output; its error has what it complained of.
func output(ctx context.Context, within time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		said := out.String() + complaint.String()
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(name), err, strings.TrimSpace(said[max(0, len(said)-500):]))
	}
	return out.String(), nil
}

// grace is what a load may take beside its duration.
const grace = 15 * time.Second

func seconds(d time.Duration) string { return strconv.Itoa(max(1, int(d.Seconds()+0.5))) }

// outcome is what a generator printed.
type outcome struct {
	perSecond float64
	requests  float64
	errors    int
}

// withCPU takes requests per second, and what each of them cost.
func withCPU(p *proxy, metric string, run func() (outcome, error)) ([]sample, error) {
	before, err := machine.CPU(p.cmd.Process.Pid)
	if err != nil {
		return nil, fmt.Errorf("it is gone: %w", err)
	}
	r, err := run()
	if err != nil {
		return nil, err
	}
	after, err := machine.CPU(p.cmd.Process.Pid)
	if err != nil {
		return nil, fmt.Errorf("it is gone: %w", err)
	}
	return []sample{{metric, r.perSecond, r.errors}, {metric + "_cpu", float64((after - before).Microseconds()) / r.requests, r.errors}}, nil
}

func plain(ctx context.Context, b *bench, p *proxy, d time.Duration) ([]sample, error) {
	return withCPU(p, "way_h1", func() (outcome, error) {
		out, err := output(ctx, d+grace, "wrk", "-t", "1", "-c", "32", "-d", seconds(d), "--timeout", "5s", "http://"+p.address()+"/")
		if err != nil {
			return outcome{}, err
		}
		r, err := parseWrk(out)
		if b.perSecond != nil {
			b.perSecond[p.name] = r.perSecond
		}
		return r, err
	})
}

func two(metric, path string) func(context.Context, *bench, *proxy, time.Duration) ([]sample, error) {
	return func(ctx context.Context, b *bench, p *proxy, d time.Duration) ([]sample, error) {
		return withCPU(p, metric, func() (outcome, error) { return h2load(ctx, p, d, path, atMost...) })
	}
}

// calls are unary ones of gRPC.
func calls(ctx context.Context, b *bench, p *proxy, d time.Duration) ([]sample, error) {
	return withCPU(p, "way_grpc", func() (outcome, error) {
		r, err := b.call(ctx, p, d, atMost...)
		if err == nil && b.calls != nil {
			b.calls[p.name] = r.perSecond
		}
		return r, err
	})
}

// atMost has h2load send as many requests as are answered.
var atMost = []string{"-c", "8", "-m", "10"}

// h2load runs one, of a thread, for a while.
func h2load(ctx context.Context, p *proxy, d time.Duration, path string, more ...string) (outcome, error) {
	out, err := output(ctx, d+grace, "h2load", append(append([]string{"-t", "1", "-D", seconds(d)}, more...), "http://"+p.address()+path)...)
	if err != nil {
		return outcome{}, err
	}
	return parseH2load(out)
}

// call has it make calls of gRPC.
func (b *bench) call(ctx context.Context, p *proxy, d time.Duration, more ...string) (outcome, error) {
	message := filepath.Join(b.scratch, "server", "bench.Echo", "Say")
	return h2load(ctx, p, d, "/bench.Echo/Say", append(more[:len(more):len(more)], "-H", "content-type: application/grpc", "-H", "te: trailers", "-d", message)...)
}

// callers is how many connections make calls at a rate. h2load sends what is due of each every 10 ms: many of them, which do
// so at different times, make an even load.
const callers = 64

// callRate makes calls at half of a rate, and returns the 99th percentile of how long they took, in microseconds.
func (b *bench) callRate(ctx context.Context, p *proxy, perSecond float64, d time.Duration) (p99 float64, failed int, err error) {
	if perSecond < 4*callers {
		return 0, 0, errors.New("it is not known how much it carries: grpc has failed, or was not measured")
	}
	times := filepath.Join(b.scratch, "calls")
	defer func() { err = errors.Join(err, os.RemoveAll(times)) }()
	r, err := b.call(ctx, p, d, "-c", strconv.Itoa(callers), "-m", "100", "--rps", strconv.Itoa(int(perSecond/2/callers)), "--log-file", times)
	if err != nil {
		return 0, 0, err
	}
	f, err := os.Open(times)
	if err != nil {
		return 0, 0, err
	}
	p99, err = percentile99(f)
	return p99, r.errors, errors.Join(err, f.Close())
}

// eachAnswer reads what h2load's --log-file has: when a request was sent, its status, and the microseconds that it took.
func eachAnswer(log io.Reader, fn func(status string, us float64)) error {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		columns := strings.Fields(lines.Text())
		if len(columns) < 3 {
			return fmt.Errorf("h2load's log has the line %q", lines.Text())
		}
		us, err := strconv.ParseFloat(columns[2], 64)
		if err != nil {
			return fmt.Errorf("h2load's log: %w", err)
		}
		fn(columns[1], us)
	}
	return lines.Err()
}

// percentile99 is of the answers in h2load's log; what was not answered with 200 is counted by what h2load prints.
func percentile99(log io.Reader) (float64, error) {
	var took []float64
	err := eachAnswer(log, func(status string, us float64) {
		if status == "200" {
			took = append(took, us)
		}
	})
	if err != nil || len(took) == 0 {
		return 0, errors.Join(err, fmt.Errorf("h2load's log has %d answers", len(took)))
	}
	slices.Sort(took)
	return took[len(took)*99/100], nil
}

// callLatency is at a rate that is the same for both.
func callLatency(ctx context.Context, b *bench, p *proxy, d time.Duration) ([]sample, error) {
	p99, failed, err := b.callRate(ctx, p, slower(b.calls, p), d)
	if err != nil {
		return nil, err
	}
	return []sample{{"way_grpc_p99", p99, failed}}, nil
}

func ownCallLatency(ctx context.Context, b *bench, p *proxy, d time.Duration) ([]sample, error) {
	p99, failed, err := b.callRate(ctx, p, b.calls[p.name], d)
	if err != nil {
		return nil, err
	}
	return []sample{{"way_grpc_own_p99", p99, failed}}, nil
}

// numbers finds a pattern, and reads its groups.
func numbers(out, pattern string) ([]float64, error) {
	found := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if found == nil {
		return nil, fmt.Errorf("nothing in it is %s: %s", pattern, out)
	}
	var all []float64
	for _, text := range found[1:] {
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// parseWrk reads what wrk(1) prints. It says nothing of errors when there are none.
func parseWrk(out string) (outcome, error) {
	total, err := numbers(out, `(?m)^\s*(\d+) requests in `)
	rate, err2 := numbers(out, `(?m)^Requests/sec:\s+([0-9.]+)`)
	if err = errors.Join(err, err2); err != nil {
		return outcome{}, fmt.Errorf("wrk: %w", err)
	}
	r := outcome{perSecond: rate[0], requests: total[0]}
	for _, pattern := range []string{`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`, `Non-2xx or 3xx responses: (\d+)`} {
		failed, _ := numbers(out, pattern)
		for _, n := range failed {
			r.errors += int(n)
		}
	}
	if r.requests == 0 {
		return r, errors.New("wrk: not one request was answered")
	}
	return r, nil
}

// parseH2load reads what h2load(1) prints. What was under way at the end is no error.
func parseH2load(out string) (outcome, error) {
	rate, err := numbers(out, `(?m)^finished in [0-9.a-z]+, ([0-9.]+) req/s`)
	counts, err2 := numbers(out, `(?m)^requests: \d+ total, \d+ started, (\d+) done, \d+ succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)
	status, err3 := numbers(out, `(?m)^status codes: (\d+) 2xx`)
	if err = errors.Join(err, err2, err3); err != nil {
		return outcome{}, fmt.Errorf("h2load: %w", err)
	}
	r := outcome{perSecond: rate[0], requests: counts[0], errors: int(counts[1] + max(0, counts[0]-status[0]))}
	if r.requests == 0 {
		return r, errors.New("h2load: not one request was answered")
	}
	return r, nil
}

func (b *bench) rate(ctx context.Context, p *proxy, perSecond float64, d time.Duration) (timed load.Timed, err error) {
	if perSecond < 2 {
		return timed, errors.New("it is not known how much it carries: h1 has failed, or was not measured")
	}
	out, err := output(ctx, d+grace, b.self, "load", "rate", "-address", p.address(), "-rate", strconv.Itoa(int(perSecond/2)), "-duration", d.String())
	if err == nil {
		err = json.Unmarshal([]byte(out), &timed)
	}
	return timed, err
}

// slower is what the slower subject carried; nothing where the one that is asked for was not measured.
func slower(carried map[string]float64, of *proxy) float64 {
	least := carried[of.name]
	for _, other := range carried {
		least = min(least, other)
	}
	return least
}

// latency is at a rate that is the same for both.
func latency(ctx context.Context, b *bench, p *proxy, d time.Duration) ([]sample, error) {
	timed, err := b.rate(ctx, p, slower(b.perSecond, p), d)
	if err != nil {
		return nil, err
	}
	return []sample{{"way_p50", timed.P50, timed.Errors}, {"way_p99", timed.P99, timed.Errors}}, nil
}

func ownLatency(ctx context.Context, b *bench, p *proxy, d time.Duration) ([]sample, error) {
	timed, err := b.rate(ctx, p, b.perSecond[p.name], d)
	if err != nil {
		return nil, err
	}
	return []sample{{"way_own_p99", timed.P99, timed.Errors}}, nil
}

// change times a change of the routes.
func change(ctx context.Context, _ *bench, p *proxy, _ time.Duration) ([]sample, error) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	ask := func() (string, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address()+"/turn", nil)
		if err != nil {
			return "", err
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(io.Discard, response.Body)
		return response.Header.Get("Location"), errors.Join(err, response.Body.Close())
	}
	if _, err := ask(); err != nil { // a connection that is there
		return nil, err
	}
	began := time.Now()
	host, err := p.turn()
	if err != nil {
		return nil, err
	}
	for {
		location, err := ask()
		if err != nil {
			return nil, fmt.Errorf("a change of a route, not in effect after %v: %w", time.Since(began).Round(time.Millisecond), err)
		}
		if strings.Contains(location, host) {
			return []sample{{"way_route", float64(time.Since(began).Microseconds()) / 1000, 0}}, nil
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// memory is of a fresh proxy, which nobody else uses.
func memory(ctx context.Context, b *bench, p *proxy, _ time.Duration) ([]sample, error) {
	fresh := b.proxy(p.subject, "-fresh")
	if err := fresh.start(ctx); err != nil {
		return nil, err
	}
	defer fresh.stop()
	pid := fresh.cmd.Process.Pid
	rest(ctx, b.settle)
	before, err := machine.Resident(pid)
	if err != nil {
		return nil, err
	}
	conns, failed := hold(fresh.address(), b.held)
	defer func() {
		for _, c := range conns {
			_ = c.Close() // nothing unsent matters
		}
	}()
	rest(ctx, b.settle)
	after, err := machine.Resident(pid)
	if err != nil || len(conns) == 0 {
		return nil, errors.Join(err, fmt.Errorf("%d connections are open, %d failed", len(conns), failed))
	}
	return []sample{{"way_rss", float64(before) / 1e6, 0}, {"way_rss_8000", float64(after) / 1e6, failed},
		{"way_conn_kib", float64(after-before) / 1024 / float64(len(conns)), failed}}, nil
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// openers is how many connections are opened at once.
const openers = 8

// hold opens connections, has a request answered on each, and leaves them open.
func hold(address string, count int) (conns []net.Conn, failed int) {
	var mu sync.Mutex
	var opening sync.WaitGroup
	for i := range openers {
		opening.Go(func() {
			for range (count + i) / openers {
				c, err := open(address)
				mu.Lock()
				if err != nil {
					failed++
				} else {
					conns = append(conns, c)
				}
				mu.Unlock()
			}
		})
	}
	opening.Wait()
	return conns, failed
}

func open(address string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	err = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err == nil {
		_, err = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", address)
	}
	if err == nil {
		var response *http.Response
		if response, err = http.ReadResponse(bufio.NewReaderSize(c, 512), nil); err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			if response.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %d", response.StatusCode)
			}
		}
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}
