package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// Removal says how to uninstall.
type Removal struct {
	// Force uninstalls although pods are enrolled, and although agents do not
	// give their pods back: what they leave on a node goes with its next boot.
	Force bool
	// Definitions deletes the definitions and the Mesh, too, and with them every
	// policy of the mesh.
	Definitions bool
}

// Planned returns what Uninstall would delete, in that order, as text. It refuses what
// Uninstall would.
func (c *Cluster) Planned(ctx context.Context, namespace string, how Removal) ([]string, error) {
	namespace = cmp.Or(namespace, chart.Namespace)
	last, err := c.installed(ctx, namespace)
	if err != nil {
		return nil, err
	}
	if err := c.refuseEnrolled(ctx, how); err != nil {
		return nil, err
	}
	var lines []string
	for _, r := range doomed(namespace, last, how) {
		lines = append(lines, r.String())
	}
	return lines, nil
}

func (c *Cluster) installed(ctx context.Context, namespace string) (*record, error) {
	last, err := c.readRecord(ctx, namespace)
	if err == nil && last == nil {
		err = fmt.Errorf("%w: namespace %s has no ConfigMap %s; remedy: name the namespace with --system-namespace, or uninstall in the way in which it was installed, such as `helm uninstall`", ErrNotInstalled, namespace, recordName)
	}
	return last, err
}

// waypointClass is what operators make where the cluster has the kind.
func waypointClass() ref {
	return ref{Group: "gateway.networking.k8s.io", Version: "v1", Kind: "GatewayClass", Name: v1alpha1.ClassWaypoint}
}

// routeShards is how many ConfigMaps operators keep routes in, see operator/routing.
const routeShards = 8

// operators are what operators make in their namespace, and what ends with them.
func operators(namespace string) []ref {
	all := []ref{
		{Version: "v1", Kind: "Secret", Namespace: namespace, Name: "heddle-ca"},
		{Version: "v1", Kind: "ConfigMap", Namespace: namespace, Name: "heddle-roots"},
		{Version: "v1", Kind: "ConfigMap", Namespace: namespace, Name: "heddle-federation"},
		{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Namespace: namespace, Name: "heddle-operator"},
		{Version: "v1", Kind: "ConfigMap", Namespace: namespace, Name: "heddle-waypoints"},
		{Version: "v1", Kind: "ConfigMap", Namespace: namespace, Name: "heddle-gates"},
	}
	for i := range routeShards {
		all = append(all, ref{Version: "v1", Kind: "ConfigMap", Namespace: namespace, Name: fmt.Sprintf("heddle-routes-%d", i)})
	}
	return all
}

// doomed are the objects to delete, what needs others before them.
func doomed(namespace string, last *record, how Removal) []ref {
	all := append(operators(namespace), waypointClass())
	for _, r := range slices.Backward(last.Objects) {
		if !isData(r) || how.Definitions {
			all = append(all, r)
		}
	}
	// What runs ends before what it made, definitions end the objects of their
	// kinds, and the namespace ends the record.
	slices.SortStableFunc(all, func(a, b ref) int { return cmp.Compare(ending(a), ending(b)) })
	return all
}

func ending(r ref) int {
	switch {
	case r == waypointClass() || slices.Contains(operators(r.Namespace), r):
		return 1
	case r.Kind == "CustomResourceDefinition":
		return 2
	case r.Kind == "Namespace":
		return 3
	}
	return 0
}

// Uninstall deletes exactly what Install and Upgrade made, after the agents have
// given their pods back, and waits until it is gone. With no time to wait it returns when all
// is being deleted.
func (c *Cluster) Uninstall(ctx context.Context, r Request, how Removal) error {
	r.Namespace = cmp.Or(r.Namespace, chart.Namespace)
	last, err := c.installed(ctx, r.Namespace)
	if err != nil {
		return err
	}
	if err := c.refuseEnrolled(ctx, how); err != nil {
		return err
	}
	if err := c.giveBack(ctx, r); err != nil {
		if !how.Force || ctx.Err() != nil {
			return err
		}
		r.say("going on by --force: %v", err)
	}
	deleted := doomed(r.Namespace, last, how)
	for _, o := range deleted {
		gone, err := c.remove(ctx, o)
		if err != nil {
			return err
		}
		if gone {
			r.say("%s: deleted", o)
		}
	}
	if err := c.waitGone(ctx, r, deleted); err != nil {
		return err
	}
	// The record goes last: until then, the same command goes on from here.
	_, err = c.remove(ctx, ref{Version: "v1", Kind: "ConfigMap", Namespace: r.Namespace, Name: recordName})
	return err
}

func (c *Cluster) refuseEnrolled(ctx context.Context, how Removal) error {
	enrolled, err := c.enrolled(ctx)
	if len(enrolled) == 0 || how.Force || err != nil {
		return err
	}
	return fmt.Errorf("%d are enrolled still: %s; remedy: take the label off with `kubectl label namespace NAME %s-`, waypoints away with `heddle waypoint delete`, or uninstall with --force, which puts their connections back into plaintext",
		len(enrolled), strings.Join(enrolled, ", "), v1alpha1.LabelMesh)
}

