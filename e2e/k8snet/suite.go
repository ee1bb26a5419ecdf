package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/e2e/cluster"
)

// patience bounds one test: the longest of them wait ten minutes for what does not come.
const patience = 15 * time.Minute

// suite runs Kubernetes' tests on one side.
type suite struct {
	programs
	cluster *cluster.Cluster
	// side names it in what is said; labels are its namespaces'.
	side, labels, logs string
}

// outcome is how one test ended: Ginkgo's word ("passed", "failed", "skipped"), and
// the message of its failure.
type outcome struct {
	state, message string
	took           time.Duration
}

// report is what is read of Ginkgo's JSON report.
type report []struct {
	SpecReports []struct {
		ContainerHierarchyTexts []string
		LeafNodeType            string
		LeafNodeText            string
		State                   string
		RunTime                 time.Duration
		Failure                 struct{ Message string }
	}
}

// parseReport returns the outcomes of the tests by their names, without those that
// were not asked for. A failure outside of any test is an error.
func parseReport(data []byte) (map[string]outcome, error) {
	var suites report
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("read Ginkgo's report: %w", err)
	}
	found := map[string]outcome{}
	for _, s := range suites {
		for _, spec := range s.SpecReports {
			result := outcome{spec.State, spec.Failure.Message, spec.RunTime}
			switch {
			case spec.LeafNodeType != "It" && spec.State == "failed":
				return nil, fmt.Errorf("%s failed: %s", spec.LeafNodeType, spec.Failure.Message)
			case spec.LeafNodeType != "It", spec.State == "skipped" && spec.Failure.Message == "", spec.State == "pending":
				continue // a skip with a message is the test's own
			}
			found[strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")] = result
		}
	}
	return found, nil
}

// selected are the names of the tests that the options ask for, sorted.
func (p programs) selected(ctx context.Context, logs string, o options) ([]string, error) {
	focus := o.focus
	if focus == "" {
		var err error
		if focus, err = focusOf(o.tests); err != nil {
			return nil, err
		}
	}
	if _, err := regexp.Compile(focus); err != nil {
		return nil, fmt.Errorf("-focus: %w", err)
	}
	file := filepath.Join(logs, "selected.json")
	command := exec.CommandContext(ctx, p.suite(), "--ginkgo.dry-run", "--ginkgo.focus="+focus, "--ginkgo.skip="+notHere, "--ginkgo.json-report="+file)
	if out, err := command.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ask for the tests' names: %w: %s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ask for the tests' names: %w", err)
	}
	found, err := parseReport(data)
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range found {
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no test of sig-network matches %q", focus)
	}
	slices.Sort(names)
	return names, nil
}

// job is one test on one side.
type job struct{ side, test string }

// todo are the runs that the results lack, both sides of a test beside each other, so
// that an interrupted run leaves pairs. again asks for more: see the flag.
func (r *results) todo(names []string, again string) []job {
	differing := r.compare(names).onlyOutside()
	var jobs []job
	for _, name := range names {
		for _, side := range []string{outside, inside} {
			switch {
			case again == againAll, !r.have(side, name):
			case again == againDiffering && side == inside && slices.Contains(differing, name):
			default:
				continue
			}
			jobs = append(jobs, job{side, name})
		}
	}
	return jobs
}

// runAll runs tests, so many at once, each in a process of its own, and keeps how they
// ended. When the context ends, the rest is left out, and what was running counts as
// not run.
func (r *results) runAll(ctx context.Context, sides map[string]suite, jobs []job, parallel int) error {
	queue := make(chan job)
	var lock sync.Mutex
	var errs []error
	ended := 0
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			for j := range queue {
				how := sides[j.side].run(ctx, j.test)
				if ctx.Err() != nil {
					continue
				}
				err := r.add(j.side, j.test, how, parallel == 1)
				lock.Lock()
				ended++
				errs = append(errs, err)
				say(fmt.Sprintf("%-7s %-7s %4.0f s  %s  (%d of %d)", j.side, how.state, how.took.Seconds(), j.test, ended, len(jobs)))
				lock.Unlock()
			}
		})
	}
	for _, j := range jobs {
		if ctx.Err() == nil {
			queue <- j
		}
	}
	close(queue)
	workers.Wait()
	return errors.Join(errs...)
}

// run runs one test.
func (s suite) run(ctx context.Context, name string) outcome {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	base := filepath.Join(s.logs, s.side+"-"+strings.Trim(regexp.MustCompile(`[^A-Za-z0-9]+`).ReplaceAllString(name, "-"), "-"))
	base = base[:min(len(base), len(s.logs)+235)]
	log, err := os.Create(base + ".log")
	if err != nil {
		return outcome{state: notRun, message: err.Error()}
	}
	defer log.Close()
	_ = os.Remove(base + ".json") // of the run before, if there was one
	command := exec.CommandContext(ctx, s.suite(), "-test.timeout=0", "--kubeconfig="+s.cluster.Kubeconfig(), "--kubectl-path="+s.cluster.KubectlPath(),
		"--provider=skeleton", "--namespace-labels="+s.labels, "--ginkgo.focus="+regexp.QuoteMeta(name)+"$", "--ginkgo.no-color",
		"--ginkgo.timeout="+patience.String(), "--ginkgo.json-report="+base+".json")
	command.Stdout, command.Stderr = log, log
	// Ginkgo takes what the test made away before it ends.
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = time.Minute
	failed := command.Run()
	data, err := os.ReadFile(base + ".json")
	if err != nil {
		return outcome{state: notRun, message: errors.Join(failed, err).Error()}
	}
	found, err := parseReport(data)
	if err != nil {
		return outcome{state: notRun, message: err.Error()}
	}
	result, ok := found[name]
	if !ok {
		return outcome{state: notRun, message: fmt.Sprintf("the report does not have it: %v", failed)}
	}
	return result
}
