package agent

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/flow/history"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestLastRecords: what the parts record when they have been told to end is on disk,
// and what the kernel dropped until then, which waits to be counted.
func TestLastRecords(t *testing.T) {
	cfg := history.Config{Dir: t.TempDir(), Bounds: history.DefaultBounds(), Log: slog.New(slog.DiscardHandler)}
	p := &parts{history: history.New(cfg)}
	recorder := &flow.Recorder{Node: "n1", Ring: flow.NewRing(16), Metrics: flow.NewMetrics(prometheus.NewRegistry()), History: p.history}
	p.drops = flow.NewDrops(recorder)
	end := p.record(t.Context())
	db := mesh.Key{Namespace: "shop", Name: "db"}
	p.drops.Add(db, flow.Record{Start: time.Now(), Destination: flow.Endpoint{Workload: db}, Reason: mesh.ReasonKernelPlaintextInbound})
	recorder.Add(flow.Record{Start: time.Now(), Direction: flow.DirectionInbound, Destination: flow.Endpoint{Workload: db}, Reason: mesh.ReasonPolicyAllow})
	end()
	found := map[string]uint64{}
	count := func(s *meshpb.FlowSummary) error { found[s.GetReason()] += s.GetCount(); return nil }
	if _, err := history.New(cfg).Read(t.Context(), time.Time{}, count); err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found[mesh.ReasonKernelPlaintextInbound.String()] != 1 || found[mesh.ReasonPolicyAllow.String()] != 1 {
		t.Errorf("on disk: %v", found)
	}
}
