package preflight

import (
	"context"
	"errors"
	"fmt"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/othermesh"
)

const otherMesh = "other mesh"

// rivals are the control planes of other meshes, by the labels of their Deployments.
func rivals() []struct{ mesh, name, selector string } {
	return []struct{ mesh, name, selector string }{
		{othermesh.Istio, "Istio's istiod", "app=istiod"},
		{othermesh.Linkerd, "Linkerd's control plane", "linkerd.io/control-plane-component=destination"},
		{"Kuma", "Kuma's control plane", "app=kuma-control-plane"},
		{"Consul", "Consul's injector", "app=consul,component=connect-injector"},
	}
}

// otherMeshes looks for meshes of others. They may be there; but no namespace can be in two.
// A mark of a mesh of which nothing runs is left over, and takes no connections.
func (c Cluster) otherMeshes(ctx context.Context, r *health.Report) error {
	found, unseen := c.findRivals(ctx, r)
	enrolled, err := c.List(ctx, core("Namespace"), "", v1alpha1.LabelMesh+"="+v1alpha1.MeshEnabled)
	for i := range enrolled {
		name := enrolled[i].GetName()
		switch mesh, key, value := othermesh.Mark(enrolled[i].GetLabels(), enrolled[i].GetAnnotations()); {
		case mesh == "":
		case found[mesh]:
			r.Bad(clusterPart, otherMesh, fmt.Sprintf("namespace %s is enrolled, and in another mesh by %s=%s: both would take its pods' connections", name, key, value),
				fmt.Sprintf("take it out of one: `heddle unenroll %s --wait`, or take %s off", name, key))
		default:
			r.Warn(clusterPart, otherMesh, fmt.Sprintf("namespace %s is enrolled, and marked for %s by %s=%s; nothing of %[2]s was found on the cluster", name, mesh, key, value),
				fmt.Sprintf("take %s off if it is left over", key))
		}
	}
	return errors.Join(unseen, err)
}

// findRivals says which other meshes run, and warns of them.
func (c Cluster) findRivals(ctx context.Context, r *health.Report) (found map[string]bool, err error) {
	found = map[string]bool{}
	for _, rival := range rivals() {
		running, err := c.List(ctx, apps("Deployment"), "", rival.selector)
		if err != nil {
			return found, err
		}
		if len(running) > 0 {
			found[rival.mesh] = true
			r.Warn(clusterPart, otherMesh, fmt.Sprintf("%s runs in namespace %s", rival.name, running[0].GetNamespace()),
				"both can be on a cluster, in different namespaces: never enroll one whose pods the other injects or captures")
		}
	}
	sets, err := c.List(ctx, apps("DaemonSet"), "", "")
	for i := range sets {
		if name := sets[i].GetName(); name == "ztunnel" || name == "istio-cni-node" {
			found[othermesh.Istio] = true
			r.Warn(clusterPart, otherMesh, fmt.Sprintf("Istio's %s runs in namespace %s", name, sets[i].GetNamespace()),
				"never enroll a namespace in both: one that has istio.io/dataplane-mode must not have heddle.dev/mesh")
		}
	}
	return found, err
}
