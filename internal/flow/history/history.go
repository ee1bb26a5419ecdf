// Package history keeps on disk who talked to whom, hour by hour, for a week or so:
// what a changed policy is tried on. Of connections that have everything in common
// that a policy looks at there is one summary an hour, with their number; nothing
// of what was said on them, and no port of a client.
//
// A History takes records as a flow.Sink, and writes a file for each hour, which it
// replaces as a whole every minute while there is news: a crash costs a minute, and
// leaves no half of a file. Each process has files of its own, so that two agents,
// one of which takes over from the other, do not meet in one. Files are gzip, bounded
// in size, number and age, and the oldest go first; so do they when the disk is full.
//
// A History decides nothing, and is safe for concurrent use.
package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
)

// The defaults of a Config.
const (
	DefaultMaxBytes = 64 << 20
	DefaultKeep     = 7 * 24 * time.Hour
)

// maxSummaries bounds those of one hour: some 8 MB of memory when there are as many.
const maxSummaries = 1 << 14

// maxWaiting bounds the hours that wait in memory for a disk that takes them.
const maxWaiting = 2

// ErrNone is returned by a nil History, which keeps nothing.
var ErrNone = errors.New("the agent keeps no history of flows: it runs with --history-bytes 0")

// Bounds say how much is kept: MaxBytes of all files together, 0 for no history, and
// none that is older than Keep.
type Bounds struct {
	MaxBytes int64
	Keep     time.Duration
}

// DefaultBounds are a week, and 64 MiB.
func DefaultBounds() Bounds { return Bounds{MaxBytes: DefaultMaxBytes, Keep: DefaultKeep} }

// Validate calls bad with each field that is out of range, what is wrong, and the
// agent's flag that mends it.
func (b Bounds) Validate(bad func(field, wrong, remedy string)) {
	if n := b.MaxBytes; n != 0 && (n < 1<<20 || n > 1<<40) {
		bad("MaxBytes", fmt.Sprintf("%d is out of range", n), fmt.Sprintf("give --history-bytes %d to %d, or 0 for no history", 1<<20, 1<<40))
	}
	if d := b.Keep; b.MaxBytes != 0 && (d < time.Hour || d > 366*24*time.Hour) {
		bad("Keep", fmt.Sprintf("%v is out of range", d), "give --history-keep a duration from 1h to 8784h")
	}
}

// Config says where and how much is kept.
type Config struct {
	// Dir is made when it is missing, for its owner only.
	Dir string
	Bounds
	// Every is how often news are written; 0 is a minute.
	Every time.Duration
	Log   *slog.Logger
	// Now is time.Now when it is nil.
	Now func() time.Time
}

// History is one process's; New makes it, and Run writes it. A nil one keeps nothing.
type History struct {
	cfg Config
	ran func() time.Duration // since New, by a clock that nobody sets

	mu      sync.Mutex
	hour    *hour
	waiting []*hour // over, and not on disk yet
	leftOut uint64

	// files guards the directory: it is held while a disk is waited for.
	files    sync.Mutex
	trimmed  time.Time     // the hour in which it was kept within its bounds
	clock    clock         // whether files may go for their age
	patience time.Duration // with the last write of all

	// What came of the last write. Who reports it waits for no disk: said is held for
	// assignments only.
	said    sync.Mutex
	written written
}

// New returns a History that has touched nothing yet, or nil when no bytes are to be
// kept.
func New(cfg Config) *History {
	if cfg.MaxBytes == 0 {
		return nil
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Every = cmp.Or(cfg.Every, time.Minute)
	begun := time.Now()
	return &History{cfg: cfg, ran: func() time.Duration { return time.Since(begun) }, patience: 5 * time.Second}
}

// Add implements flow.Sink: name queries are left out. What the gate dropped is there,
// and is no connection that a policy could be tried on.
func (h *History) Add(r flow.Record) {
	if h == nil {
		return
	}
	k, ok := keyOf(&r)
	if !ok {
		return
	}
	now := h.cfg.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.current(now).add(k, &r) {
		h.leftOut++
	}
}

// current returns the hour that is; the one before waits for its last writing.
func (h *History) current(now time.Time) *hour {
	begin := now.UTC().Truncate(time.Hour)
	if h.hour != nil && h.hour.begin.Equal(begin) {
		return h.hour
	}
	if h.hour != nil {
		h.waiting = append(h.waiting, h.hour)
	}
	for len(h.waiting) > maxWaiting {
		h.leftOut += h.waiting[0].connections
		h.waiting = h.waiting[1:]
	}
	// The name has a random part for a clock that goes back, too.
	h.hour = newHour(begin)
	return h.hour
}

// Run writes news until ctx is done, and then once more. It waits 5 s for that one: a
// disk that hangs does not keep an agent from ending, and the log says so.
func (h *History) Run(ctx context.Context) {
	if h == nil {
		return
	}
	written := make(chan struct{})
	go func() { // its last write may outlive Run, and ends with the process
		defer close(written)
		h.keepWriting(ctx)
	}()
	<-ctx.Done()
	last := time.NewTimer(h.patience)
	defer last.Stop()
	select {
	case <-written:
	case <-last.C:
		h.cfg.Log.Warn("the history of flows is not on disk: what is new since the last write is lost, as the disk does not answer", "waited", h.patience, "dir", h.cfg.Dir)
	}
}

func (h *History) keepWriting(ctx context.Context) {
	h.sweep()
	tick := time.NewTicker(h.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			h.Flush()
		case <-ctx.Done():
			h.Flush()
			return
		}
	}
}

