package result

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Verdict is what a summary of Heddle's says of its metric.
type Verdict string

// Verdicts, from best to worst.
const (
	Stretched Verdict = "stretch"
	Held      Verdict = "holds"
	Better    Verdict = "better" // than Envoy; there is no floor
	Unsure    Verdict = "unsure" // by the median one of the above, and not by all of the interval
	Missed    Verdict = "MISSED" // better than Envoy, but not by the floor
	Lost      Verdict = "LOST"   // worse than Envoy, or beyond the bound
	Failed    Verdict = "ERRORS" // a subject with errors does not win
	Unknown   Verdict = ""
)

// Judge says what a summary is worth, if it is a subject's that carries
// connections; Envoy is not judged by itself. What is good is so with all of its
// interval: the worse end of it is judged as the median is. What is bad is so by the
// median alone.
func Judge(m Metric, s Summary) Verdict {
	if s.Subject == "none" || s.Subject == "envoy" {
		return Unknown
	}
	if s.Errors > 0 {
		return Failed
	}
	wins := func(v Verdict) bool { return slices.Contains([]Verdict{Stretched, Held, Better}, v) }
	verdict := judge(m, s.Median, s.ToEnvoy)
	if !wins(verdict) {
		return verdict
	}
	if sure := judge(m, worse(m, s.Between), worseRatio(m, s)); wins(sure) {
		return sure
	}
	return Unsure
}

// worse is the end of an interval that is further from what is wanted.
func worse(m Metric, between [2]float64) float64 {
	if m.LessIsBetter {
		return between[1]
	}
	return between[0]
}

// worseRatio is the same of the ratio to Envoy; nil without one.
func worseRatio(m Metric, s Summary) *float64 {
	if s.ToEnvoyBetween == nil {
		return s.ToEnvoy
	}
	ratio := worse(m, *s.ToEnvoyBetween)
	return &ratio
}

// judge says what a value is worth that comes to so much of Envoy's; nil where that was not measured.
func judge(m Metric, value float64, toEnvoy *float64) Verdict {
	reaches := func(bound float64) bool {
		if m.LessIsBetter {
			return *toEnvoy <= bound
		}
		return *toEnvoy >= bound
	}
	switch {
	case m.Most > 0 && value > m.Most, value < m.Least:
		return Lost
	case m.Most > 0, m.Least > 0:
		return Held
	case toEnvoy == nil:
		return Unknown
	case m.Stretch > 0 && reaches(m.Stretch):
		return Stretched
	case m.Floor > 0 && reaches(m.Floor):
		return Held
	case !reaches(1):
		return Lost
	case m.Floor > 0:
		return Missed
	}
	return Better
}

// lines are the cells of the table, one line for each summary.
func lines(all []Summary) [][]string {
	cells := [][]string{{"metric", "unit", "subject", "median", "interval", "n", "to Envoy", "its interval", "to no mesh", "floor", "verdict", "errors"}}
	last := ""
	for _, s := range all {
		m := metric(s.Metric)
		line := []string{"", "", s.Subject, number(s.Median), number(s.Between[0]) + "–" + number(s.Between[1]), fmt.Sprint(s.N),
			ratio(s.ToEnvoy), "", ratio(s.ToNone), "", string(Judge(m, s)), ""}
		if s.Metric != last {
			line[0], line[1] = m.Title, m.Unit
			last = s.Metric
		}
		if s.ToEnvoyBetween != nil && s.Subject != "envoy" {
			line[7] = fmt.Sprintf("%.2f–%.2f", s.ToEnvoyBetween[0], s.ToEnvoyBetween[1])
		}
		if s.Subject == "heddle" || s.Subject == "reference" {
			line[9] = floor(m)
		}
		if s.Errors > 0 {
			line[11] = fmt.Sprint(s.Errors)
		}
		cells = append(cells, line)
	}
	return cells
}

func metric(id string) Metric {
	for _, m := range slices.Concat(Metrics(), WaypointMetrics()) {
		if m.ID == id {
			return m
		}
	}
	return Metric{ID: id, Title: id}
}

func floor(m Metric) string {
	sign := "≥"
	if m.LessIsBetter {
		sign = "≤"
	}
	switch {
	case m.Floor > 0 && m.Stretch > 0:
		return fmt.Sprintf("%s %v (%v) × Envoy", sign, m.Floor, m.Stretch)
	case m.Floor > 0:
		return fmt.Sprintf("%s %v × Envoy", sign, m.Floor)
	case m.Most > 0:
		return fmt.Sprintf("≤ %v %s", m.Most, m.Unit)
	case m.Least > 0:
		return fmt.Sprintf("≥ %v %s", m.Least, m.Unit)
	}
	return ""
}

func ratio(r *float64) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("%.2f", *r)
}

// number shows three digits or more.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// Text is the table for a terminal.
func Text(all []Summary) string {
	cells := lines(all)
	widths := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, cell := range line {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for _, line := range cells {
		for i, cell := range line {
			fmt.Fprintf(&b, "%s%s  ", cell, strings.Repeat(" ", widths[i]-len([]rune(cell))))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Markdown is the table for a document.
func Markdown(all []Summary) string {
	var b strings.Builder
	for i, line := range lines(all) {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(line, " | "))
		if i == 0 {
			fmt.Fprintf(&b, "|%s\n", strings.Repeat("---|", len(line)))
		}
	}
	return b.String()
}
