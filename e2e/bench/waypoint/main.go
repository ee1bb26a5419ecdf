// Command waypoint measures heddle-waypoint beside Envoy as the same proxy, on this machine:
// routes, metrics and access log on in both, alternating within every repeat, medians with
// intervals, as ratios. It prints a table, and writes it with the rows to
// docs/benchmarks-waypoint.md and docs/bench-waypoint.json when told to. It needs bin/ built;
// what it starts ends with it, and it changes nothing on the machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/load"
	"github.com/heddle-mesh/heddle/e2e/bench/machine"
	"github.com/heddle-mesh/heddle/e2e/bench/result"
)

// What this program starts ends with the thread that starts it (PR_SET_PDEATHSIG of prctl(2)):
// the main thread, which ends with the process.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) > 1 && os.Args[1] == "load" {
		if err := load.Main(os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench-waypoint load:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	b, err := options(os.Args[1:])
	if err == nil {
		err = b.run(ctx)
	}
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench-waypoint:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	root, bin, self string
	docs            string
	tests           []string
	repeats, held   int
	duration        time.Duration
	settle, within  time.Duration
	started         time.Time
	loadAtStart     string

	scratch string
	server  *server
	proxies []*proxy
	full    *full
	rows    []result.Row
	// perSecond is what each subject carried of HTTP/1.1 in this repeat.
	perSecond map[string]float64
	calls     map[string]float64 // of gRPC
}

func options(args []string) (*bench, error) {
	b := &bench{started: time.Now(), loadAtStart: machine.Load(), settle: 7 * time.Second}
	var names []string
	for _, t := range measurements() {
		names = append(names, t.name)
	}
	flags := flag.NewFlagSet("bench-waypoint", flag.ContinueOnError)
	flags.StringVar(&b.root, "root", ".", "folder of the checkout")
	flags.StringVar(&b.bin, "bin", "bin", "folder of the programs to measure, from -root on")
	quick := flags.Bool("quick", false, "two repeats of a second each, and 1,000 idle connections in place of 8,000")
	tests := flags.String("tests", strings.Join(names, ","), "which of them, in their order; lat and own need h1, grpclat and grpcown grpc")
	flags.IntVar(&b.repeats, "repeats", 0, "how often each is measured; 0 is 5, or 2 with -quick")
	flags.IntVar(&b.held, "held", 0, "how many idle connections; 0 is 8,000, or 1,000 with -quick")
	flags.DurationVar(&b.duration, "duration", 0, "how long each load lasts, in whole seconds; 0 is 3s, or 1s with -quick")
	flags.DurationVar(&b.within, "within", 12*time.Minute, "bound of the whole run")
	flags.StringVar(&b.docs, "docs", "", "folder for benchmarks-waypoint.md and bench-waypoint.json; empty writes none")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	b.tests = strings.Split(*tests, ",")
	for _, name := range b.tests {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("-tests: %q is none of %s", name, strings.Join(names, ", "))
		}
	}
	full := map[bool]int{false: 1, true: 0}[*quick]
	if b.repeats == 0 {
		b.repeats = []int{2, 5}[full]
	}
	if b.held == 0 {
		b.held = []int{1000, 8000}[full]
	}
	if b.duration == 0 {
		b.duration = []time.Duration{time.Second, 3 * time.Second}[full]
	}
	if *quick {
		b.settle = time.Second
	}
	return b, nil
}

