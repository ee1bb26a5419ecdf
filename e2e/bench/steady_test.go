package main

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/measure"
)

// TestSteadied has a hypervisor take shares of measurements of 20 ms.
func TestSteadied(t *testing.T) {
	const lasts = 20 * time.Millisecond
	refused := errors.New("refused")
	for _, c := range []struct {
		name   string
		brief  bool
		shares []float64 // what is stolen from each
		errors []int
		err    error // of the second
		want   float64
		again  int
	}{
		{"undisturbed", true, []float64{0, 0.5}, nil, nil, 0, 0},
		{"disturbed once", true, []float64{0.5, 0}, nil, nil, 1, 1},
		{"disturbed always", true, []float64{0.5, 0.2, 0.3}, nil, nil, 1, 2},
		{"not brief", false, []float64{0.5, 0}, nil, nil, 0, 0},
		{"an error counts", true, []float64{0.5, 0}, []int{1, 0}, nil, 0, 0},
		{"a later error counts", true, []float64{0.2, 0.5, 0}, []int{0, 1, 0}, nil, 1, 1},
		{"a failure counts", true, []float64{0.2, 0.5, 0}, nil, refused, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stolen time.Duration
			s := &steadied{stolen: func() (time.Duration, error) { return stolen, nil }}
			n := -1
			samples, err := s.run(c.brief, func() ([]measure.Sample, error) {
				n++
				began := time.Now()
				time.Sleep(lasts)
				stolen += time.Duration(c.shares[n] * float64(time.Since(began)) * float64(runtime.NumCPU()))
				sample := measure.Sample{Metric: "p99", Value: float64(n)}
				if c.errors != nil {
					sample.Errors = c.errors[n]
				}
				if c.err != nil && n == 1 {
					return []measure.Sample{sample}, c.err
				}
				return []measure.Sample{sample}, nil
			})
			if !errors.Is(err, c.err) || len(samples) != 1 || samples[0].Value != c.want || s.again != c.again {
				t.Errorf("%v, %v after %d again, want %v, %v after %d", samples, err, s.again, c.want, c.err, c.again)
			}
		})
	}
}

func TestSteadiedSays(t *testing.T) {
	s := &steadied{}
	if s.String() != "not looked at" {
		t.Errorf("of nothing: %s", s)
	}
	s.shares, s.again = []float64{0.001, 0.05, 0.01}, 2
	if said := s.String(); !strings.Contains(said, "1.0 % of a measurement") || !strings.Contains(said, "5 % at most; 1 of 3 counted with more than 1 %, after 2") {
		t.Errorf("it says: %s", said)
	}
}
