// Package gatewayapi brings the definitions of the Gateway API to a cluster, and says
// whether they are there. They are the cluster's, not Heddle's: brought when that is asked
// for, never in place of newer ones, and left when Heddle goes.
package gatewayapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/manifests"
)

const (
	gatewayGroup = "gateway.networking.k8s.io"
	// bundleVersion is the annotation by which definitions say of which release they are,
	// channel which of its channels.
	bundleVersion = gatewayGroup + "/bundle-version"
	channel       = gatewayGroup + "/channel"
)

// leastRelease is the first that has all kinds that waypoints need, in a version that is read.
func leastRelease() release { return release{1, 1, 0} }

// spare reports whether waypoints do without a kind: it came later, and whoever has no such routes does not miss it.
func spare(resource string) bool { return resource == "tlsroutes" || resource == "tcproutes" }

func definition() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}
}

// Cluster is what is asked, and written.
type Cluster struct {
	// Get returns an object, or nil when it, or its kind, is not there; List those of a kind
	// by a label selector; Bring applies one, and says what became of it.
	Get   func(ctx context.Context, kind schema.GroupVersionKind, namespace, name string) (*unstructured.Unstructured, error)
	List  func(ctx context.Context, kind schema.GroupVersionKind, namespace, selector string) ([]unstructured.Unstructured, error)
	Bring func(context.Context, *unstructured.Unstructured) error
}

// release is a version of the Gateway API, such as v1.6.3.
type release [3]int

func releaseOf(o *unstructured.Unstructured) (r release, known bool) {
	_, err := fmt.Sscanf(o.GetAnnotations()[bundleVersion], "v%d.%d.%d", &r[0], &r[1], &r[2])
	return r, err == nil
}

func (r release) String() string { return fmt.Sprintf("v%d.%d.%d", r[0], r[1], r[2]) }

// Definitions are those that the program carries.
func Definitions() ([]*unstructured.Unstructured, error) {
	entries, err := manifests.GatewayAPI.ReadDir("gateway-api")
	if err != nil {
		return nil, fmt.Errorf("read the Gateway API's definitions: %w", err)
	}
	var files []chart.File
	for _, entry := range entries {
		text, err := manifests.GatewayAPI.ReadFile("gateway-api/" + entry.Name())
		if err != nil {
			return nil, fmt.Errorf("read the Gateway API's definitions: %w", err)
		}
		files = append(files, chart.File{Name: entry.Name(), Text: text})
	}
	return chart.Objects(files...)
}

// Apply brings those of the definitions that are not there, or are older. One of another
// channel, or of an unknown release, is somebody's choice, and left as it is.
func (c Cluster) Apply(ctx context.Context, say func(format string, args ...any)) error {
	all, err := Definitions()
	if err != nil {
		return err
	}
	for _, o := range all {
		have, err := c.Get(ctx, definition(), "", o.GetName())
		if err != nil {
			return err
		}
		if have != nil {
			ours, _ := releaseOf(o)
			theirs, known := releaseOf(have)
			if !known || have.GetAnnotations()[channel] != o.GetAnnotations()[channel] || slices.Compare(theirs[:], ours[:]) >= 0 {
				say("%s %s: left as it is, %s of channel %s", o.GetKind(), o.GetName(), have.GetAnnotations()[bundleVersion], have.GetAnnotations()[channel])
				continue
			}
		}
		if err := c.Bring(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// Check says whether the cluster has what waypoints are asked for by, and what is amiss with
// it where they are used.
func (c Cluster) Check(ctx context.Context, part string, r *health.Report) error {
	const name, remedy = "gateway API", "heddle install --gateway-api"
	used, err := c.namesWaypoints(ctx)
	if err != nil {
		return err
	}
	var missing, old []string
	least := leastRelease()
	newest := release{}
	all, err := Definitions()
	if err != nil {
		return err
	}
	for _, o := range all {
		have, err := c.Get(ctx, definition(), "", o.GetName())
		if err != nil {
			return err
		}
		resource, _, _ := strings.Cut(o.GetName(), ".")
		switch {
		case spare(resource):
		case have == nil:
			missing = append(missing, resource)
		default:
			is, known := releaseOf(have)
			if known && slices.Compare(is[:], least[:]) < 0 {
				old = append(old, resource+" "+is.String())
			}
			newest = slices.MaxFunc([]release{newest, is}, func(a, b release) int { return slices.Compare(a[:], b[:]) })
		}
	}
	switch {
	case len(missing) == 0 && len(old) == 0:
		r.Good(part, name, "%s", newest)
	case len(used) == 0:
		r.Good(part, name, "not there, or not all of it: needed for waypoints, which nothing names (%s brings it)", remedy)
	case len(missing) > 0:
		r.Bad(part, name, fmt.Sprintf("%s: not there, and a waypoint is named by %s", strings.Join(missing, ", "), used[0]), remedy)
	default:
		r.Bad(part, name, fmt.Sprintf("%s: too old, before %s, and a waypoint is named by %s", strings.Join(old, ", "), least, used[0]), remedy)
	}
	return nil
}

// namesWaypoints returns the namespaces and services whose label names a waypoint.
func (c Cluster) namesWaypoints(ctx context.Context) (names []string, err error) {
	for _, kind := range []string{"Namespace", "Service"} {
		objects, err := c.List(ctx, schema.GroupVersionKind{Version: "v1", Kind: kind}, "", v1alpha1.LabelWaypoint+","+v1alpha1.LabelWaypoint+"!="+v1alpha1.WaypointNone)
		if err != nil {
			return nil, err
		}
		for i := range objects {
			names = append(names, kind+" "+strings.TrimPrefix(objects[i].GetNamespace()+"/"+objects[i].GetName(), "/"))
		}
	}
	return names, nil
}