// run sets up, measures, shows and takes down.
func (b *bench) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, b.within)
	defer cancel()
	if b.root, err = filepath.Abs(b.root); err != nil {
		return err
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if err := descriptors(b.held + 1000); err != nil {
		return err
	}
	if b.scratch, err = os.MkdirTemp("", "heddle-bench-waypoint-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.scratch)) }()
	defer b.down()
	if err := b.up(ctx); err != nil {
		return err
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	fmt.Println()
	fmt.Print(result.Text(result.Summarise(b.rows, b.subjects())))
	if b.docs == "" {
		return nil
	}
	return b.write()
}

// descriptors makes room for files; what is started inherits it.
func descriptors(n int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if limit.Max < uint64(n) {
		return fmt.Errorf("%d files may be open, and %d are needed: raise the limit (ulimit -n)", limit.Max, n)
	}
	limit.Cur = limit.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

func (b *bench) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}

func (b *bench) subjects() (names []string) {
	for _, p := range b.proxies {
		names = append(names, p.name)
	}
	return names
}

// up starts the server and both proxies, and looks that each answers what is measured.
func (b *bench) up(ctx context.Context) error {
	var err error
	b.say("setting up")
	if b.server, err = startServer(ctx, b.scratch); err != nil {
		return err
	}
	for _, s := range subjects() {
		p := b.proxy(s, "")
		b.proxies = append(b.proxies, p)
		if err := p.start(ctx); err != nil {
			return err
		}
		if err := p.check(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		for _, t := range measurements()[:3] { // its first connections, and its heap
			if _, err := t.run(ctx, b, p, time.Second); err != nil {
				return fmt.Errorf("warm %s up: %w", p.name, err)
			}
		}
	}
	if slices.Contains(b.tests, "over") {
		b.full, err = b.startFull(ctx)
	}
	return err
}

func (b *bench) down() {
	for _, p := range b.proxies {
		p.stop()
	}
	if b.full != nil {
		b.full.stop()
	}
	if b.server != nil {
		b.server.stop()
	}
}

// measure takes every metric of both subjects, repeat by repeat: forwards in one, backwards
// in the next, so that what the machine does besides falls on both alike.
func (b *bench) measure(ctx context.Context) error {
	for repeat := range b.repeats {
		b.perSecond, b.calls = map[string]float64{}, map[string]float64{}
		order := slices.Clone(b.proxies)
		if repeat%2 == 1 {
			slices.Reverse(order)
		}
		for _, t := range measurements() {
			if !slices.Contains(b.tests, t.name) {
				continue
			}
			b.say("repeat %d of %d: %s", repeat+1, b.repeats, t.title)
			for _, p := range order {
				if err := b.take(ctx, repeat, t, p); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// take takes one measurement. One that fails counts as an error of its subject; the run goes on.
func (b *bench) take(ctx context.Context, repeat int, t measurement, p *proxy) error {
	samples, err := t.run(ctx, b, p, b.duration)
	if ctx.Err() != nil {
		return fmt.Errorf("stopped after %v: %w", time.Since(b.started).Round(time.Second), ctx.Err())
	}
	if err != nil {
		b.say("  %-7s failed: %v", p.name, err)
		samples = append(samples, sample{t.metric, 0, 1})
	}
	var said []string
	for _, s := range samples {
		b.rows = append(b.rows, result.Row{Repeat: repeat, Subject: p.name, Metric: s.metric, Value: s.value, Errors: s.errors})
		text := fmt.Sprintf("%s %.4g", s.metric, s.value)
		if s.errors > 0 {
			text += fmt.Sprintf(" (%d errors)", s.errors)
		}
		said = append(said, text)
	}
	b.say("  %-7s %s", p.name, strings.Join(said, ", "))
	return p.truncate()
}

// write writes the document and its figures.
func (b *bench) write() error {
	version := func(pattern, name string, args ...string) string { return machine.Said(".", pattern, name, args...) }
	facts := []result.Fact{{Name: "measured", Value: fmt.Sprintf("%s, %d repeats in %v", b.started.UTC().Format(time.DateOnly), b.repeats, time.Since(b.started).Round(time.Second))}}
	facts = append(facts, machine.Facts(b.root)...)
	facts = append(facts,
		result.Fact{Name: "Envoy", Value: version(`\d+\.\d+\.\d+`, b.proxies[1].binary(b), "--version")},
		result.Fact{Name: "wrk, h2load, nginx", Value: version(`\d+\.\d+\.\d+`, "wrk", "-v") + ", " + version(`\d+\.\d+\.\d+`, "h2load", "--version") + ", " + version(`\d+\.\d+\.\d+`, nginx(), "-v")},
		result.Fact{Name: "idle connections", Value: fmt.Sprint(b.held)},
		result.Fact{Name: "congestion control", Value: machine.CongestionControl()},
		result.Fact{Name: "load of the machine at the start, 1 minute", Value: b.loadAtStart})
	r := result.Report{Kind: result.Waypoint(), Facts: facts, Subjects: b.subjects(), All: b.subjects(), Rows: b.rows}
	var text, figures strings.Builder
	err := errors.Join(r.Document(&text), r.JSON(&figures))
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(b.docs, "benchmarks-waypoint.md"), []byte(text.String()), 0o644),
			os.WriteFile(filepath.Join(b.docs, "bench-waypoint.json"), []byte(figures.String()), 0o644))
	}
	if err == nil {
		b.say("written: benchmarks-waypoint.md and bench-waypoint.json in %s", b.docs)
	}
	return err
}

// freePort is one of 127.0.0.1 on which nobody listens.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
