// Package accesslog writes what became of requests, one line of JSON each. Lines are put
// together by whoever has carried the request, kept in memory for a moment, and written by
// Run; what a slow disk has no room for is dropped and counted, and never waited for.
//
// A Log is safe for concurrent use, an Entry is not.
package accesslog

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what is logged.
type Config struct {
	// Sample is the share of requests that are logged, from 0 to 1. Those that are answered
	// with 5xx, or with nothing, are logged whatever it is, unless it is 0.
	Sample float64
	// Mask are fields whose values are not written: see Fields. Query is the part of the path
	// from "?" on.
	Mask []string
}

const (
	// maxKept is how many bytes wait to be written, flushEvery how long at most.
	maxKept    = 4 << 20
	flushEvery = 100 * time.Millisecond
	flushFrom  = 64 << 10 // bytes, without waiting
	masked     = "***"
)

// Log is where entries go.
type Log struct {
	every  uint64 // one of so many is logged, by turns
	turn   atomic.Uint64
	mask   [fieldCount]bool
	out    io.Writer
	full   chan struct{}
	lost   atomic.Uint64
	failed atomic.Uint64

	mu   sync.Mutex
	kept []byte
}

// New returns a Log that writes to out; nil when nothing is to be logged. An error names the
// field that there is none of.
func New(out io.Writer, cfg Config) (*Log, error) {
	if math.IsNaN(cfg.Sample) || cfg.Sample < 0 || cfg.Sample > 1 {
		return nil, fmt.Errorf("access log: a share of %v of the requests: want one from 0 to 1", cfg.Sample)
	}
	l := &Log{out: out, full: make(chan struct{}, 1)}
	for _, name := range cfg.Mask {
		i := slices.Index(fieldNames[:], name)
		if i < 0 {
			return nil, fmt.Errorf("access log: mask %q: want some of %s", name, strings.Join(fieldNames[:], ", "))
		}
		l.mask[i] = true
	}
	if cfg.Sample == 0 {
		return nil, nil
	}
	l.every = uint64(math.Round(1 / cfg.Sample))
	return l, nil
}

// Wants reports whether a request that was answered with a status, 0 for none, is to be
// logged. It may be called on a nil Log.
func (l *Log) Wants(status int) bool {
	return l != nil && (status == 0 || status >= 500 || l.turn.Add(1)%l.every == 0)
}

// WantsConnection is Wants of a connection that was passed on as it is, or was refused: those are logged as answers with
// 5xx are.
func (l *Log) WantsConnection(refused bool) bool {
	return l != nil && (refused || l.turn.Add(1)%l.every == 0)
}

// Add logs an entry. It does not wait.
func (l *Log) Add(e *Entry) {
	l.mu.Lock()
	before := len(l.kept)
	if before > maxKept {
		l.mu.Unlock()
		l.lost.Add(1)
		return
	}
	l.kept = l.append(l.kept, e)
	after := len(l.kept)
	l.mu.Unlock()
	if before < flushFrom && after >= flushFrom {
		select {
		case l.full <- struct{}{}:
		default: // it knows already
		}
	}
}

// Lost is how many entries had no room, or could not be written.
func (l *Log) Lost() uint64 {
	if l == nil {
		return 0
	}
	return l.lost.Load() + l.failed.Load()
}

// Run writes until ctx is done, and then what is left. It may be called on a nil Log.
func (l *Log) Run(ctx context.Context) {
	if l == nil {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	var spare []byte
	for {
		select {
		case <-ctx.Done():
			l.flush(spare)
			return
		case <-tick.C:
		case <-l.full:
		}
		spare = l.flush(spare)
	}
}

// flush writes what is kept, and returns its memory for the next time.
func (l *Log) flush(spare []byte) []byte {
	l.mu.Lock()
	lines := l.kept
	l.kept = spare[:0]
	l.mu.Unlock()
	if len(lines) > 0 {
		if _, err := l.out.Write(lines); err != nil {
			l.failed.Add(uint64(strings.Count(string(lines), "\n")))
		}
	}
	return lines
}
