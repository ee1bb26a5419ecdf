// Package result turns samples into what is shown and kept: medians with
// intervals, ratios of paired runs, a table, a document and bench.json. It
// measures nothing and its numbers come from its rows alone.
package result

import (
	"cmp"
	"math"
	"slices"
)

// Row is one measured value.
type Row struct {
	Repeat  int     `json:"repeat"`
	Subject string  `json:"subject"`
	Metric  string  `json:"metric"`
	Value   float64 `json:"value"`
	Errors  int     `json:"errors,omitempty"`
}

// Summary is what the repeats of one metric say of one subject.
type Summary struct {
	Subject string     `json:"subject"`
	Metric  string     `json:"metric"`
	Unit    string     `json:"unit"`
	Median  float64    `json:"median"`
	Between [2]float64 `json:"interval"`
	N       int        `json:"n"`
	// ToEnvoy is the median of the ratios within each repeat; nil where Envoy
	// was not measured.
	ToEnvoy        *float64    `json:"ratio_to_envoy"`
	ToEnvoyBetween *[2]float64 `json:"ratio_to_envoy_interval,omitempty"`
	ToNone         *float64    `json:"ratio_to_none,omitempty"`
	// Errors counts failed requests, connections and runs in all repeats.
	Errors int `json:"errors"`
	// Congestion is the congestion control that TCP went by in all namespaces.
	Congestion string `json:"congestion_control,omitempty"`
}

// Summarise orders summaries by metric as Metrics and WaypointMetrics do, and by subject as given.
func Summarise(rows []Row, subjects []string) []Summary {
	var all []Summary
	for _, m := range slices.Concat(Metrics(), WaypointMetrics()) {
		for _, subject := range subjects {
			values, errors := valuesOf(rows, subject, m.ID)
			if len(values) == 0 && errors == 0 {
				continue
			}
			s := Summary{Subject: subject, Metric: m.ID, Unit: m.Unit, N: len(values), Errors: errors}
			if len(values) > 0 {
				s.Median, s.Between = medianOf(values)
			}
			if ratios := paired(rows, subject, "envoy", m.ID); len(ratios) > 0 {
				median, between := medianOf(ratios)
				s.ToEnvoy, s.ToEnvoyBetween = &median, &between
			}
			if ratios := paired(rows, subject, "none", m.ID); len(ratios) > 0 {
				median, _ := medianOf(ratios)
				s.ToNone = &median
			}
			all = append(all, s)
		}
	}
	return all
}

// valuesOf returns a subject's values of a metric. A row that is all error, with
// a value that is no number, is only counted.
func valuesOf(rows []Row, subject, metric string) (values []float64, errors int) {
	for _, r := range rows {
		if r.Subject == subject && r.Metric == metric {
			errors += r.Errors
			if valid(r.Value) {
				values = append(values, r.Value)
			}
		}
	}
	return values, errors
}

func valid(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) && v > 0 }

// paired returns the ratios of a subject to another within each repeat that has
// both.
func paired(rows []Row, subject, to, metric string) []float64 {
	base := map[int]float64{}
	for _, r := range rows {
		if r.Subject == to && r.Metric == metric && valid(r.Value) {
			base[r.Repeat] = r.Value
		}
	}
	var ratios []float64
	for _, r := range rows {
		if b, ok := base[r.Repeat]; ok && r.Subject == subject && r.Metric == metric && valid(r.Value) {
			ratios = append(ratios, r.Value/b)
		}
	}
	return ratios
}

// medianOf returns the median and an interval around it that needs no
// assumption on the values' distribution: from the k-th smallest to the k-th
// largest, for the largest k that covers the median with 90 % at least. With
// fewer than five values no k does, and it is their range.
func medianOf(values []float64) (median float64, between [2]float64) {
	sorted := slices.SortedFunc(slices.Values(values), cmp.Compare)
	n := len(sorted)
	median = sorted[n/2]
	if n%2 == 0 {
		median = (sorted[n/2-1] + sorted[n/2]) / 2
	}
	k := 1
	for coverage(n, k+1) >= 0.9 {
		k++
	}
	return median, [2]float64{sorted[k-1], sorted[n-k]}
}

// coverage is the probability that the median of the distribution lies between
// the k-th smallest and the k-th largest of n values: each value is on either
// side of it by the toss of a coin.
func coverage(n, k int) float64 {
	if 2*k > n {
		return 0
	}
	outside, ways := 0.0, 1.0
	for i := range k {
		outside += ways
		ways = ways * float64(n-i) / float64(i+1)
	}
	return 1 - 2*outside/math.Pow(2, float64(n))
}
