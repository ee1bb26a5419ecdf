package health

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestNoNodeIsNotHealthy: a selector that selects nothing gives a DaemonSet without pods,
// of which all are ready.
func TestNoNodeIsNotHealthy(t *testing.T) {
	for _, c := range []struct {
		observed, desired, updated, available int64
		says                                  string
	}{
		{3, 0, 0, 0, "agent.nodeSelector selects none"},
		{2, 0, 0, 0, "not looked at yet"},
		{3, 2, 2, 1, "of 2 nodes"},
		{3, 2, 2, 2, ""},
	} {
		lack := LackOfDaemonSet(&unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"generation": int64(3)}, "status": map[string]any{
			"observedGeneration": c.observed, "desiredNumberScheduled": c.desired, "updatedNumberScheduled": c.updated, "numberAvailable": c.available}}})
		if !strings.Contains(lack, c.says) || c.says == "" && lack != "" {
			t.Errorf("%+v: %q", c, lack)
		}
	}
}
