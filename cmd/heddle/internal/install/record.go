package install

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install/keep"
)

// recordName is the ConfigMap that says what was installed.
const recordName = "heddle-install"

// managedBy is the label of everything that this program makes.
const managedBy = "app.kubernetes.io/managed-by"

// ref names an object.
type ref struct {
	Group, Version, Kind, Namespace, Name string
}

func refOf(o *unstructured.Unstructured) ref {
	k := o.GroupVersionKind()
	return ref{k.Group, k.Version, k.Kind, o.GetNamespace(), o.GetName()}
}

func (r ref) kind() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}

func (r ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// record is what is known of an installation.
type record struct {
	Version string
	Values  map[string]any
	// Objects are those that were made, in the order of making.
	Objects []ref
}

// readRecord returns the record, or nil when this program has installed nothing.
func (c *Cluster) readRecord(ctx context.Context, namespace string) (*record, error) {
	object, err := c.get(ctx, core("ConfigMap"), namespace, recordName)
	if object == nil || err != nil {
		return nil, err
	}
	data, _, err := unstructured.NestedStringMap(object.Object, "data")
	if err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: %w", namespace, recordName, err)
	}
	r := &record{Version: data["version"]}
	if err := yaml.Unmarshal([]byte(data["values"]), &r.Values); err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: data.values: %w", namespace, recordName, err)
	}
	if err := json.Unmarshal([]byte(data["objects"]), &r.Objects); err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: data.objects: %w; remedy: it is Heddle's record, put it back from a backup", namespace, recordName, err)
	}
	if r.Values == nil {
		r.Values = map[string]any{}
	}
	return r, nil
}

// writeRecord replaces the record.
func (c *Cluster) writeRecord(ctx context.Context, namespace string, r *record) error {
	values, err := yaml.Marshal(r.Values)
	if err != nil {
		return fmt.Errorf("write down the values: %w", err)
	}
	objects, err := json.Marshal(r.Objects)
	if err != nil {
		return fmt.Errorf("write down the objects: %w", err)
	}
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": recordName, "namespace": namespace, "labels": map[string]any{managedBy: chart.Service}},
		"data":     map[string]any{"version": r.Version, "values": string(values), "objects": string(objects)},
	}}
	_, err = c.apply(ctx, object, applying{force: true})
	return err
}

// with returns the record's objects and more, each once.
func (r *record) with(more []ref) []ref {
	all := slices.Clone(more)
	if r != nil {
		for _, old := range r.Objects {
			if !slices.Contains(all, old) {
				all = append(all, old)
			}
		}
	}
	return all
}

// applying says how to apply; given is what of the values was asked for this time.
type applying struct {
	force, dryRun bool
	given         map[string]any
}

// applyKeeping applies one object, without the fields that others have set and that may
// stay theirs. It returns those.
func (c *Cluster) applyKeeping(ctx context.Context, o *unstructured.Unstructured, how applying) (*unstructured.Unstructured, []keep.Field, error) {
	after, err := c.apply(ctx, o, how)
	kept := keep.Fields(o, err, how.given)
	if len(kept) > 0 {
		after, err = c.apply(ctx, keep.Without(o, kept), how)
	}
	return after, kept, err
}

// apply brings one object about. What others own of it stays, unless force.
func (c *Cluster) apply(ctx context.Context, o *unstructured.Unstructured, how applying) (*unstructured.Unstructured, error) {
	r, err := c.resource(ctx, o.GroupVersionKind(), o.GetNamespace())
	if err != nil {
		return nil, err
	}
	options := metav1.ApplyOptions{FieldManager: FieldManager, Force: how.force}
	if how.dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	applied, err := r.Apply(ctx, o.GetName(), o, options)
	if err != nil {
		return nil, explain("apply", o.GetKind(), o.GetNamespace(), o.GetName(), err)
	}
	return applied, nil
}

// remove deletes an object, if this program made it. It reports whether there was
// one to delete.
func (c *Cluster) remove(ctx context.Context, r ref) (bool, error) {
	object, err := c.get(ctx, r.kind(), r.Namespace, r.Name)
	if object == nil || err != nil {
		return false, err
	}
	ours := object.GetLabels()[managedBy] == chart.Service || r.Kind == "CustomResourceDefinition" || r == waypointClass() || slices.Contains(operators(r.Namespace), r)
	if by := object.GetLabels()[managedBy]; !ours {
		return false, fmt.Errorf("delete %s: its label %s is %q, so it is someone else's by now; remedy: delete it yourself, or give it the label %s", r, managedBy, by, chart.Service)
	}
	client, err := c.resource(ctx, r.kind(), r.Namespace)
	if err != nil {
		return false, err
	}
	// What runs is gone when its pods are.
	policy, uid := metav1.DeletePropagationBackground, object.GetUID()
	if r.Group == "apps" {
		policy = metav1.DeletePropagationForeground
	}
	options := metav1.DeleteOptions{PropagationPolicy: &policy}
	if uid != "" {
		options.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	if err := client.Delete(ctx, r.Name, options); err != nil && !apierrors.IsNotFound(err) {
		return false, explain("delete", r.Kind, r.Namespace, r.Name, err)
	}
	return true, nil
}

func applyOptions(owner string) metav1.ApplyOptions {
	return metav1.ApplyOptions{FieldManager: owner, Force: true}
}
