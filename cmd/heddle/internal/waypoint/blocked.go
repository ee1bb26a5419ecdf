package waypoint

import (
	"context"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// readBound bounds how long it is looked for policies.
const readBound = 30 * time.Second

// blocked warns of NetworkPolicies that keep clients from the waypoint, or the waypoint from
// workloads, once services go through it: those of the namespace, if it is to be labelled. The
// policies of clients are in their own namespaces.
func blocked(ctx context.Context, c *cluster.Cluster, w *which, all bool, say func(string, ...any)) {
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	objects, err := analyze.FromCluster(ctx, c)
	if err != nil {
		say("it is not known whether NetworkPolicies let the waypoint in: %v", err)
		return
	}
	if all {
		objects.Through(w.namespace, w.name)
	}
	found, err := objects.Analyze("")
	if err != nil {
		say("it is not known whether NetworkPolicies let the waypoint in: %v", err)
		return
	}
	for _, f := range found {
		if f.Kind == analyze.KindWaypoint && f.Waypoint == (mesh.Key{Namespace: w.namespace, Name: w.name}) {
			say("%s: %s; remedy: have what `heddle analyze -n %s --fixes` prints beside it", f.Object, f.Detail, f.Namespace)
		}
	}
}
