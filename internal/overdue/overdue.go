// Package overdue keeps what a program waits for from being silent, and what the
// kernel does for it from being waited for without end. It is for the few steps of
// a start that an operator of a machine may have to look into; it knows nothing of
// what they are.
//
// Its functions are safe for concurrent use.
package overdue

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// first is when a wait is spoken of, and most how long is kept silent from then
	// on: the pauses double in between.
	first, most = time.Second, 30 * time.Second
	// grace is how long a step that its context has ended may take to notice.
	grace = time.Second
)

// Say logs that something is waited for, from a second on and ever less often, until
// stop is called, which returns when nothing is logged any more. what completes the
// sentence "waiting ...". details, unless nil, returns slog's pairs of keys and
// values as of now; it must return at once, and is not called after stop has returned.
func Say(log *slog.Logger, what string, details func() []any) (stop func()) {
	begun, over, ended := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTimer(first)
		defer tick.Stop()
		for pause := first; ; pause = min(2*pause, most) {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			all := []any{"for", time.Since(begun).Round(100 * time.Millisecond)}
			if details != nil {
				all = append(all, details()...)
			}
			log.Warn("waiting "+what, all...)
			tick.Reset(pause)
		}
	}()
	return sync.OnceFunc(func() { close(over); <-ended })
}

// Step is something that is done by system calls which nothing can interrupt.
type Step struct {
	// What is done, as it completes the sentence "waiting ...".
	What string
	// Within bounds it; 0 leaves that to its context.
	Within time.Duration
	// Remedy says what to do when it was not done in time.
	Remedy string
}

// Do runs fn on a goroutine of its own, and returns what it returned, or an error
// when it has not returned Within, or a second after ctx was done. In between it is
// logged what is waited for, and where in the kernel this process's threads are.
//
// After such an error fn goes on, because it cannot be stopped; what it makes
// is given to drop, unless that is nil. So who gets one should end the process.
func Do[T any](ctx context.Context, log *slog.Logger, s Step, fn func() (T, error), drop func(T)) (T, error) {
	ended := make(chan outcome[T], 1)
	go func() {
		value, err := fn()
		ended <- outcome[T]{value, err}
	}()
	defer Say(log, s.What, kernelWaits)()
	var late <-chan time.Time
	if s.Within > 0 {
		bound := time.NewTimer(s.Within)
		defer bound.Stop()
		late = bound.C
	}
	var none T
	select {
	case o := <-ended:
		return o.value, o.err
	case <-late:
		go abandon(ended, drop)
		return none, fmt.Errorf("waited %v %s: it is not done; remedy: %s", s.Within, s.What, s.Remedy)
	case <-ctx.Done():
	}
	select {
	case o := <-ended:
		return o.value, o.err
	case <-time.After(grace):
		go abandon(ended, drop)
		return none, fmt.Errorf("stopped waiting %s: %w", s.What, context.Cause(ctx))
	}
}

// outcome is what a step returned.
type outcome[T any] struct {
	value T
	err   error
}

// abandon drops what a step makes after all.
func abandon[T any](ended <-chan outcome[T], drop func(T)) {
	if o := <-ended; o.err == nil && drop != nil {
		drop(o.value)
	}
}
