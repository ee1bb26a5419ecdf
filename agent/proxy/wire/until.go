package wire

import (
	"slices"
	"time"
)

// Until looks every 20 ms, and returns when something is so, or the limit is reached.
func Until(limit time.Duration, so func() bool) {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for !so() {
		select {
		case <-poll.C:
		case <-deadline.C:
			return
		}
	}
}

// Disjoint reports whether two lists have nothing in common.
func Disjoint[T comparable](a, b []T) bool {
	in := make(map[T]bool, len(a)) // a pod has up to 20,000 connections
	for _, one := range a {
		in[one] = true
	}
	return !slices.ContainsFunc(b, func(one T) bool { return in[one] })
}
