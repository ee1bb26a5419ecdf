// Package cutoff reports what enrolled namespaces of a cluster would refuse, beside what else
// is not well of it.
package cutoff

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// Check reports what enrolled namespaces of a cluster would refuse, as far as its user may read it.
func Check(ctx context.Context, c analyze.Lister, r *health.Report) error {
	objects, err := analyze.FromCluster(ctx, c)
	if apierrors.IsForbidden(err) {
		r.Unseen("what is cut off", err)
		return nil
	}
	if err != nil {
		return err
	}
	found, err := objects.Analyze("")
	for _, f := range found {
		if f.Kind == analyze.KindOtherMesh && strings.HasPrefix(f.Object, analyze.ObjectNamespace) {
			continue // which preflight has, with those of meshes that are gone
		}
		if f.Warning { // it may be as it should be, and nobody could say so
			r.Good("cluster", "warning", "%s, in namespace %s: %s", f.Object, f.Namespace, f.Detail)
			continue
		}
		r.Bad("cluster", f.Object, f.Detail, fmt.Sprintf("%s; `heddle analyze -n %s` prints it", f.Remedy, f.Namespace))
	}
	return err
}
