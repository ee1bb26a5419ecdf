// Package analyze says what the mesh would cut off, before it does: what calls
// enrolled pods without an identity (the API server's webhooks and aggregated
// APIs, scrapes, clients from outside, kubelet's lifecycle hooks, pods in their nodes' networks),
// and is refused by their mode or by policies, as the model decides; and which
// NetworkPolicies, enforced by the cluster's network, would block the tunnel. Each
// finding has the exact object that keeps it working. It reads objects, and
// changes nothing.
//
// Objects belong to one goroutine.
package analyze

import (
	"context"
	"fmt"
	"io"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/documents"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/network"
)

// Objects are what is analyzed.
type Objects struct {
	namespaces     []corev1.Namespace
	pods           []corev1.Pod
	services       []corev1.Service
	slices         []discoveryv1.EndpointSlice
	policies       []networkingv1.NetworkPolicy
	meshes         []v1alpha1.Mesh
	modes          []v1alpha1.PeerAuthentication
	authorizations []v1alpha1.AuthorizationPolicy
	monitors       []monitor
	calls          []call
	// others are not read.
	others others
	// documents are for what comes from files: a cluster's objects have been held to schemas.
	documents documents.Reader
}

// FromFiles reads files and folders, and in where "-" is named. Objects without a namespace are in namespace.
func FromFiles(in io.Reader, paths []string, namespace string) (*Objects, error) {
	o := &Objects{}
	if err := o.documents.Files(in, paths, namespace, o.Add); err != nil {
		return nil, err
	}
	return o, nil
}

// Read reads documents of YAML or JSON. An error says which document it is about, from 1.
func (o *Objects) Read(r io.Reader, namespace string) error {
	return o.documents.Read(r, namespace, o.Add)
}

// Add adds an object, if it is of a kind that matters. Workloads, such as
// Deployments, stand for the pods that they make.
func (o *Objects) Add(u *unstructured.Unstructured) error {
	switch kind := u.GroupVersionKind().GroupKind(); kind.String() {
	case "Namespace":
		return into(u, &o.namespaces)
	case "Pod":
		return into(u, &o.pods)
	case "Service":
		return into(u, &o.services)
	case "EndpointSlice.discovery.k8s.io":
		return into(u, &o.slices)
	case "NetworkPolicy.networking.k8s.io":
		return into(u, &o.policies)
	case "Mesh.heddle.dev":
		return into(u, &o.meshes)
	case "PeerAuthentication.heddle.dev":
		return into(u, &o.modes)
	case "AuthorizationPolicy.heddle.dev":
		return into(u, &o.authorizations)
	case "ServiceMonitor." + monitoring, "PodMonitor." + monitoring:
		return o.monitor(u)
	case "Deployment.apps", "StatefulSet.apps", "DaemonSet.apps", "ReplicaSet.apps", "Job.batch":
		return o.template(u, "spec", "template")
	case "CronJob.batch":
		return o.template(u, "spec", "jobTemplate", "spec", "template")
	default:
		o.unreadPolicy(u)
		o.calls = append(o.calls, callsOf(kind.Kind, u)...)
	}
	return nil
}

func into[T any](u *unstructured.Unstructured, list *[]T) error {
	var value T
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &value); err != nil {
		return fmt.Errorf("%s %s: %w", u.GetKind(), nameOf(u.GetNamespace(), u.GetName()), err)
	}
	*list = append(*list, value)
	return nil
}

// template adds the pod that a workload makes.
func (o *Objects) template(u *unstructured.Unstructured, path ...string) error {
	made, _, err := unstructured.NestedMap(u.Object, path...)
	if err != nil {
		return fmt.Errorf("%s %s: %w", u.GetKind(), nameOf(u.GetNamespace(), u.GetName()), err)
	}
	pod := &unstructured.Unstructured{Object: made}
	if made == nil {
		return nil
	}
	pod.SetName(u.GetName())
	pod.SetNamespace(u.GetNamespace())
	// Of another type than the schema has it is false, as where it is missing.
	if chosen, _, _ := unstructured.NestedBool(u.Object, "spec", "manualSelector"); u.GetKind() == "Job" && u.GetName() != "" && !chosen {
		labels := pod.GetLabels()
		if labels == nil {
			labels = map[string]string{}
		}
		labels[batchv1.JobNameLabel] = u.GetName() // as the API server does
		pod.SetLabels(labels)
	}
	return into(pod, &o.pods)
}

func nameOf(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// Lister lists objects of a cluster.
type Lister interface {
	List(ctx context.Context, resource schema.GroupVersionResource, namespace string) ([]unstructured.Unstructured, error)
}

// FromCluster reads a cluster's objects.
func FromCluster(ctx context.Context, c Lister) (*Objects, error) {
	o := &Objects{}
	resources := []schema.GroupVersionResource{
		{Version: "v1", Resource: "namespaces"}, {Version: "v1", Resource: "pods"}, {Version: "v1", Resource: "services"},
		{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"},
		{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
		{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"},
		{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
		{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
		{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
		{Group: v1alpha1.Group, Version: "v1alpha1", Resource: "meshes"},
		{Group: v1alpha1.Group, Version: "v1alpha1", Resource: "peerauthentications"},
		{Group: v1alpha1.Group, Version: "v1alpha1", Resource: "authorizationpolicies"},
	}
	for len(resources) > 0 {
		r := resources[0]
		list, err := c.List(ctx, r, "")
		if err = o.mayNotRead(r, err); err != nil {
			return nil, err
		}
		for i := range list {
			if err := o.Add(&list[i]); err != nil {
				return nil, err
			}
		}
		resources = resources[1:]
		if r.Resource == "customresourcedefinitions" {
			resources = append(resources, slices.Concat(monitorsOf(list), network.UnreadKinds(list))...)
		}
	}
	return o, nil
}

// HasNamespace reports whether there is an object for a namespace.
func (o *Objects) HasNamespace(name string) bool {
	return slices.ContainsFunc(o.namespaces, func(ns corev1.Namespace) bool { return ns.Name == name })
}

// Enroll has Analyze take a namespace for one that is enrolled, with every port
// STRICT that no PeerAuthentication with a selector names, if strict is set.
func (o *Objects) Enroll(namespace string, strict bool) {
	found := false
	for i := range o.namespaces {
		if ns := &o.namespaces[i]; ns.Name == namespace {
			found = true
			ns.Labels = withLabel(ns.Labels)
		}
	}
	if !found {
		o.namespaces = append(o.namespaces, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: withLabel(nil)}})
	}
	if strict {
		o.modes = append(o.modes, *Strict(namespace))
	}
}

func withLabel(labels map[string]string) map[string]string {
	out := map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}
	for key, value := range labels {
		if key != v1alpha1.LabelMesh {
			out[key] = value
		}
	}
	return out
}

// StrictName is the name of the PeerAuthentication that Strict returns.
const StrictName = "heddle-strict"

// Strict returns the PeerAuthentication that makes a namespace STRICT.
func Strict(namespace string) *v1alpha1.PeerAuthentication {
	return &v1alpha1.PeerAuthentication{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "PeerAuthentication"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: StrictName, Labels: map[string]string{"app.kubernetes.io/managed-by": "heddle"}},
		Spec:       v1alpha1.PeerAuthenticationSpec{Mode: v1alpha1.PeerAuthenticationStrict},
	}
}
