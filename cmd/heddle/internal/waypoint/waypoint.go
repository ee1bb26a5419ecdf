package waypoint

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Waypoint is how one is.
type Waypoint struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Programmed is set when it takes requests; else Reason and Message say why not.
	Programmed bool   `json:"programmed"`
	Reason     string `json:"reason,omitempty"`
	Message    string `json:"message,omitempty"`
	// Addresses are those of its Service.
	Addresses []string `json:"addresses"`
	Replicas  Replicas `json:"replicas"`
	// Services are those of its namespace that name it, or whose namespace does, sorted.
	Services []string `json:"services"`
}

// Replicas counts pods.
type Replicas struct {
	Ready  int32 `json:"ready"`
	Wanted int32 `json:"wanted"`
}

// ErrInUse is matched when deleting was refused for the services that would be cut off.
var ErrInUse = errors.New("the waypoint is in use")

// ErrNotInTime is matched when what was waited for did not come.
var ErrNotInTime = errors.New("not in time")

func gateways() schema.GroupVersionResource {
	return schema.GroupVersion(gatewayv1.GroupVersion).WithResource("gateways")
}

// missing says that the cluster has no Gateway API, when that is what an error means.
func missing(c *cluster.Cluster, what string, err error) error {
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return fmt.Errorf("%s: the cluster has no Gateways of gateway.networking.k8s.io/v1; remedy: `heddle install --gateway-api` brings the definitions, as does the Gateway API's own standard-install.yaml", what)
	}
	return c.Explain(what, err)
}

