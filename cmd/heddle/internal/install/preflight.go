package install

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// Check says whether Heddle can be installed on the cluster, and whether what is
// installed is healthy, as far as the API server knows. It changes nothing. An
// error means that the API server did not answer.
func (c *Cluster) Check(ctx context.Context, namespace string, r *health.Report) error {
	namespace = cmp.Or(namespace, chart.Namespace)
	for _, part := range []func(context.Context, string, *health.Report) error{
		c.checkVersion, c.checkRights, c.checkNamespace, c.checkNodes, c.checkNetworks, c.checkInstalled,
	} {
		if err := part(ctx, namespace, r); err != nil {
			return err
		}
	}
	return nil
}

const clusterPart = "cluster"

func (c *Cluster) checkVersion(_ context.Context, namespace string, r *health.Report) error {
	if _, _, err := chart.Render(chart.Options{Namespace: namespace, KubeVersion: c.version}); err != nil {
		r.Bad(clusterPart, "version", err.Error(), "upgrade the cluster")
		return nil
	}
	r.Good(clusterPart, "version", "Kubernetes %s at %s", c.version, c.host)
	return nil
}

// checkRights asks whether this user may make what is to be made.
func (c *Cluster) checkRights(ctx context.Context, namespace string, r *health.Report) error {
	rendered, err := Render(Request{Namespace: namespace}, "")
	if err != nil {
		return err
	}
	var asked []ref
	var refused []string
	for _, o := range rendered.All() {
		about := refOf(o)
		about.Name = ""
		if slices.Contains(asked, about) {
			continue
		}
		asked = append(asked, about)
		may, err := c.may(ctx, "patch", about)
		if err != nil {
			return err
		}
		if !may {
			refused = append(refused, strings.TrimSuffix(about.String(), "/"))
		}
	}
	if len(refused) > 0 {
		r.Bad(clusterPart, "rights", "you may not write "+strings.Join(refused, ", "), "ask for the rights of cluster-admin, or have an administrator install")
		return nil
	}
	r.Good(clusterPart, "rights", "you may write all %d kinds that installing writes", len(asked))
	return nil
}

// may asks the API server (authorization.k8s.io, SelfSubjectAccessReview).
func (c *Cluster) may(ctx context.Context, verb string, about ref) (bool, error) {
	attributes := map[string]any{"verb": verb, "group": about.Group, "resource": resourceName(about.Kind)}
	if about.Namespace != "" {
		attributes["namespace"] = about.Namespace
	}
	review := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
		"spec": map[string]any{"resourceAttributes": attributes},
	}}
	client, err := c.resource(review.GroupVersionKind(), "")
	if err != nil {
		return false, err
	}
	answer, err := client.Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, explain("create", "SelfSubjectAccessReview", "", "", err)
	}
	allowed, _, err := unstructured.NestedBool(answer.Object, "status", "allowed")
	return allowed, err
}

// resourceName is the plural of a kind of the chart.
func resourceName(kind string) string {
	switch name := strings.ToLower(kind); {
	case strings.HasSuffix(name, "sh"):
		return name + "es"
	case strings.HasSuffix(name, "y"):
		return strings.TrimSuffix(name, "y") + "ies"
	default:
		return name + "s"
	}
}

func (c *Cluster) checkNamespace(ctx context.Context, namespace string, r *health.Report) error {
	const enforce = "pod-security.kubernetes.io/enforce"
	object, err := c.get(ctx, core("Namespace"), "", namespace)
	if err != nil {
		return err
	}
	switch {
	case object == nil:
		r.Good(clusterPart, "namespace", "%s is not there yet; installing makes it", namespace)
	case object.GetLabels()[enforce] == "baseline" || object.GetLabels()[enforce] == "restricted":
		r.Bad(clusterPart, "namespace", fmt.Sprintf("%s admits no agent: its label %s is %s", namespace, enforce, object.GetLabels()[enforce]),
			fmt.Sprintf("kubectl label --overwrite namespace %s %s=privileged", namespace, enforce))
	default:
		r.Good(clusterPart, "namespace", "%s admits agents", namespace)
	}
	return nil
}

// checkNodes looks at each node's kernel, as its kubelet reports it.
func (c *Cluster) checkNodes(ctx context.Context, _ string, r *health.Report) error {
	nodes, err := c.list(ctx, core("Node"), "", "")
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		r.Bad(clusterPart, "nodes", "there are none", "add a node that runs Linux 6.1 or newer")
	}
	for i := range nodes {
		info, _, err := unstructured.NestedStringMap(nodes[i].Object, "status", "nodeInfo")
		if err != nil {
			return fmt.Errorf("node %s: %w", nodes[i].GetName(), err)
		}
		checkNode(nodes[i].GetName(), info, r)
	}
	return nil
}

func checkNode(name string, info map[string]string, r *health.Report) {
	kernel := info["kernelVersion"]
	var major, minor int
	_, err := fmt.Sscanf(kernel, "%d.%d", &major, &minor)
	switch {
	case info["operatingSystem"] != "" && info["operatingSystem"] != "linux":
		r.Good(name, "kernel", "%s: no agent runs here, and no pod of the mesh", info["operatingSystem"])
	case err != nil:
		r.Bad(name, "kernel", fmt.Sprintf("the kubelet reports %q", kernel), "is the kubelet up? `kubectl describe node "+name+"`")
	case major < 6 || major == 6 && minor < 1:
		r.Bad(name, "kernel", kernel+" is too old", "boot the node with Linux 6.1 or newer, or keep agents off it: --set agent.nodeSelector")
	default:
		r.Good(name, "kernel", "%s", kernel)
	}
}

// checkInstalled looks at what is installed, if anything is.
func (c *Cluster) checkInstalled(ctx context.Context, namespace string, r *health.Report) error {
	another, err := c.oneMesh().Find(ctx, namespace)
	if err != nil {
		return err
	}
	another.Report(func(detail, remedy string) { r.Bad(clusterPart, "another mesh", detail, remedy) })
	last, err := c.readRecord(ctx, namespace)
	if err != nil {
		return err
	}
	agent, err := c.get(ctx, apps("DaemonSet"), namespace, "heddle-agent")
	if err != nil {
		return err
	}
	if last == nil && agent == nil {
		r.Good(clusterPart, "installed", "nothing yet")
		return nil
	}
	version := "by another tool"
	if last != nil {
		version = "version " + last.Version
	}
	r.Good(clusterPart, "installed", "%s, in namespace %s", version, namespace)
	for _, what := range []struct {
		kind schema.GroupVersionKind
		name string
	}{{apps("Deployment"), "heddle-operator"}, {apps("DaemonSet"), "heddle-agent"}} {
		object := &unstructured.Unstructured{}
		object.SetGroupVersionKind(what.kind)
		object.SetNamespace(namespace)
		object.SetName(what.name)
		lack, err := c.lack(ctx, object)
		if err != nil {
			return err
		}
		if lack != "" {
			r.Bad(clusterPart, what.name, lack, fmt.Sprintf("kubectl -n %s describe pods -l app.kubernetes.io/component=%s", namespace, strings.TrimPrefix(what.name, "heddle-")))
		} else {
			r.Good(clusterPart, what.name, "as many as wanted are ready")
		}
	}
	return nil
}
