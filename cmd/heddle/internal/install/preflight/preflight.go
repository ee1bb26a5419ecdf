// Package preflight says, before anything is changed, what of a cluster stands in Heddle's
// way, as far as its API server knows: rights, the namespace, the nodes' kernels, what makes
// the pods' network, other meshes, and how far versions are apart. It reads, and tries
// writes without writing; it changes and decides nothing, and asks no agent.
//
// What no API server knows, such as whether a kernel has BTF, an agent looks for itself as
// it starts.
package preflight

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/onemesh"
)

// clusterPart is the part of findings that are of no one node.
const clusterPart = "cluster"

// Cluster is how one is asked. It is safe for concurrent use if its functions are.
type Cluster struct {
	// Get returns an object, or nil when it, or its kind, is not there; List those of a kind
	// in a namespace, or in all for "", by a label selector.
	Get  func(ctx context.Context, kind schema.GroupVersionKind, namespace, name string) (*unstructured.Unstructured, error)
	List func(ctx context.Context, kind schema.GroupVersionKind, namespace, selector string) ([]unstructured.Unstructured, error)
	// Review makes an access review, which is nothing that stays, and returns the answer.
	Review func(context.Context, *unstructured.Unstructured) (*unstructured.Unstructured, error)
	// Try applies an object without doing it: server-side, with dryRun.
	Try func(context.Context, *unstructured.Unstructured) error
	// Record is the name of the ConfigMap that `heddle install` writes, Label its selector.
	Record, Label string
}

// Plan is what is to be brought about.
type Plan struct {
	Namespace string // of Heddle itself
	// Objects are all that would be written. The DaemonSet heddle-agent among them says
	// which nodes get an agent, a Namespace that its labels are written.
	Objects []*unstructured.Unstructured
	// Version is that of the programs to come, Installed that on record; "" when there is none.
	// Without one to come, nothing is said of versions.
	Version, Installed string
	// Takes is set when fields are taken back that others have set.
	Takes bool
}

// Look finds what stands in the way, but for rights: see Rights. What cannot be looked at is
// warned of. An error means that ctx is done.
func (c Cluster) Look(ctx context.Context, p *Plan, r *health.Report) error {
	var nodes []node
	for _, part := range []struct {
		name string
		look func() error
	}{
		{"namespace", func() error { return c.namespace(ctx, p, r) }},
		{"nodes", func() (err error) { nodes, err = c.nodes(ctx, p, r); return err }},
		{"network", func() error { return c.networks(ctx, nodes, r) }},
		{"cluster domain", func() error { return c.domain(ctx, r) }},
		{"other mesh", func() error { return c.otherMeshes(ctx, r) }},
		{"another mesh", func() error { return c.anotherMesh(ctx, p.Namespace, r) }},
		{"versions", func() error { return c.versions(ctx, p, r) }},
	} {
		if err := Unseen(ctx, part.name, part.look(), r); err != nil {
			return err
		}
	}
	return nil
}

// Unseen warns that something could not be looked at, which keeps nothing from working. It
// returns err only when ctx is done.
func Unseen(ctx context.Context, name string, err error, r *health.Report) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	r.Unseen(name, err)
	return nil
}

func (c Cluster) oneMesh() onemesh.Cluster {
	return onemesh.Cluster{List: c.List, Get: c.Get, Record: c.Record, Label: c.Label}
}

// RefuseAnother is an error that matches onemesh.ErrAnother when the cluster has a mesh in
// another namespace.
func (c Cluster) RefuseAnother(ctx context.Context, namespace string) error {
	return c.oneMesh().Refuse(ctx, namespace)
}

func (c Cluster) anotherMesh(ctx context.Context, namespace string, r *health.Report) error {
	another, err := c.oneMesh().Find(ctx, namespace)
	if err != nil {
		return err
	}
	another.Report(func(detail, remedy string) { r.Bad(clusterPart, "another mesh", detail, remedy) })
	return nil
}

// namespace looks at what Pod Security says of agents.
func (c Cluster) namespace(ctx context.Context, p *Plan, r *health.Report) error {
	const enforce = "pod-security.kubernetes.io/enforce"
	object, err := c.Get(ctx, core("Namespace"), "", p.Namespace)
	if err != nil {
		return err
	}
	level := ""
	if object != nil {
		level = object.GetLabels()[enforce]
	}
	switch {
	case object == nil:
		r.Good(clusterPart, "namespace", "%s is not there yet; installing makes it", p.Namespace)
	case object.GetDeletionTimestamp() != nil:
		r.Bad(clusterPart, "namespace", p.Namespace+" is being deleted, and nothing can be made in it",
			fmt.Sprintf("wait until it is gone: kubectl wait --for=delete namespace/%s --timeout=5m", p.Namespace))
	case (level == "baseline" || level == "restricted") && p.Takes && p.find("Namespace", p.Namespace) != nil:
		r.Good(clusterPart, "namespace", "%s is to admit agents: --force-conflicts sets its label %s", p.Namespace, enforce)
	case level == "baseline" || level == "restricted":
		r.Bad(clusterPart, "namespace", fmt.Sprintf("%s admits no agent: its label %s is %s", p.Namespace, enforce, level),
			fmt.Sprintf("kubectl label --overwrite namespace %s %s=privileged", p.Namespace, enforce))
	default:
		r.Good(clusterPart, "namespace", "%s admits agents", p.Namespace)
	}
	return nil
}

// find returns an object that would be written; nil when there is none.
func (p *Plan) find(kind, name string) *unstructured.Unstructured {
	for _, o := range p.Objects {
		if o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	return nil
}

// versions looks at how far what is to come is from what is there, on record and by the
// labels of the pods that run.
func (c Cluster) versions(ctx context.Context, p *Plan, r *health.Report) error {
	const name = "versions"
	if p.Version == "" {
		return nil
	}
	there := health.Versions{}
	there.Add(p.Installed, "on record")
	var unseen error // what is on record can be compared without the pods
	for _, component := range []string{"operator", "agent"} {
		var pods []unstructured.Unstructured
		if pods, unseen = c.List(ctx, core("Pod"), p.Namespace, "app.kubernetes.io/part-of=heddle,app.kubernetes.io/component="+component); unseen != nil {
			break
		}
		for i := range pods {
			there.Add(pods[i].GetLabels()["app.kubernetes.io/version"], pods[i].GetName())
		}
	}
	if len(there) == 0 {
		return unseen
	}
	all := health.Versions{p.Version: {"to come"}}
	for version, who := range there {
		all[version] = append(all[version], who...)
	}
	detail, _ := all.TooFar()
	switch {
	case detail != "":
		r.Bad(clusterPart, name, detail+": programs understand those of one release before and after theirs, and an upgrade has both at once",
			"take the `heddle` of the next release after the oldest that is there, `heddle upgrade` with it, and so on, one release after the other")
	case all.MajorStep():
		r.Warn(clusterPart, name, "of two major versions, and no program knows which release was the last of the older one: "+all.String(),
			"go by way of that release first, unless it is the one that is there")
	default:
		r.Good(clusterPart, name, "%s", all)
	}
	return unseen
}

func core(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Version: "v1", Kind: kind}
}

func apps(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: kind}
}