// enrolled names the namespaces and pods that are enrolled by label.
func (c *Cluster) enrolled(ctx context.Context) ([]string, error) {
	var names []string
	for _, kind := range []string{"Namespace", "Pod"} {
		objects, err := c.list(ctx, core(kind), "", v1alpha1.LabelMesh+"="+v1alpha1.MeshEnabled)
		if err != nil {
			return nil, err
		}
		for i := range objects {
			names = append(names, refOf(&objects[i]).String())
		}
	}
	slices.Sort(names)
	return names, nil
}

// giveBackBound is how long agents have to take their pods out of the mesh when
// the request does not say.
const giveBackBound = 2 * time.Minute

// errNoAgent is why nodes cannot be left as they were.
var errNoAgent = errors.New("no agent is ready to take heddle-cni out of its node's chain, and pods out of the mesh; remedy: mend the agents (`heddle check --cluster`), or, if none was ever ready, uninstall with --force. A node on which one was needs `heddle-agent --cni-uninstall`, with the folders of the DaemonSet, or its new pods wait for ever")

// giveBack has the agents take their pods out of the mesh, and heddle-cni out of
// the chain, when they end. It is what tells an agent that ends for good from one
// that is replaced: each is replaced by one that keeps no chain, so that none puts
// heddle-cni back.
func (c *Cluster) giveBack(ctx context.Context, r Request) error {
	agent, err := c.get(ctx, apps("DaemonSet"), r.Namespace, "heddle-agent")
	if agent == nil || err != nil || health.Number(agent, "status", "desiredNumberScheduled") == 0 {
		return err
	}
	if health.Number(agent, "status", "numberAvailable") == 0 {
		return errNoAgent
	}
	told, err := leaving(agent)
	if err != nil {
		return err
	}
	client, err := c.resource(ctx, agent.GroupVersionKind(), r.Namespace)
	if err != nil {
		return err
	}
	if _, err := client.Apply(ctx, "heddle-agent", told, applyOptions(FieldManager)); err != nil {
		return explain("apply", "DaemonSet", r.Namespace, "heddle-agent", err)
	}
	r.say("DaemonSet %s/heddle-agent: agents are told to leave their nodes as they found them", r.Namespace)
	if err := c.waitFor(ctx, r, cmp.Or(r.Wait, giveBackBound), []*unstructured.Unstructured{agent}); err != nil {
		return fmt.Errorf("agents were told to leave their nodes as they found them: %w; where a node does not come back, --force goes on without it, and it needs `heddle-agent --cni-uninstall` when it does, with the folders of the DaemonSet, or its new pods wait for ever", err)
	}
	return nil
}

// leaving returns the DaemonSet whose agents undo at their end what they did.
func leaving(agent *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	told := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apps/v1", "kind": "DaemonSet"}}
	told.SetNamespace(agent.GetNamespace())
	told.SetName(agent.GetName())
	told.SetLabels(agent.GetLabels())
	spec, _, err := unstructured.NestedMap(agent.Object, "spec")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", refOf(agent), err)
	}
	told.Object["spec"] = spec
	containers := health.Objects(told, "spec", "template", "spec", "containers")
	for _, container := range containers {
		if container["name"] != "agent" {
			continue
		}
		args, _, err := unstructured.NestedStringSlice(container, "args")
		if err != nil {
			return nil, fmt.Errorf("%s: args: %w", refOf(agent), err)
		}
		undo, chained := []any{"/heddle-agent", "--cni-uninstall"}, false
		kept := []any{}
		for _, arg := range args {
			keepsChain := strings.HasPrefix(arg, "--cni-conf-dir=") || strings.HasPrefix(arg, "--cni-bin-dir=")
			if keepsChain || strings.HasPrefix(arg, "--cni-socket=") || strings.HasPrefix(arg, "--cri-socket=") {
				undo = append(undo, arg)
			}
			if !keepsChain && arg != "--uninstall-on-exit" {
				kept = append(kept, arg)
			}
			chained = chained || keepsChain
		}
		container["args"] = append(kept, "--uninstall-on-exit")
		if chained { // or it is on its way already
			container["lifecycle"] = map[string]any{"preStop": map[string]any{"exec": map[string]any{"command": undo}}}
		}
	}
	list := make([]any, len(containers))
	for i := range containers {
		list[i] = containers[i]
	}
	return told, unstructured.SetNestedSlice(told.Object, list, "spec", "template", "spec", "containers")
}

// waitGone waits until deleted objects are gone.
func (c *Cluster) waitGone(ctx context.Context, r Request, deleted []ref) error {
	if r.Wait <= 0 {
		return nil
	}
	ctx, asking, cancel := bounded(ctx, r.Wait)
	defer cancel()
	tick := time.NewTicker(c.patient)
	defer tick.Stop()
	said := ""
	for {
		var left []string
		for _, o := range deleted {
			object, err := c.get(asking, o.kind(), o.Namespace, o.Name)
			if err != nil && !passing(err) && ctx.Err() == nil {
				return err
			}
			if err != nil || object != nil && object.GetDeletionTimestamp() != nil {
				left = append(left, o.String())
			}
		}
		if len(left) == 0 && ctx.Err() == nil {
			return nil
		}
		if text := strings.Join(left, ", "); text != said && ctx.Err() == nil {
			r.say("waiting until they are gone: %s", text)
			said = text
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("still there after %s: %s; remedy: what holds them is in their metadata.finalizers and in the events of namespace %s; the same command goes on from here", r.Wait, said, r.Namespace)
		case <-tick.C:
		}
	}
}
