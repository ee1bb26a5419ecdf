package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install/gatewayapi"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install/keep"
)

// Request says what to install or upgrade.
type Request struct {
	Namespace string         // "" is chart.Namespace
	Version   string         // of the images; "" is the chart's own
	Values    map[string]any // over those of the chart, and of the last installation
	// ForceConflicts takes fields back that others have changed.
	ForceConflicts bool
	// GatewayAPI brings the definitions of the Gateway API, too, where they are not there or
	// are older.
	GatewayAPI bool
	// Wait bounds the wait until everything is healthy; 0 does not wait.
	Wait time.Duration
	// Progress gets a line for each thing that was done or is waited for.
	Progress io.Writer
}

// ErrNotInstalled is matched when this program has not installed anything.
var ErrNotInstalled = errors.New("nothing is installed here by this command")

func (r *Request) say(format string, args ...any) {
	// Nobody is there to be told that nobody can be told.
	_, _ = fmt.Fprintf(r.Progress, format+"\n", args...)
}

// Rendered is what a request means.
type Rendered struct {
	// Definitions are CustomResourceDefinitions; Objects is all the rest, in the
	// order of applying.
	Definitions, Objects []*unstructured.Unstructured
	values               map[string]any
	given                map[string]any // of values, what was asked for this time
	version              string
}

// All returns definitions and objects in the order of applying.
func (r *Rendered) All() []*unstructured.Unstructured {
	all := slices.Clone(r.Objects)
	at := slices.IndexFunc(all, func(o *unstructured.Unstructured) bool { return o.GetKind() != "Namespace" })
	return slices.Insert(all, max(at, 0), r.Definitions...)
}

// Render renders a request without a cluster.
func Render(r Request, kubeVersion string) (*Rendered, error) {
	values := r.Values
	if values == nil {
		values = map[string]any{}
	}
	if chart.Unset(values, "namespace", "create") {
		chart.Set(values, true, "namespace", "create")
	}
	own, err := chart.Version()
	if err != nil {
		return nil, err
	}
	out := &Rendered{values: values, version: cmp.Or(r.Version, own)}
	definitions, files, err := chart.Render(chart.Options{Namespace: r.Namespace, Version: out.version, KubeVersion: kubeVersion, Values: values})
	if err != nil {
		return nil, err
	}
	if out.Definitions, err = chart.Objects(definitions...); err != nil {
		return nil, err
	}
	if out.Objects, err = chart.Objects(files...); err != nil {
		return nil, err
	}
	return out, nil
}

// Prepare renders a request for this cluster: with the values of the last
// installation under the request's, and with the cluster's ranges where none are
// given. Upgrade wants an installation to be there, and install none of another
// version.
func (c *Cluster) Prepare(ctx context.Context, r Request, upgrade bool) (*Rendered, error) {
	r.Namespace = cmp.Or(r.Namespace, chart.Namespace)
	last, err := c.readRecord(ctx, r.Namespace)
	if err != nil {
		return nil, err
	}
	if !upgrade {
		if err := c.looked().RefuseAnother(ctx, r.Namespace); err != nil {
			return nil, err
		}
	}
	own, err := chart.Version()
	if err != nil {
		return nil, err
	}
	version := cmp.Or(r.Version, own)
	switch {
	case last == nil && upgrade:
		return nil, fmt.Errorf("%w: namespace %s has no ConfigMap %s; remedy: `heddle install`, or `helm upgrade` if Helm installed it", ErrNotInstalled, r.Namespace, recordName)
	case last != nil && !upgrade && last.Version != version:
		return nil, fmt.Errorf("version %s is installed in namespace %s already; remedy: `heddle upgrade` brings it to %s", last.Version, r.Namespace, version)
	case last == nil:
		if err := c.refuseForeign(ctx, r.Namespace); err != nil {
			return nil, err
		}
	}
	given := runtime.DeepCopyJSON(r.Values)
	if last != nil {
		r.Values = chart.Merge(r.Values, last.Values)
	}
	if r.Values == nil {
		r.Values = map[string]any{}
	}
	if chart.Unset(r.Values, "mesh", "clusterRanges") && chart.Wanted(r.Values, "mesh", "create") {
		ranges, err := c.ranges(ctx)
		if err != nil {
			return nil, err
		}
		chart.Set(r.Values, ranges, "mesh", "clusterRanges")
	}
	rendered, err := Render(r, c.version)
	if err != nil {
		return nil, err
	}
	rendered.given = given
	if rule := chart.Alerts(rendered.Objects); rule != nil {
		if _, err := c.resource(ctx, rule.GroupVersionKind(), ""); err != nil {
			return nil, fmt.Errorf("%w: alerts.create: %w; remedy: install the Prometheus operator first, or leave it out, and give manifests/heddle/rules/heddle.yaml to your Prometheus", chart.ErrValues, err)
		}
	}
	return rendered, nil
}

