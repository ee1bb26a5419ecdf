package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/chart"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/install/preflight"
)

// ErrPreflight is matched when something stands in the way, and nothing was changed.
var ErrPreflight = errors.New("stands in the way, and nothing was changed")

const clusterPart = "cluster"

// looked is how the cluster is looked at.
func (c *Cluster) looked() preflight.Cluster {
	return preflight.Cluster{Get: c.get, List: c.list, Record: recordName, Label: managedBy + "=" + chart.Service,
		Review: func(ctx context.Context, review *unstructured.Unstructured) (*unstructured.Unstructured, error) {
			client, err := c.resource(ctx, review.GroupVersionKind(), "")
			if err != nil {
				return nil, err
			}
			answer, err := client.Create(ctx, review, metav1.CreateOptions{})
			if err != nil {
				return nil, explain("create", review.GetKind(), "", "", err)
			}
			return answer, nil
		},
		Try: func(ctx context.Context, o *unstructured.Unstructured) error {
			_, err := c.apply(ctx, o, applying{force: true, dryRun: true})
			return err
		}}
}

// Preflight looks for what stands in the way of applying what was rendered. It changes
// nothing. What cannot be looked at is warned of; an error means that ctx is done.
func (c *Cluster) Preflight(ctx context.Context, r Request, rendered *Rendered, to *health.Report) error {
	r.Namespace = cmp.Or(r.Namespace, chart.Namespace)
	last, err := c.readRecord(ctx, r.Namespace)
	if err := preflight.Unseen(ctx, "versions", err, to); err != nil {
		return err
	}
	plan := &preflight.Plan{Namespace: r.Namespace, Objects: rendered.All(), Version: rendered.version, Takes: r.ForceConflicts}
	if last != nil {
		plan.Installed = last.Version
	}
	if err := c.looked().Look(ctx, plan, to); err != nil || r.GatewayAPI {
		return err
	}
	// What waypoints lack keeps nothing else from working.
	gateways := health.New()
	if err := preflight.Unseen(ctx, "gateway API", c.checkGatewayAPI(ctx, r.Namespace, gateways), to); err != nil {
		return err
	}
	for _, f := range gateways.Findings {
		if !f.OK {
			to.Warn(f.Part, f.Name, f.Detail, f.Remedy)
		}
	}
	return nil
}

// Rights says whether this user may make what a request is for, with the values of the last
// installation under the request's. An error is one of the request's own values, or means
// that ctx is done.
func (c *Cluster) Rights(ctx context.Context, r Request, to *health.Report) error {
	request := Request{Namespace: cmp.Or(r.Namespace, chart.Namespace), Values: runtime.DeepCopyJSON(r.Values)}
	// Whoever must read the record, and cannot, says so; so does who renders values of another version.
	if last, err := c.readRecord(ctx, request.Namespace); err == nil && last != nil {
		request.Values = chart.Merge(request.Values, last.Values)
	}
	rendered, err := Render(request, "")
	if err != nil {
		request.Values = runtime.DeepCopyJSON(r.Values)
		rendered, err = Render(request, "")
	}
	if err != nil {
		return err
	}
	return c.looked().Rights(ctx, &preflight.Plan{Objects: rendered.All()}, to)
}

// Check says whether Heddle can be installed on the cluster, and whether what is
// installed is healthy, as far as the API server knows. It changes nothing. An
// error means that the API server did not answer.
func (c *Cluster) Check(ctx context.Context, namespace string, r *health.Report) error {
	namespace = cmp.Or(namespace, chart.Namespace)
	for _, part := range []struct {
		name string
		look func(context.Context, string, *health.Report) error
	}{
		{"version", c.checkVersion}, {"rights", c.checkRights}, {"preflight", c.checkPreflight}, {"gateway API", c.checkGatewayAPI}, {"installed", c.checkInstalled},
	} {
		err := part.look(ctx, namespace, r)
		if apierrors.IsForbidden(err) { // whoever may not install may look, too, as far as they may
			err = preflight.Unseen(ctx, part.name, err, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) checkRights(ctx context.Context, namespace string, r *health.Report) error {
	return c.Rights(ctx, Request{Namespace: namespace}, r)
}

// checkPreflight looks as before an installation with the values of the last one.
func (c *Cluster) checkPreflight(ctx context.Context, namespace string, r *health.Report) error {
	request := Request{Namespace: namespace}
	last, err := c.readRecord(ctx, namespace)
	if err != nil {
		return err
	}
	plan := &preflight.Plan{Namespace: namespace}
	if last != nil {
		request.Values, plan.Installed = last.Values, last.Version
	}
	rendered, err := Render(request, "")
	if err != nil { // those of another version
		r.Bad(clusterPart, "values", "those of the last installation are not this version's: "+err.Error(), "use the `heddle` of that version, or give others with `heddle upgrade --set`")
		if rendered, err = Render(Request{Namespace: namespace}, ""); err != nil {
			return err
		}
	}
	plan.Objects = rendered.All()
	return c.looked().Look(ctx, plan, r)
}

func (c *Cluster) checkGatewayAPI(ctx context.Context, _ string, r *health.Report) error {
	return c.gatewayAPI(Request{}).Check(ctx, clusterPart, r)
}

func (c *Cluster) checkVersion(_ context.Context, namespace string, r *health.Report) error {
	if _, _, err := chart.Render(chart.Options{Namespace: namespace, KubeVersion: c.version}); err != nil {
		r.Bad(clusterPart, "version", err.Error(), "upgrade the cluster")
		return nil
	}
	r.Good(clusterPart, "version", "Kubernetes %s at %s", c.version, c.host)
	return nil
}

// checkInstalled looks at what is installed, if anything is.
func (c *Cluster) checkInstalled(ctx context.Context, namespace string, r *health.Report) error {
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
