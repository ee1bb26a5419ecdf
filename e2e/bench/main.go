// Command bench measures Heddle beside no mesh, its own reference engine and
// Envoy doing the same job, on this machine: alternating within every repeat,
// medians with intervals, as ratios. It prints a table, and writes it with the
// rows to docs/benchmarks.md and docs/bench.json when told to. It needs root and
// bin/ built; what it makes, it takes away, also when it is interrupted.
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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/load"
	"github.com/heddle-mesh/heddle/e2e/bench/machine"
	"github.com/heddle-mesh/heddle/e2e/bench/measure"
	"github.com/heddle-mesh/heddle/e2e/bench/result"
	"github.com/heddle-mesh/heddle/e2e/bench/wan"
	"github.com/heddle-mesh/heddle/e2e/bench/world"
)

func main() {
	if len(os.Args) > 1 && (os.Args[1] == "load" || os.Args[1] == "wan") {
		part := load.Main
		if os.Args[1] == "wan" {
			part = wan.Main
		}
		if err := part(os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	o, err := options(os.Args[1:])
	if err == nil {
		err = o.run(ctx)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	root, bin, self   string
	name              string
	subjects, metrics []string
	repeats           int
	latencyRepeats    int // of p50 and p99, whose tails need more
	sizes             measure.Sizes
	docs              string
	congestion        string // empty for the machine's
	started           time.Time
	loadAtStart       string
	worlds            map[string]*world.World
	measured          []result.Row
	steadied          steadied
}

// quickMetrics and quickSubjects are what -quick takes.
const (
	quickMetrics  = "rps,bulk1,bulk8,conn,lat"
	quickSubjects = "none,heddle,envoy"
)

func options(args []string) (*bench, error) {
	b := &bench{started: time.Now(), worlds: map[string]*world.World{}, loadAtStart: machine.Load()}
	var names []string
	for _, t := range measure.Tests() {
		names = append(names, t.Name)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&b.root, "root", ".", "folder of the checkout")
	flags.StringVar(&b.bin, "bin", "bin", "folder of the programs to measure, from -root on")
	flags.StringVar(&b.name, "name", "bench", "what the names of the meshes begin with")
	quick := flags.Bool("quick", false, "three repeats of "+quickMetrics+" for "+quickSubjects+", two seconds each")
	subjects := flags.String("subjects", "", "which of "+strings.Join(world.Subjects(), ",")+"; empty for all")
	metrics := flags.String("metrics", "", "which of "+strings.Join(names, ",")+"; empty for all")
	flags.IntVar(&b.repeats, "repeats", 0, "how often each is measured; 0 is 5, and 9 for lat, or 3 with -quick")
	flags.DurationVar(&b.sizes.Duration, "duration", 0, "how long each load lasts; 0 is 3s, or 2s with -quick")
	flags.DurationVar(&b.sizes.RateDuration, "rate-duration", 0, "how long the load at a fixed rate lasts; 0 is 4s, or 3s with -quick")
	flags.StringVar(&b.docs, "docs", "", "folder for benchmarks.md, bench.json and flame graphs; empty writes none")
	flags.StringVar(&b.congestion, "congestion", "", "congestion control in all namespaces, in place of the machine's; without -metrics only "+quickMetrics+" are measured then, and what is written is named by it")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	set := func(list *string, isShort bool, short, all string) []string {
		if *list == "" {
			*list = all
			if isShort {
				*list = short
			}
		}
		return strings.Split(*list, ",")
	}
	b.subjects = set(subjects, *quick, quickSubjects, strings.Join(world.Subjects(), ","))
	b.metrics = set(metrics, *quick || b.congestion != "", quickMetrics, strings.Join(names, ","))
	b.defaults(*quick)
	for _, check := range []struct{ chosen, known []string }{{b.subjects, world.Subjects()}, {b.metrics, names}} {
		for _, name := range check.chosen {
			if !slices.Contains(check.known, name) {
				return nil, fmt.Errorf("%q is none of %s", name, strings.Join(check.known, ", "))
			}
		}
	}
	return b, nil
}

func (b *bench) defaults(quick bool) {
	pick := func(full, short int) int {
		if quick {
			return short
		}
		return full
	}
	b.latencyRepeats = b.repeats
	if b.repeats == 0 {
		b.repeats, b.latencyRepeats = pick(5, 3), pick(9, 3)
	}
	if b.sizes.Duration == 0 {
		b.sizes.Duration = time.Duration(pick(3, 2)) * time.Second
	}
	if b.sizes.RateDuration == 0 {
		b.sizes.RateDuration = time.Duration(pick(4, 3)) * time.Second
	}
	b.sizes.Rate, b.sizes.Held, b.sizes.Settle = 1600, []int{1000, 8000}, measure.DefaultSettle
}

// run sets up, measures, shows and takes down.
func (b *bench) run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("root is needed for network namespaces and BPF: run it with sudo")
	}
	if b.root, err = filepath.Abs(b.root); err != nil {
		return err
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	unlock, err := lock(b.name)
	if err != nil {
		return err
	}
	defer unlock()
	scratch, err := os.MkdirTemp("", "heddle-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.down(), os.RemoveAll(scratch)) }()
	// The programs as they are now: somebody may build others meanwhile.
	binaries := filepath.Join(scratch, "bin")
	if !filepath.IsAbs(b.bin) {
		b.bin = filepath.Join(b.root, b.bin)
	}
	if err := os.CopyFS(binaries, os.DirFS(b.bin)); err != nil {
		return err
	}
	if b.congestion != "" {
		undo, allowErr := world.AllowCongestion(b.congestion)
		if allowErr != nil {
			return allowErr
		}
		defer func() { err = errors.Join(err, undo()) }()
	}
	if err := b.up(ctx, scratch, binaries); err != nil {
		return err
	}
	if err := b.warmUp(ctx); err != nil {
		return err
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	all := result.Summarise(b.measured, b.subjects)
	fmt.Println()
	fmt.Print(result.Text(all))
	if b.docs == "" {
		return nil
	}
	return b.write(ctx, scratch)
}

// up sets up a world of each subject.
func (b *bench) up(ctx context.Context, scratch, binaries string) error {
	for _, subject := range b.subjects {
		b.say("setting up %s", subject)
		folder := filepath.Join(scratch, subject)
		if err := os.Mkdir(folder, 0o755); err != nil {
			return err
		}
		w, err := world.Up(ctx, world.Config{Name: b.name + "-" + subject, Subject: subject, Root: b.root, Binaries: binaries, Scratch: folder, Self: b.self, Congestion: b.congestion})
		b.worlds[subject] = w
		if err != nil {
			return err
		}
	}
	return nil
}

// lock keeps a second run of a name from taking this one's worlds for an earlier
// one's leavings. It is an abstract socket (unix(7)): it ends with the process.
func lock(name string) (unlock func(), err error) {
	l, err := net.Listen("unix", "@heddle-bench-"+name)
	if err != nil {
		return nil, fmt.Errorf("another run is under way: wait for it, or give this one another -name: %w", err)
	}
	return func() { l.Close() }, nil
}

func (b *bench) down() error {
	var errs []error
	for subject, w := range b.worlds {
		if err := w.Down(); err != nil {
			errs = append(errs, fmt.Errorf("take %s down: %w", subject, err))
		}
	}
	return errors.Join(errs...)
}

func (b *bench) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}

// warmUp has each subject make its first connections before anything counts.
func (b *bench) warmUp(ctx context.Context) error {
	for _, subject := range b.subjects {
		for _, t := range measure.Tests()[:1] {
			if _, err := t.Run(ctx, b.worlds[subject], measure.Sizes{Duration: time.Second}); err != nil {
				return fmt.Errorf("warm %s up: %w", subject, err)
			}
		}
	}
	return nil
}

// measure takes every metric of every subject, repeat by repeat. The subjects
// follow each other closely, forwards in one repeat and backwards in the next, so
// that what the machine does besides falls on all alike.
func (b *bench) measure(ctx context.Context) error {
	for repeat := range max(b.repeats, b.repeatsOf("lat")) {
		order := slices.Clone(b.subjects)
		if repeat%2 == 1 {
			slices.Reverse(order)
		}
		for _, t := range measure.Tests() {
			if repeat >= b.repeatsOf(t.Name) {
				continue
			}
			b.say("repeat %d of %d: %s", repeat+1, b.repeatsOf(t.Name), t.Title)
			for _, subject := range order {
				if err := b.take(ctx, repeat, subject, t); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// repeatsOf is how often a test is run: not at all if it was not asked for.
func (b *bench) repeatsOf(test string) int {
	switch {
	case !slices.Contains(b.metrics, test):
		return 0
	case test == "lat":
		return b.latencyRepeats
	}
	return b.repeats
}

// take takes one measurement. One that fails counts as an error of its subject;
// the run goes on.
func (b *bench) take(ctx context.Context, repeat int, subject string, t measure.Test) error {
	samples, err := b.steadied.run(t.Brief, func() ([]measure.Sample, error) { return t.Run(ctx, b.worlds[subject], b.sizes) })
	if ctx.Err() != nil {
		return fmt.Errorf("stopped: %w", ctx.Err())
	}
	if err != nil {
		b.say("  %-10s failed: %v", subject, err)
		if !slices.ContainsFunc(samples, func(s measure.Sample) bool { return s.Errors > 0 }) {
			samples = append(samples, measure.Sample{Metric: t.Metric, Errors: 1})
		}
	}
	var said []string
	for _, s := range samples {
		row := result.Row{Repeat: repeat, Subject: subject, Metric: s.Metric, Value: s.Value, Errors: s.Errors}
		b.measured = append(b.measured, row)
		text := fmt.Sprintf("%s %.4g", s.Metric, s.Value)
		if s.Errors > 0 {
			text += fmt.Sprintf(" (%d errors)", s.Errors)
		}
		said = append(said, text)
	}
	if len(said) > 0 {
		b.say("  %-10s %s", subject, strings.Join(said, ", "))
	}
	return nil
}