// Flush writes what is not on disk. What cannot be written is kept for the next time,
// and Problem says why.
func (h *History) Flush() {
	h.files.Lock()
	defer h.files.Unlock()
	h.mu.Lock()
	now := h.current(h.cfg.Now()) // an hour ends whether or not there is traffic
	all := append(slices.Clone(h.waiting), now)
	h.mu.Unlock()
	var failed error
	for _, o := range all {
		summaries := h.take(o)
		if len(summaries) == 0 {
			h.done(o)
			continue
		}
		if err := h.write(o.file, summaries); err != nil {
			failed = errors.Join(failed, err)
			h.mu.Lock()
			o.dirty = true
			h.mu.Unlock()
			continue
		}
		h.done(o)
	}
	if !h.trimmed.Equal(now.begin) { // files age where nothing is written, too
		failed = errors.Join(failed, h.trim(now.file))
	}
	h.settle(failed)
}

// take returns what an hour has come to, if that is not on disk.
func (h *History) take(o *hour) []*meshpb.FlowSummary {
	h.mu.Lock()
	dirty := o.dirty
	o.dirty = false // what is added from now on makes it true again
	h.mu.Unlock()
	if !dirty {
		return nil
	}
	return slices.Collect(h.summaries(o))
}

// done forgets an hour that is over and on disk.
func (h *History) done(o *hour) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting = slices.DeleteFunc(h.waiting, func(w *hour) bool { return w == o && !w.dirty })
}

// settle notes what came of a Flush, and says it when it is news.
func (h *History) settle(failed error) {
	var before string
	h.note(func(w *written) {
		before, w.problem = w.problem, ""
		if failed != nil {
			w.failures++
			w.problem = failed.Error()
		}
	})
	switch {
	case failed != nil && before == "":
		h.cfg.Log.Warn("the history of flows is not on disk", "error", failed)
	case failed == nil && before != "":
		h.cfg.Log.Info("the history of flows is on disk again")
	}
}

func (h *History) note(what func(*written)) {
	h.said.Lock()
	defer h.said.Unlock()
	what(&h.written)
}

// Problem says why news are not on disk; "" when they are, or soon will be. It does
// not wait for the disk.
func (h *History) Problem() (problem string) {
	if h == nil {
		return ""
	}
	h.note(func(w *written) { problem = w.problem })
	return problem
}

// Read calls yield with every summary of the hours that ended after since, those in
// memory among them and none that is older than Keep, and returns how much of the past
// there is. Hours come in order;
// of one hour there may be several equal summaries, of the node's former agents.
// It returns yield's error, or ctx's.
func (h *History) Read(ctx context.Context, since time.Time, yield func(*meshpb.FlowSummary) error) (*meshpb.HistoryCoverage, error) {
	if h == nil {
		return nil, ErrNone
	}
	if eldest := h.cfg.Now().Add(-h.cfg.Keep); since.Before(eldest) {
		since = eldest
	}
	h.mu.Lock()
	coverage := &meshpb.HistoryCoverage{LeftOut: h.leftOut}
	mine := map[string]bool{}
	var fresh []*hour
	for _, o := range append(slices.Clone(h.waiting), h.hour) {
		if o == nil || len(o.sums) == 0 {
			continue
		}
		mine[o.file] = true // it is older than what is in memory
		if o.begin.Add(time.Hour).After(since) {
			fresh = append(fresh, o)
		}
	}
	h.mu.Unlock()
	begun := func(s *meshpb.FlowSummary) error {
		if coverage.SinceNs == 0 {
			coverage.SinceNs = s.GetHourNs()
		}
		return yield(s)
	}
	files, err := h.list()
	if err != nil {
		coverage.Damaged = append(coverage.Damaged, err.Error())
	}
	for _, f := range files {
		if mine[f.name] || !f.begin.Add(time.Hour).After(since) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return coverage, err
		}
		damage, err := h.readFile(f, begun)
		if err != nil {
			return coverage, err
		}
		if damage != nil && len(coverage.Damaged) < maxDamaged {
			coverage.Damaged = append(coverage.Damaged, fmt.Sprintf("%s: %v", f.name, damage))
		}
	}
	for _, o := range fresh {
		for s := range h.summaries(o) {
			if err := begun(s); err != nil {
				return coverage, err
			}
		}
	}
	return coverage, nil
}

// maxDamaged bounds the files that a HistoryCoverage names.
const maxDamaged = 16
