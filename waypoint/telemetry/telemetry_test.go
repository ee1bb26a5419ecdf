package telemetry_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestDocumentedMetrics compares docs/metrics.md with what is registered.
func TestDocumentedMetrics(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(heddle_waypoint_[a-z_]+)` \\| ([a-z]+) \\| ([a-z, ]*) *\\|").FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = row[2] + " " + strings.ReplaceAll(strings.TrimSpace(row[3]), " ", "")
	}
	reg := prometheus.NewRegistry()
	telemetry.New(reg, []string{"NoHeader"}, func() float64 { return 0 })
	reg.MustRegister(telemetry.BuildInfo("dev"))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	registered := map[string]string{}
	for _, f := range families {
		var labels []string
		for _, m := range f.GetMetric() {
			labels = nil
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName())
				if v := l.GetValue(); l.GetName() != "code" && !strings.Contains(string(page), "`"+v+"`") {
					t.Errorf("docs/metrics.md lacks the value %s of %s", v, l.GetName())
				}
			}
		}
		registered[f.GetName()] = strings.ToLower(f.GetType().String()) + " " + strings.Join(labels, ",")
	}
	if d := cmp.Diff(documented, registered); d != "" {
		t.Errorf("docs/metrics.md (-) and what is registered (+):\n%s", d)
	}
}

// TestSeriesAreBounded: pairs beyond the bound are counted together, and counting allocates nothing.
func TestSeriesAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := telemetry.New(reg, nil, func() float64 { return 0 })
	for i := range telemetry.MaxSeries + 100 {
		m.Series("r", fmt.Sprint(i)).Ended(200, time.Millisecond)
	}
	if m.Series("r", "0") == m.Series("r", "1") || m.Series("r", fmt.Sprint(telemetry.MaxSeries+50)) != m.Series(telemetry.Other, telemetry.Other) {
		t.Error("series are not bounded, or not kept apart")
	}
	one := m.Series("r", "0")
	if n := testing.AllocsPerRun(100, func() { one.Ended(503, time.Second); one.Ended(0, 0); one.Ended(999, 0) }); n > 0 {
		t.Errorf("counting allocates %v times", n)
	}
}

// TestPassagesAreBounded: so are those of connections, and pairs of routes that are gone make room for others.
func TestPassagesAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := telemetry.New(reg, nil, func() float64 { return 0 })
	m.Use("first")
	other := m.Passages(telemetry.Other, telemetry.Other)
	for i := range telemetry.MaxSeries + 100 {
		m.Passages("first", fmt.Sprint(i)).Ended(i%2 == 0)
	}
	if m.Passages("first", "0") == m.Passages("first", "1") || m.Passages("first", fmt.Sprint(telemetry.MaxSeries+50)) != other {
		t.Error("they are not bounded, or not kept apart")
	}
	m.Use("second")
	if m.Passages("second", "0") == other || m.Passages(telemetry.Other, telemetry.Other) != other {
		t.Error("there is no room for routes that came later, or what all others are counted by is gone")
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if n := len(f.GetMetric()); f.GetName() == "heddle_waypoint_passages_total" && n > 2*(telemetry.MaxSeries+1) {
			t.Errorf("%d series are told", n)
		}
	}
}

// TestSeriesAreForgotten: pairs of routes that are gone make room for those of others; those that are in use, and those of no
// route, stay.
func TestSeriesAreForgotten(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := telemetry.New(reg, nil, func() float64 { return 0 })
	none, other := m.Series("none", "none"), m.Series(telemetry.Other, telemetry.Other)
	m.Use("first")
	stays := m.Series("stays", "b")
	stays.Ended(200, 0)
	for i := range telemetry.MaxSeries {
		m.Series("first", fmt.Sprint(i))
	}
	m.Use("second")
	m.Use("first") // a loop that is late changes nothing
	if m.Series("stays", "b") != stays {
		t.Error("a pair that is looked up again is another one")
	}
	for i := range telemetry.MaxSeries - 10 {
		if m.Series("second", fmt.Sprint(i)) == other {
			t.Fatalf("there is no room for pair %d, and %d are gone", i, telemetry.MaxSeries)
		}
	}
	if m.Series("stays", "b") != stays || m.Series("none", "none") != none || m.Series(telemetry.Other, telemetry.Other) != other {
		t.Error("a pair that is in use was forgotten")
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if n := len(f.GetMetric()); f.GetName() == "heddle_waypoint_request_seconds" && n > telemetry.MaxSeries+1 {
			t.Errorf("%d pairs are told, more than %d", n, telemetry.MaxSeries+1)
		}
	}
}