// find returns the waypoints of a namespace, or of all for "", sorted.
func find(ctx context.Context, c *cluster.Cluster, namespace string) ([]Waypoint, error) {
	list, err := c.Dynamic.Resource(gateways()).Namespace(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, missing(c, "list waypoints", err)
	}
	found := []Waypoint{}
	used := map[string]map[string][]string{}
	for i := range list.Items {
		g := &gatewayv1.Gateway{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, g); err != nil {
			return nil, fmt.Errorf("read Gateway %s/%s: %w", list.Items[i].GetNamespace(), list.Items[i].GetName(), err)
		}
		if g.Spec.GatewayClassName != v1alpha1.ClassWaypoint {
			continue
		}
		if used[g.Namespace] == nil {
			if used[g.Namespace], err = users(ctx, c, g.Namespace); err != nil {
				return nil, err
			}
		}
		one, err := of(ctx, c, g, used[g.Namespace][g.Name])
		if err != nil {
			return nil, err
		}
		found = append(found, *one)
	}
	slices.SortFunc(found, func(a, b Waypoint) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return found, nil
}

// get returns one waypoint.
func get(ctx context.Context, c *cluster.Cluster, namespace, name string) (*Waypoint, error) {
	found, err := find(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(found, func(w Waypoint) bool { return w.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no waypoint %s/%s: `heddle waypoint list --all-namespaces` lists those that are", namespace, name)
	}
	return &found[i], nil
}

// of says how the waypoint of a Gateway is.
func of(ctx context.Context, c *cluster.Cluster, g *gatewayv1.Gateway, services []string) (*Waypoint, error) {
	one := &Waypoint{Namespace: g.Namespace, Name: g.Name, Addresses: []string{}, Services: services, Reason: string(gatewayv1.GatewayReasonPending),
		Message: "the operator has not looked at it yet: `heddle status` says how the operator is"}
	if services == nil {
		one.Services = []string{}
	}
	for _, a := range g.Status.Addresses {
		one.Addresses = append(one.Addresses, a.Value)
	}
	for _, kind := range []string{string(gatewayv1.GatewayConditionProgrammed), string(gatewayv1.GatewayConditionAccepted)} {
		condition := meta.FindStatusCondition(g.Status.Conditions, kind)
		if condition == nil || condition.ObservedGeneration != g.Generation {
			continue
		}
		one.Programmed = condition.Status == metav1.ConditionTrue && (kind == string(gatewayv1.GatewayConditionProgrammed) || one.Programmed)
		if kind == string(gatewayv1.GatewayConditionProgrammed) || condition.Status != metav1.ConditionTrue {
			one.Reason, one.Message = condition.Reason, condition.Message
		}
	}
	if one.Programmed {
		one.Reason, one.Message = "", ""
	}
	deployment, err := c.Core.AppsV1().Deployments(g.Namespace).Get(ctx, g.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return one, nil
	}
	if err != nil {
		return nil, c.Explain("get deployment "+g.Namespace+"/"+g.Name, err)
	}
	one.Replicas.Ready = deployment.Status.ReadyReplicas
	if deployment.Spec.Replicas != nil {
		one.Replicas.Wanted = *deployment.Spec.Replicas
	}
	return one, nil
}

// users returns the names of a namespace's services, by the waypoint that each uses.
func users(ctx context.Context, c *cluster.Cluster, namespace string) (map[string][]string, error) {
	space, err := c.Core.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return nil, c.Explain("get namespace "+namespace, err)
	}
	list, err := c.Core.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, c.Explain("list services of namespace "+namespace, err)
	}
	by := map[string][]string{}
	for i := range list.Items {
		s := &list.Items[i]
		name, own := s.Labels[v1alpha1.LabelWaypoint]
		if !own {
			name = space.Labels[v1alpha1.LabelWaypoint]
		}
		if name != "" && name != v1alpha1.WaypointNone && name != s.Name && s.Spec.Type != corev1.ServiceTypeExternalName {
			by[name] = append(by[name], s.Name)
		}
	}
	for _, names := range by {
		slices.Sort(names)
	}
	return by, nil
}

// unsaid is a number that was not given.
const unsaid = -1

// application is what apply is to make.
type application struct {
	replicas  int
	autoscale string
	enroll    bool
	// canary is how many replicas try an image; unsaid leaves it at what is there.
	canary int
	// access is the share of requests in its access log, "" leaves it at what is there.
	access string
	// kept is how many replicas the one that is there asks for, canaryKept how many of them try an image.
	kept, canaryKept string
}

// keep completes what is applied by what is there: applying takes away what is sent no more.
// It reports whether the waypoint scales by itself and is to have a fixed number now.
func (a *application) keep(ctx context.Context, c *cluster.Cluster, w *which) (fixed bool, err error) {
	there, err := c.Dynamic.Resource(gateways()).Namespace(w.namespace).Get(ctx, w.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil // applying says what else may be missing
	}
	if err != nil {
		return false, missing(c, "get Gateway "+w.namespace+"/"+w.name, err)
	}
	annotations := there.GetAnnotations()
	a.canaryKept = annotations[v1alpha1.AnnotationCanary]
	a.access = cmp.Or(a.access, annotations[v1alpha1.AnnotationAccessLog])
	if a.replicas != 0 && a.autoscale == "" {
		return annotations[v1alpha1.AnnotationAutoscale] != "", nil
	}
	if a.replicas == 0 {
		a.kept = annotations[v1alpha1.AnnotationReplicas]
	}
	a.autoscale = cmp.Or(a.autoscale, annotations[v1alpha1.AnnotationAutoscale])
	return false, nil
}

// fix takes away that a waypoint scales by itself, whoever said so.
func fix(ctx context.Context, c *cluster.Cluster, w *which) error {
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null}}}`, v1alpha1.AnnotationAutoscale)
	_, err := c.Dynamic.Resource(gateways()).Namespace(w.namespace).Patch(ctx, w.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: cluster.FieldManager})
	return c.Explain("patch Gateway "+w.namespace+"/"+w.name, err)
}

// gateway is what is applied.
func (a *application) gateway(w *which) map[string]any {
	metadata := map[string]any{"namespace": w.namespace, "name": w.name}
	annotations := map[string]any{}
	if a.kept != "" {
		annotations[v1alpha1.AnnotationReplicas] = a.kept
	}
	if a.replicas != 0 {
		annotations[v1alpha1.AnnotationReplicas] = fmt.Sprint(a.replicas)
	}
	if a.autoscale != "" {
		annotations[v1alpha1.AnnotationAutoscale] = a.autoscale
	}
	if a.canaryKept != "" {
		annotations[v1alpha1.AnnotationCanary] = a.canaryKept
	}
	if a.canary != unsaid { // 0 as well: somebody else may have said more
		annotations[v1alpha1.AnnotationCanary] = fmt.Sprint(a.canary)
	}
	if a.access != "" {
		annotations[v1alpha1.AnnotationAccessLog] = a.access
	}
	if len(annotations) > 0 {
		metadata["annotations"] = annotations
	}
	return map[string]any{"apiVersion": gatewayv1.GroupVersion.String(), "kind": "Gateway", "metadata": metadata, "spec": map[string]any{
		"gatewayClassName": v1alpha1.ClassWaypoint,
		"listeners":        []any{map[string]any{"name": "mesh", "port": int64(mesh.WaypointPort), "protocol": v1alpha1.ProtocolMesh}}}}
}

// apply makes the waypoint, and returns how it is when it waited, else nil.
func (a *application) apply(ctx context.Context, c *cluster.Cluster, w *which, say func(string, ...any)) (*Waypoint, error) {
	space, err := c.Core.CoreV1().Namespaces().Get(ctx, w.namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, reach.NoNamespace(w.namespace)
	}
	if err != nil {
		return nil, c.Explain("get namespace "+w.namespace, err)
	}
	fixed, err := a.keep(ctx, c, w)
	if err != nil {
		return nil, err
	}
	if fixed {
		if err := fix(ctx, c, w); err != nil {
			return nil, err
		}
		say("Gateway %s/%s scales by itself no more", w.namespace, w.name)
	}
	o := &unstructured.Unstructured{Object: a.gateway(w)}
	if _, err := c.Dynamic.Resource(gateways()).Namespace(w.namespace).Apply(ctx, w.name, o, metav1.ApplyOptions{FieldManager: cluster.FieldManager}); err != nil {
		return nil, missing(c, "apply Gateway "+w.namespace+"/"+w.name, err)
	}
	say("Gateway %s/%s is applied", w.namespace, w.name)
	blocked(ctx, c, w, a.enroll, say)
	if a.enroll {
		if err := label(ctx, c, w.namespace, w.name); err != nil {
			return nil, err
		}
		say("namespace %s is labelled %s=%s", w.namespace, v1alpha1.LabelWaypoint, w.name)
	}
	if space.Labels[v1alpha1.LabelMesh] != v1alpha1.MeshEnabled {
		say("namespace %s is not in the mesh: only services of enrolled pods are reached through a waypoint; `heddle enroll %s` brings it in", w.namespace, w.namespace)
	}
	if w.wait <= 0 {
		return nil, nil
	}
	return await(ctx, c, w, say)
}

// label sets the namespace's label; "" takes it away.
func label(ctx context.Context, c *cluster.Cluster, namespace, value string) error {
	wanted := map[string]any{v1alpha1.LabelWaypoint: value}
	if value == "" {
		wanted[v1alpha1.LabelWaypoint] = nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": wanted}})
	if err == nil {
		_, err = c.Core.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: cluster.FieldManager})
	}
	return c.Explain("label namespace "+namespace, err)
}

// look is how often it is looked whether what is waited for has come.
const look = 500 * time.Millisecond

// await waits until the waypoint takes requests.
func await(ctx context.Context, c *cluster.Cluster, w *which, say func(string, ...any)) (*Waypoint, error) {
	ctx, cancel := context.WithTimeout(ctx, w.wait)
	defer cancel()
	last := ""
	for {
		one, err := get(ctx, c, w.namespace, w.name)
		if err == nil && one.Programmed {
			return one, nil
		}
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		if one != nil && one.Message != last {
			last = one.Message
			say("waiting: %s", last)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waypoint %s/%s takes no requests after %v: %w; last: %s; remedy: `heddle waypoint status -n %s --name %s` says how it is",
				w.namespace, w.name, w.wait, ErrNotInTime, cmp.Or(last, "nothing was said"), w.namespace, w.name)
		case <-time.After(look):
		}
	}
}

// removal is how a waypoint is taken away.
type removal struct{ force, unenroll bool }

// Removed is what became of it.
type Removed struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Deleted   bool   `json:"deleted"`
	DryRun    bool   `json:"dryRun,omitempty"`
	// CutOff are the services that name it still: their connections are, or would be, refused.
	CutOff []string `json:"cutOff"`
}

func (r *removal) delete(ctx context.Context, c *cluster.Cluster, w *which, say func(string, ...any)) (*Removed, error) {
	done := &Removed{Namespace: w.namespace, Name: w.name, DryRun: w.dryRun, CutOff: []string{}}
	one, err := get(ctx, c, w.namespace, w.name)
	if err != nil {
		return done, err
	}
	space, err := c.Core.CoreV1().Namespaces().Get(ctx, w.namespace, metav1.GetOptions{})
	if err != nil {
		return done, c.Explain("get namespace "+w.namespace, err)
	}
	labelled := space.Labels[v1alpha1.LabelWaypoint] == w.name
	done.CutOff = one.Services
	if labelled && r.unenroll {
		if done.CutOff, err = ownUsers(ctx, c, w); err != nil {
			return done, err
		}
	}
	if len(done.CutOff) > 0 && !r.force {
		return done, fmt.Errorf("%w: connections to %s would be refused; remedy: take the label off (`kubectl -n %s label service NAME %s-`%s), or delete it whatever is refused with --force",
			ErrInUse, strings.Join(done.CutOff, ", "), w.namespace, v1alpha1.LabelWaypoint, map[bool]string{true: "; --unenroll-namespace takes off that of the namespace"}[labelled])
	}
	if w.dryRun {
		return done, nil
	}
	if labelled && r.unenroll {
		if err := label(ctx, c, w.namespace, ""); err != nil {
			return done, err
		}
		say("namespace %s has no label %s any more", w.namespace, v1alpha1.LabelWaypoint)
	}
	if err := c.Dynamic.Resource(gateways()).Namespace(w.namespace).Delete(ctx, w.name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return done, c.Explain("delete Gateway "+w.namespace+"/"+w.name, err)
	}
	done.Deleted = true
	say("Gateway %s/%s is deleted", w.namespace, w.name)
	return done, awaitGone(ctx, c, w)
}

// ownUsers returns the services that name a waypoint by labels of their own.
func ownUsers(ctx context.Context, c *cluster.Cluster, w *which) ([]string, error) {
	list, err := c.Core.CoreV1().Services(w.namespace).List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelWaypoint + "=" + w.name})
	if err != nil {
		return nil, c.Explain("list services of namespace "+w.namespace, err)
	}
	names := []string{}
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names, nil
}

// awaitGone waits until a waypoint's Deployment is gone, if that is wanted.
func awaitGone(ctx context.Context, c *cluster.Cluster, w *which) error {
	if w.wait <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.wait)
	defer cancel()
	for {
		_, err := c.Core.AppsV1().Deployments(w.namespace).Get(ctx, w.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("deployment %s/%s of the waypoint is there after %v: %w; remedy: `kubectl -n %s get deployment %s -o yaml` says what holds it", w.namespace, w.name, w.wait, ErrNotInTime, w.namespace, w.name)
		case <-time.After(look):
		}
	}
}
