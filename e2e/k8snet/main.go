// Command k8snet runs Kubernetes' own network tests (sig-network of e2e.test) twice on
// a real cluster with Heddle installed: in namespaces outside the mesh, and in
// namespaces that are enrolled. It prints both results beside each other, and fails
// when a test passes only outside and is not on the list of those that differ by
// design, each with its reason. Root is needed. It builds what it runs; the tests
// themselves are Kubernetes'.
//
// What was run is kept in a file, test by test: a run that was interrupted, or that
// selected less, is gone on with by the next.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/cluster/build"
)

func main() {
	var o options
	flag.StringVar(&o.focus, "focus", "", "regular expression: only the tests whose names match")
	flag.StringVar(&o.tests, "tests", "network", "network: all tests that this cluster can run; telling: about thirty of them")
	flag.StringVar(&o.name, "name", "k8snet", "name of the cluster; one that runs is used and left running")
	flag.StringVar(&o.mode, "mode", "PERMISSIVE", "what enrolled pods accept: PERMISSIVE or STRICT, which refuses what the suite sends from hosts")
	flag.BoolVar(&o.udp, "udp", false, "switch UDP by identity on, and let a policy in each enrolled namespace admit it at the ports that the suite uses")
	flag.StringVar(&o.probe, "probe", plain, "how pods try TCP: plain as Kubernetes does, or patient, which also waits whether the connection lasts")
	flag.StringVar(&o.again, "again", "", "run tests again that have results: differing (those that pass outside only, inside) or all")
	flag.StringVar(&o.file, "results", "", "the file that keeps results (default: one in .cache for the suite's version, -mode and -probe)")
	flag.BoolVar(&o.show, "show", false, "run nothing: compare all that the file of results has")
	flag.IntVar(&o.parallel, "parallel", 2, "how many tests run at once")
	flag.BoolVar(&o.keep, "keep", false, "leave the cluster running at the end")
	flag.StringVar(&o.root, "root", ".", "a folder in the checkout")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "k8snet:", err)
		os.Exit(1)
	}
}

type options struct {
	focus, tests, name, mode, probe, again, file, root string
	parallel                                           int
	keep, show, udp                                    bool
}

// enrolled is the label of namespaces inside the mesh.
const enrolled = "heddle.dev/mesh=enabled"

// What -again may say.
const (
	againAll       = "all"
	againDiffering = "differing"
)

func (o options) validate() error {
	switch {
	case o.mode != "PERMISSIVE" && o.mode != "STRICT":
		return fmt.Errorf("-mode %q: use PERMISSIVE or STRICT", o.mode)
	case o.probe != plain && o.probe != patient:
		return fmt.Errorf("-probe %q: use %s or %s", o.probe, plain, patient)
	case o.again != "" && o.again != againAll && o.again != againDiffering:
		return fmt.Errorf("-again %q: use %s or %s", o.again, againDiffering, againAll)
	case o.parallel < 1:
		return fmt.Errorf("-parallel %d: use 1 or more", o.parallel)
	case o.show && o.again != "":
		return errors.New("-show runs nothing: leave -again out")
	}
	return nil
}

func say(line string) { fmt.Fprintln(os.Stderr, time.Now().Format("15:04:05"), line) }

// run runs what the results lack, and compares both sides.
func run(ctx context.Context, o options) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	root, err := build.FindRoot(o.root)
	if err != nil {
		return err
	}
	p, err := locate(root)
	if err != nil {
		return err
	}
	if o.file == "" {
		o.file = fmt.Sprintf("%s-results-%s-%s%s.jsonl", p.dir, strings.ToLower(o.mode), o.probe, map[bool]string{true: "-udp"}[o.udp])
	}
	if o.show {
		r, err := showResults(o.file)
		if err != nil {
			return err
		}
		return errors.Join(r.compareAll(r.names(), o), r.close())
	}
	heddle, err := revision(ctx, root)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	r, err := openResults(o.file, heddle)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	names, err := runTests(ctx, root, o, p, r)
	if names == nil {
		return err
	}
	return errors.Join(err, r.compareAll(names, o))
}

// compareAll prints what is known of the tests, and fails when that is not as it
// should be.
func (r *results) compareAll(names []string, o options) error {
	all := r.compare(names)
	fmt.Print(all.markdown())
	fmt.Printf("\nHeddle inside: %s. Results: %s.\n", r.versions(names), o.file)
	var err error
	if lacking := len(names) - len(all.outside); lacking > 0 {
		err = fmt.Errorf("%d of %d tests are not run yet: the same command goes on with them", lacking, len(names))
	}
	return errors.Join(err, all.verdict(byDesign(o.udp)))
}

