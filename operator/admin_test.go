package operator

import (
	"slices"
	"testing"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/operator/publish"
)

// TestRefusalsAreSaidApart: and among the warnings, for a command line of the version
// before.
func TestRefusalsAreSaidApart(t *testing.T) {
	refused, warned := &kube.Problem{Object: "Pod shop/web", Text: "is refused"}, &kube.Problem{Object: "Service shop/web", Text: "picks nobody"}
	c := clusterConfiguration(publish.Outcome{Refused: []*kube.Problem{refused}, Warnings: []*kube.Problem{warned}})
	if !slices.Equal(c.Refusals, []string{refused.Error()}) || !slices.Equal(c.Warnings, []string{refused.Error(), warned.Error()}) || len(c.Problems) > 0 {
		t.Errorf("%v", c)
	}
}
