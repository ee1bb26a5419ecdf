package flow

import (
	"fmt"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestAuditedIsBounded: however many AUDIT policies match, a record names the first few.
func TestAuditedIsBounded(t *testing.T) {
	var keys []mesh.Key
	var want []string
	for i := range 2 * MaxNames {
		var r Record
		r.Decide(mesh.Decision{Rule: -1, Audited: keys})
		if got := r.Audited.List(); !slices.Equal(got, want[:min(i, MaxNames)]) || NamesIn(got) != r.Audited {
			t.Errorf("of %d policies %q are named", i, got)
		}
		keys = append(keys, mesh.Key{Namespace: "shop", Name: fmt.Sprint("p", i)})
		want = append(want, fmt.Sprint("shop/p", i))
	}
}

// TestAuditsAreCounted: of what is let in and what is refused.
func TestAuditsAreCounted(t *testing.T) {
	m := NewMetrics(prometheus.NewRegistry())
	for _, protocol := range []uint8{0, ProtocolUDP} {
		for verdict, audited := range map[mesh.Verdict]Names{mesh.VerdictAudit: "shop/all", mesh.VerdictDeny: "shop/all", mesh.VerdictAllow: ""} {
			m.Observe(&Record{Direction: DirectionInbound, Verdict: verdict, Audited: audited, Protocol: protocol})
		}
	}
	if got := testutil.ToFloat64(m.policyAudits); got != 4 {
		t.Errorf("%v are counted, want 4", got)
	}
}
