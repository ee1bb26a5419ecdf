package flow

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func gauges() Gauges {
	return Gauges{
		Certificates:      func() map[string]time.Duration { return map[string]time.Duration{"spiffe://m/ns/a/sa/b": time.Hour} },
		Pods:              func() map[string]int { return map[string]int{"enrolled": 2} },
		OpenConnections:   func() int { return 3 },
		OperatorConnected: func() bool { return true },
		UnreportedDrops:   func() uint64 { return 4 },
		EnrolmentFailures: func() uint64 { return 5 },
	}
}

// everything registers all metrics and gives each vector a series.
func everything(t *testing.T) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	rec := &Recorder{Node: "one", Ring: NewRing(8), Metrics: NewMetrics(reg)}
	RegisterRing(reg, rec.Ring)
	RegisterGauges(reg, gauges())
	rec.Add(sample())
	rec.Add(Record{Direction: DirectionInbound, Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Protocol: 17, Packets: 1})
	return reg
}

func TestRecorderCounts(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	rec := &Recorder{Node: "one", Ring: NewRing(8), Metrics: NewMetrics(reg)}
	one := sample()
	one.Node = ""
	rec.Add(one)
	rec.Add(Record{Direction: DirectionKernel, Reason: mesh.ReasonKernelUDP, Packets: 9})
	rec.Add(Record{Direction: DirectionInbound, Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Protocol: 17, Packets: 7})
	if got := rec.Ring.Last(3, Filter{}); got[0].Node != "one" || got[1].Node != "one" {
		t.Error("records without a node's name")
	}
	want := `
# HELP heddle_bytes_total Payload bytes of finished connections, both ways together.
# TYPE heddle_bytes_total counter
heddle_bytes_total{direction="outbound",transport="tunnel"} 30
# HELP heddle_connections_total Finished and refused connections.
# TYPE heddle_connections_total counter
heddle_connections_total{direction="outbound",reason="PolicyAllow",verdict="allow"} 1
# HELP heddle_datagrams_total Datagrams (UDP) that the gate let pass by a policy about them, or out of the mesh by its egress.udp.
# TYPE heddle_datagrams_total counter
heddle_datagrams_total{direction="inbound"} 7
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "heddle_bytes_total", "heddle_connections_total", "heddle_datagrams_total"); err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(rec.Metrics.drops.WithLabelValues("KernelUDP")); got != 9 {
		t.Errorf("counted %v drops, want 9", got)
	}
}

// TestDocumentedMetrics compares docs/metrics.md with the registry: names,
// types and labels, both ways.
func TestDocumentedMetrics(t *testing.T) {
	data, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `(heddle_[a-z_]+)` \\| ([a-z]+) \\| ([a-z, ]*) *\\|")
	flows := strings.Split(string(data), "<!-- end of what internal/flow registers -->")[0]
	for _, m := range row.FindAllStringSubmatch(flows, -1) {
		documented[m[1]] = m[2] + "(" + strings.ReplaceAll(strings.TrimSpace(m[3]), " ", "") + ")"
	}
	families, err := everything(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	registered := map[string]string{}
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		registered[f.GetName()] = strings.ToLower(f.GetType().String()) + "(" + strings.Join(labels, ",") + ")"
	}
	for name, shape := range registered {
		if documented[name] != shape {
			t.Errorf("docs/metrics.md has %s as %q, it is %q", name, documented[name], shape)
		}
	}
	for name := range documented {
		if registered[name] == "" {
			t.Errorf("docs/metrics.md has %s, which does not exist", name)
		}
	}
}

func TestMetricsAreWellNamed(t *testing.T) {
	problems, err := testutil.GatherAndLint(everything(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestSeriesOfUnknownValues: a record that came from a newer agent is counted
// under its own labels.
func TestSeriesOfUnknownValues(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	newer := mesh.Reason(len(mesh.Reasons()))
	for _, reason := range []mesh.Reason{newer, newer, mesh.ReasonUnknown} {
		m.Observe(&Record{Direction: DirectionInbound, Verdict: mesh.VerdictAllow, Reason: reason})
	}
	for reason, want := range map[mesh.Reason]float64{newer: 2, mesh.ReasonUnknown: 1} {
		if got := testutil.ToFloat64(m.connections.find("inbound", "allow", reason.String())); got != want {
			t.Errorf("reason %s: %v connections, want %v", reason, got, want)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	m := NewMetrics(prometheus.NewRegistry())
	r := Record{Direction: DirectionInbound, Verdict: mesh.VerdictAllow, Wire: Wire{Transport: TransportTunnel}, Duration: time.Millisecond, Timing: Timing{Connect: time.Millisecond}}
	b.ReportAllocs()
	for b.Loop() {
		m.Observe(&r)
	}
}