// runTests runs the tests that the options select and that have no results, and
// returns the names of all that are selected.
func runTests(ctx context.Context, root string, o options, p programs, r *results) (names []string, err error) {
	if err := p.build(ctx, root); err != nil {
		return nil, err
	}
	logs := filepath.Join(root, ".cache", "k8snet-logs", time.Now().Format("20060102-150405"))
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, err
	}
	if names, err = p.selected(ctx, logs, o); err != nil {
		return nil, err
	}
	jobs := r.todo(names, o.again)
	if len(jobs) == 0 && len(r.unconfirmed(names, o.udp)) == 0 {
		say(fmt.Sprintf("all %d tests have results in %s", len(names), o.file))
		return names, nil
	}
	built, err := build.Ensure(ctx, root, say)
	if err != nil {
		return nil, err
	}
	if err := p.ensureImages(ctx, root, built, o.probe); err != nil {
		return nil, err
	}
	c, down, err := bringUp(ctx, root, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, down()) }()
	if err := install(ctx, root, c, p.images(o.probe), o, r.heddle); err != nil {
		return names, err
	}
	if o.udp {
		stop, failed := admitDatagrams(ctx, c)
		if failed != nil {
			return names, failed
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	say(fmt.Sprintf("%d tests, of which %d runs are left, outside the mesh and inside; logs in %s", len(names), len(jobs), logs))
	sides := map[string]suite{
		outside: {programs: p, cluster: c, side: outside, logs: logs},
		inside:  {programs: p, cluster: c, side: inside, labels: enrolled, logs: logs},
	}
	if err := r.runAll(ctx, sides, jobs, o.parallel); err != nil {
		return names, err
	}
	// A failure is believed when the test fails alone, too.
	return names, r.runAll(ctx, sides, r.unconfirmed(names, o.udp), 1)
}

// unconfirmed are the runs inside that differ, not by design, and were made beside
// others.
func (r *results) unconfirmed(names []string, udp bool) []job {
	var jobs []job
	for _, name := range r.compare(names).onlyOutside() {
		if !r.confirmed(name) && !isListed(byDesign(udp), name) {
			jobs = append(jobs, job{inside, name})
		}
	}
	return jobs
}

// revision names what is in the checkout: the commit, and the time when more than
// that is in it.
func revision(ctx context.Context, root string) (string, error) {
	git := func(args ...string) (string, error) {
		command := exec.CommandContext(ctx, "git", args...)
		command.Dir = root
		out, err := command.Output()
		if err != nil {
			return "", fmt.Errorf("ask git what is in %s: %w", root, err)
		}
		return strings.TrimSpace(string(out)), nil
	}
	commit, err := git("rev-parse", "--short=12", "HEAD")
	if err != nil {
		return "", err
	}
	changed, err := git("status", "--porcelain", "--untracked-files=no")
	if changed != "" {
		commit += time.Now().UTC().Format("-20060102T150405")
	}
	return commit, err
}

// bringUp takes the cluster of the name that runs, or makes one that goes at the end.
func bringUp(ctx context.Context, root string, o options) (c *cluster.Cluster, down func() error, err error) {
	leave := func() error { return nil }
	settings, err := cluster.Options{Name: o.name, Root: root, Say: say}.WithDefaults()
	if err != nil {
		return nil, leave, err
	}
	c, err = cluster.Open(settings.Dir, o.name)
	if err == nil {
		say("using the cluster " + o.name + ", which is left running")
		return c, leave, nil
	}
	if !errors.Is(err, cluster.ErrNotFound) {
		return nil, leave, err
	}
	c, err = cluster.Up(ctx, settings)
	down = func() error {
		if o.keep {
			return nil
		}
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return c.Down(bounded)
	}
	if err != nil {
		if c != nil {
			err = errors.Join(err, down())
		}
		return nil, leave, err
	}
	return c, down, nil
}

// install puts the suite's images and Heddle on the cluster.
func install(ctx context.Context, root string, c *cluster.Cluster, images string, o options, version string) error {
	const registry = "localhost/heddle"
	folder, err := os.MkdirTemp("", "k8snet-images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if err := goRun(ctx, root, "run", "./manifests/images", "-architectures", architecture, "-folder", folder, "-registry", registry, "-version", version); err != nil {
		return err
	}
	heddle, err := filepath.Glob(folder + "/*.tar")
	if err != nil {
		return err
	}
	say("loading images")
	if err := c.LoadImage(ctx, append(heddle, images)...); err != nil {
		return err
	}
	say("installing Heddle")
	if err := goRun(ctx, root, "run", "./cmd/heddle", "install", "--kubeconfig", c.Kubeconfig(), "--wait", "4m", "--force-conflicts",
		"--set", "image.registry="+registry, "--set", "image.tag="+version, "--set", "mesh.peerAuthentication="+o.mode,
		"--set", fmt.Sprintf("operator.udpByIdentity=%t", o.udp)); err != nil {
		return fmt.Errorf("%w; %s", err, strings.TrimSpace(podsOf(ctx, c)))
	}
	return nil
}

// podsOf says how Heddle's own pods are.
func podsOf(ctx context.Context, c *cluster.Cluster) string {
	out, err := c.Kubectl(ctx, "", "-n", "heddle-system", "get", "pods,events")
	return fmt.Sprint(out, err)
}