func (c *Cluster) gatewayAPI(r Request) gatewayapi.Cluster {
	return gatewayapi.Cluster{Get: c.get, List: c.list, Bring: func(ctx context.Context, o *unstructured.Unstructured) error {
		return c.bring(ctx, r, o, applying{force: true})
	}}
}

// refuseForeign refuses to take over what someone else installed.
func (c *Cluster) refuseForeign(ctx context.Context, namespace string) error {
	agent, err := c.get(ctx, apps("DaemonSet"), namespace, "heddle-agent")
	if agent == nil || err != nil {
		return err
	}
	if by := agent.GetLabels()[managedBy]; by != chart.Service {
		return fmt.Errorf("namespace %s has an agent already, installed by %q; remedy: upgrade it in the way in which it was installed, such as `helm upgrade`", namespace, by)
	}
	return nil // an installation that was interrupted before its record was written
}

// Apply brings the cluster to what was rendered, deletes what the last
// installation made and this one does not want, and waits until all is well. It
// can be repeated at any time: what is so already is left as it is.
func (c *Cluster) Apply(ctx context.Context, r Request, rendered *Rendered) error {
	r.Namespace = cmp.Or(r.Namespace, chart.Namespace)
	how := applying{force: r.ForceConflicts, given: rendered.given}
	last, err := c.readRecord(ctx, r.Namespace)
	if err != nil {
		return err
	}
	wanted, err := c.owned(ctx, rendered)
	if err != nil {
		return err
	}
	if r.GatewayAPI {
		if err := c.gatewayAPI(r).Apply(ctx, r.say); err != nil {
			return err
		}
	}
	written := false
	for _, o := range rendered.All() {
		// The record stands before what it names, so that uninstalling after an
		// interruption finds everything; the namespace it is in comes first.
		if o.GetKind() != "Namespace" && !written {
			if err := c.writeRecord(ctx, r.Namespace, &record{rendered.version, rendered.values, last.with(wanted)}); err != nil {
				return err
			}
			written = true
		}
		if err := c.bring(ctx, r, o, how); err != nil {
			return err
		}
	}
	if err := c.prune(ctx, r, last, wanted); err != nil {
		return err
	}
	if err := c.writeRecord(ctx, r.Namespace, &record{rendered.version, rendered.values, wanted}); err != nil {
		return err
	}
	if r.Wait <= 0 {
		return nil
	}
	return c.waitHealthy(ctx, r, rendered.Objects)
}

// owned are the objects that this program makes. A namespace that someone else
// made gets its labels, and outlives the installation.
func (c *Cluster) owned(ctx context.Context, rendered *Rendered) ([]ref, error) {
	var all []ref
	for _, o := range rendered.All() {
		if o.GetKind() == "Namespace" {
			before, err := c.get(ctx, o.GroupVersionKind(), "", o.GetName())
			if err != nil {
				return nil, err
			}
			if before != nil && before.GetLabels()[managedBy] != chart.Service {
				o.SetLabels(without(o.GetLabels(), managedBy))
				continue
			}
		}
		all = append(all, refOf(o))
	}
	return all, nil
}

func without(labels map[string]string, key string) map[string]string {
	delete(labels, key)
	return labels
}

// bring applies one object, and says what became of it. A definition is waited
// for: objects of its kind come next.
func (c *Cluster) bring(ctx context.Context, r Request, o *unstructured.Unstructured, how applying) error {
	before, err := c.get(ctx, o.GroupVersionKind(), o.GetNamespace(), o.GetName())
	if err != nil {
		return err
	}
	after, kept, err := c.applyKeeping(ctx, o, how)
	if err != nil {
		return err
	}
	for _, f := range kept {
		r.say("%s: %s", refOf(o), keep.Say(f, after))
	}
	switch {
	case before == nil:
		r.say("%s: created", refOf(o))
	case before.GetResourceVersion() == after.GetResourceVersion():
		r.say("%s: unchanged", refOf(o))
	default:
		r.say("%s: changed", refOf(o))
	}
	if o.GetKind() == "CustomResourceDefinition" {
		return c.waitFor(ctx, r, max(r.Wait, 30*time.Second), []*unstructured.Unstructured{o})
	}
	return nil
}

// prune deletes what the last installation made and this one does not want.
// Definitions and the namespace are people's data, and stay.
func (c *Cluster) prune(ctx context.Context, r Request, last *record, wanted []ref) error {
	if last == nil {
		return nil
	}
	for _, old := range slices.Backward(last.Objects) {
		if slices.ContainsFunc(wanted, func(w ref) bool { w.Version = old.Version; return w == old }) || isData(old) || old.Kind == "Namespace" {
			continue
		}
		gone, err := c.remove(ctx, old)
		if err != nil {
			return err
		}
		if gone {
			r.say("%s: deleted, no longer wanted", old)
		}
	}
	return nil
}

// isData says of what uninstalling keeps unless it is told otherwise.
func isData(r ref) bool { return r.Kind == "CustomResourceDefinition" || r.Kind == "Mesh" }
