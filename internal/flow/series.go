package flow

import (
	"fmt"
	"sync/atomic"
)

// series are the time series of a metric whose labels are closed enums, by the
// numbers of their values: to find one by its labels costs more than to count in it.
// Those that were never asked for do not exist. It is safe for concurrent use.
type series[T any] struct {
	find   func(labels ...string) T
	labels []enum
	known  []atomic.Pointer[T]
}

// enum is a label's values: n of them, from 0 on.
type enum struct {
	n    int
	name func(int) string
}

func enumOf[V interface {
	~uint8
	fmt.Stringer
}](values []V) enum {
	return enum{len(values), func(v int) string { return V(v).String() }}
}

func newSeries[T any](find func(labels ...string) T, labels ...enum) *series[T] {
	n := 1
	for _, l := range labels {
		n *= l.n
	}
	return &series[T]{find: find, labels: labels, known: make([]atomic.Pointer[T], n)}
}

// of returns the series of a value for each label. One that the enum does not have,
// as in a record that came from a newer agent, is looked up each time.
func (s *series[T]) of(values ...int) T {
	at := 0
	for i, v := range values {
		if v >= s.labels[i].n {
			return s.lookUp(values)
		}
		at = at*s.labels[i].n + v
	}
	if known := s.known[at].Load(); known != nil {
		return *known
	}
	found := s.lookUp(values)
	s.known[at].Store(&found)
	return found
}

func (s *series[T]) lookUp(values []int) T {
	labels := make([]string, len(values))
	for i, v := range values {
		labels[i] = s.labels[i].name(v)
	}
	return s.find(labels...)
}
