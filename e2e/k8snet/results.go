package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The sides that a test is run on.
const (
	outside = "outside"
	inside  = "inside"
)

// result is one run of one test on one side, a line of the file of results.
type result struct {
	Test    string        `json:"test"`
	Side    string        `json:"side"`
	State   string        `json:"state"`
	Message string        `json:"message,omitempty"`
	Took    time.Duration `json:"nanoseconds"`
	At      time.Time     `json:"at"`
	// Alone is set of a test that was run while no other was.
	Alone bool `json:"alone,omitempty"`
	// Heddle is the commit of what was installed.
	Heddle string `json:"heddle"`
}

// results are the runs that a file keeps: the last line about a test and a side
// counts. They are added to one by one, so that a run that is interrupted loses
// what it was at and no more. Its methods may be called by several goroutines.
type results struct {
	heddle string

	mu     sync.Mutex
	file   *os.File
	latest map[string]map[string]result // by side and test
}

// openResults reads the file, which is made when there is none, and is this
// process's alone to add to until it is closed.
func openResults(name, heddle string) (*results, error) {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the results: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the results in %s: %w: wait for the run that adds to them, or name another file by -results", name, err), file.Close())
	}
	r, whole, err := read(file, heddle)
	if err == nil {
		err = file.Truncate(whole)
	}
	if err == nil {
		_, err = file.Seek(whole, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

// showResults reads the file, to which another process may be adding.
func showResults(name string) (*results, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("nothing was run yet: %w", err)
	}
	r, _, err := read(file, "")
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

// read takes all whole lines, and returns how many bytes these are: half a line at the
// end is of a run that was killed.
func read(file *os.File, heddle string) (*results, int64, error) {
	r := &results{heddle: heddle, file: file, latest: map[string]map[string]result{outside: {}, inside: {}}}
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, 0, fmt.Errorf("read the results: %w", err)
	}
	whole := bytes.LastIndexByte(data, '\n') + 1
	if err := r.parse(data[:whole]); err != nil {
		return nil, 0, fmt.Errorf("read the results in %s: %w: correct or remove it", file.Name(), err)
	}
	return r, int64(whole), nil
}

func (r *results) parse(lines []byte) error {
	for i, line := range bytes.Split(lines, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		var one result
		if err := json.Unmarshal(line, &one); err != nil {
			return fmt.Errorf("line %d: %w", i+1, err)
		}
		if r.latest[one.Side] == nil || one.Test == "" || one.State == "" {
			return fmt.Errorf("line %d: not a result: %q", i+1, line)
		}
		r.latest[one.Side][one.Test] = one
	}
	return nil
}

// add keeps a result.
func (r *results) add(side, test string, o outcome, alone bool) error {
	one := result{Test: test, Side: side, State: o.state, Message: o.message, Took: o.took, At: time.Now().UTC().Truncate(time.Second), Alone: alone, Heddle: r.heddle}
	line, err := json.Marshal(one)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("keep a result: %w", err)
	}
	r.latest[side][test] = one
	return nil
}

func (r *results) close() error { return r.file.Close() }

// have reports whether a test has a result of a side that counts: it has none when
// it could not be run.
func (r *results) have(side, test string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	one, ok := r.latest[side][test]
	return ok && one.State != notRun
}

// confirmed reports whether what is known of the test inside was found while no
// other test ran.
func (r *results) confirmed(test string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.latest[inside][test].Alone
}

// names are the tests that have a result on both sides, sorted.
func (r *results) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name := range r.latest[outside] {
		if _, ok := r.latest[inside][name]; ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// compare sets the sides of those tests beside each other that have a result on
// both.
func (r *results) compare(names []string) comparison {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := comparison{outside: map[string]outcome{}, inside: map[string]outcome{}}
	for _, name := range names {
		out, ok := r.latest[outside][name]
		in, both := r.latest[inside][name]
		if ok && both {
			c.outside[name], c.inside[name] = out.outcome(), in.outcome()
		}
	}
	return c
}

func (r result) outcome() outcome { return outcome{r.State, r.Message, r.Took} }

// versions says by which commits of Heddle the results inside were found, and how
// many by each.
func (r *results) versions(names []string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := map[string]int{}
	var order []string
	for _, name := range names {
		one, ok := r.latest[inside][name]
		if !ok {
			continue
		}
		if counts[one.Heddle] == 0 {
			order = append(order, one.Heddle)
		}
		counts[one.Heddle]++
	}
	slices.SortFunc(order, func(a, b string) int { return counts[b] - counts[a] })
	for i, heddle := range order {
		order[i] = fmt.Sprintf("%s (%d tests)", heddle, counts[heddle])
	}
	return strings.Join(order, ", ")
}
