package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-mesh/heddle/internal/kube/routes"
)

// waypointLabels is the selector of what a waypoint consists of.
const waypointLabels = "app.kubernetes.io/part-of=heddle,app.kubernetes.io/component=" + Waypoint

// Stranger is a pod that has the labels of a waypoint's and is none: nobody has to believe
// what it says.
type Stranger struct {
	Namespace, Pod string
	// Why says what it lacks.
	Why string
}

// String returns "pod NAMESPACE/NAME: WHY".
func (s Stranger) String() string { return fmt.Sprintf("pod %s/%s: %s", s.Namespace, s.Pod, s.Why) }

// Waypoints returns the replicas of the waypoints of all namespaces that are running, sorted
// by namespace and name, and the strangers among the pods with their labels. Labels are
// anybody's who may make a pod. A replica is one by its owners, as the operator makes them:
// a Gateway of a class of Heddle's, a Deployment of it (a canary has one of its own), of
// that a ReplicaSet, each with the other's UID, and by its service account, which has the Gateway's name. Whoever can write
// all of that in a namespace can write its Gateway's, too: what a replica says is believed
// of its own namespace only (ADR 97).
func (c *Cluster) Waypoints(ctx context.Context) ([]Program, []Stranger, error) {
	pods, err := c.programs(ctx, Waypoint, corev1.NamespaceAll, "")
	pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool { return notRunning(&p) != "" })
	if err != nil || len(pods) == 0 {
		return nil, nil, err
	}
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	made, err := c.made(ctx)
	if err != nil {
		return nil, nil, err
	}
	var replicas []Program
	var strangers []Stranger
	for i := range pods {
		p := &pods[i]
		gateway, why := made.gatewayOf(p)
		if why != "" {
			strangers = append(strangers, Stranger{p.Namespace, p.Name, why})
			continue
		}
		replica := programsOf(Waypoint, pods[i:i+1])[0]
		replica.Gateway = gateway
		replicas = append(replicas, replica)
	}
	return replicas, strangers, nil
}

// made is what operators, and Kubernetes for them, have made of Gateways.
type made struct {
	sets        map[types.UID]*appsv1.ReplicaSet
	deployments map[types.UID]*appsv1.Deployment
	gateways    map[types.UID]*unstructured.Unstructured
}

func (c *Cluster) made(ctx context.Context) (*made, error) {
	m := &made{map[types.UID]*appsv1.ReplicaSet{}, map[types.UID]*appsv1.Deployment{}, map[types.UID]*unstructured.Unstructured{}}
	options := metav1.ListOptions{LabelSelector: waypointLabels}
	sets, err := c.Core.AppsV1().ReplicaSets(corev1.NamespaceAll).List(ctx, options)
	if err != nil {
		return nil, c.Explain("list the ReplicaSets of waypoints in all namespaces", err)
	}
	for i := range sets.Items {
		m.sets[sets.Items[i].UID] = &sets.Items[i]
	}
	deployments, err := c.Core.AppsV1().Deployments(corev1.NamespaceAll).List(ctx, options)
	if err != nil {
		return nil, c.Explain("list the Deployments of waypoints in all namespaces", err)
	}
	for i := range deployments.Items {
		m.deployments[deployments.Items[i].UID] = &deployments.Items[i]
	}
	classes, err := c.List(ctx, schema.GroupVersionResource{Group: gatewayGroup, Version: "v1", Resource: "gatewayclasses"}, "")
	if err != nil {
		return nil, err
	}
	gateways, err := c.List(ctx, schema.GroupVersionResource{Group: gatewayGroup, Version: "v1", Resource: "gateways"}, corev1.NamespaceAll)
	if err != nil {
		return nil, err
	}
	for i := range gateways {
		class := text(&gateways[i], "spec", "gatewayClassName")
		if slices.ContainsFunc(classes, func(c unstructured.Unstructured) bool {
			return c.GetName() == class && text(&c, "spec", "controllerName") == string(routes.ControllerName)
		}) {
			m.gateways[gateways[i].GetUID()] = &gateways[i]
		}
	}
	return m, nil
}

const gatewayGroup = "gateway.networking.k8s.io"

// text returns a string of an object; "" when it is not there, or no string.
func text(o *unstructured.Unstructured, path ...string) string {
	s, _, err := unstructured.NestedString(o.Object, path...)
	if err != nil {
		return "" // the API server's schema knows better
	}
	return s
}

// gatewayOf returns the name of the Gateway that a pod is a replica of, or why it is of none.
func (m *made) gatewayOf(p *corev1.Pod) (name, why string) {
	owner := controller(p, "apps", "ReplicaSet")
	set := m.sets[owner]
	if set == nil || set.Namespace != p.Namespace {
		return "", "no ReplicaSet of a waypoint has made it"
	}
	deployment := m.deployments[controller(set, "apps", "Deployment")]
	if deployment == nil || deployment.Namespace != p.Namespace {
		return "", "its ReplicaSet " + set.Name + " is of no waypoint's Deployment"
	}
	gateway := m.gateways[controller(deployment, gatewayGroup, "Gateway")]
	if gateway == nil || gateway.GetNamespace() != p.Namespace {
		return "", "its Deployment " + deployment.Name + " is of no Gateway of Heddle's"
	}
	if p.Spec.ServiceAccountName != gateway.GetName() {
		return "", fmt.Sprintf("its service account is %q, and not that of Gateway %s", p.Spec.ServiceAccountName, gateway.GetName())
	}
	return gateway.GetName(), ""
}

// controller returns the UID of an object's controller, if that is of a group and kind; one
// that nothing has otherwise.
func controller(o metav1.Object, group, kind string) types.UID {
	owner := metav1.GetControllerOf(o)
	if owner == nil || owner.Kind != kind {
		return ""
	}
	if version, err := schema.ParseGroupVersion(owner.APIVersion); err != nil || version.Group != group {
		return ""
	}
	return owner.UID
}
