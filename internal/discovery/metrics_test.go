package discovery

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestMetricsSayWhatStatusSays(t *testing.T) {
	o := startOperator(t, nil)
	o.Publish(snapshotOf(t, viewOf(t, shape{workloads: 3, nodes: twoNodes}), 7))
	a := startAgent(t, o, "n1", nil)
	a.awaitEpoch(t, 7)
	want := `# HELP heddle_discovery_epoch Epoch of the applied configuration.
# TYPE heddle_discovery_epoch gauge
heddle_discovery_epoch 7
# HELP heddle_discovery_resources Resources in the applied configuration.
# TYPE heddle_discovery_resources gauge
heddle_discovery_resources 4
`
	if err := testutil.CollectAndCompare(a.Client, strings.NewReader(want), "heddle_discovery_epoch", "heddle_discovery_resources"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.CollectAndLint(a.Client); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}
