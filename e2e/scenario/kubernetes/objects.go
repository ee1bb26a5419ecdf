package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-mesh/heddle/e2e/scenario/script"
)

const (
	meshLabel = "heddle.dev/mesh"
	// owner is whose fields those are that scenarios apply.
	owner = "heddle-scenarios"
)

var (
	namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	nodes      = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	pods       = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	services   = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	events     = schema.GroupVersionResource{Version: "v1", Resource: "events"}
)

// resource is where the API server has a kind of the language, or of Deploy.
func resource(kind string) (schema.GroupVersionResource, error) {
	switch kind {
	case "ServiceAccount":
		return schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, nil
	case "Pod":
		return pods, nil
	case "Service":
		return services, nil
	case "NetworkPolicy":
		return schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}, nil
	case "PeerAuthentication":
		return schema.GroupVersionResource{Group: "heddle.dev", Version: "v1alpha1", Resource: "peerauthentications"}, nil
	case "AuthorizationPolicy":
		return schema.GroupVersionResource{Group: "heddle.dev", Version: "v1alpha1", Resource: "authorizationpolicies"}, nil
	}
	return schema.GroupVersionResource{}, fmt.Errorf("kind %q has no place on Kubernetes: add it to e2e/scenario/kubernetes", kind)
}

// pod is a workload: its service account, and a pod that is bound to its node by the
// scheduler, and says nothing of Heddle but its label.
func (w *World) pod(namespace string, d script.Workload) []map[string]any {
	labels := map[string]any{"app": d.Name}
	if d.Label != "" {
		labels[meshLabel] = d.Label
	}
	return []map[string]any{
		{
			"apiVersion": "v1", "kind": "ServiceAccount",
			"metadata": map[string]any{"namespace": namespace, "name": d.Name},
		},
		{
			"apiVersion": "v1", "kind": "Pod",
			"metadata": map[string]any{"namespace": namespace, "name": d.Name, "labels": labels},
			"spec": map[string]any{
				"serviceAccountName": d.Name, "automountServiceAccountToken": false, "enableServiceLinks": false,
				"nodeSelector":                  map[string]any{"kubernetes.io/hostname": d.Node},
				"restartPolicy":                 "Never", // a server that ends is to be seen
				"terminationGracePeriodSeconds": int64(1),
				"containers": []any{map[string]any{
					"name": "main", "image": w.Image, "imagePullPolicy": "Never", "args": []any{"serve"},
				}},
			},
		},
	}
}

// makeNamespace makes the namespace if it is not there. One that is on its way out is
// waited for.
func (w *World) makeNamespace(ctx context.Context, name string) error {
	object := map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name}}
	for {
		_, err := w.api.Resource(namespaces).Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{FieldManager: owner})
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		there, err := get[corev1.Namespace](ctx, w, namespaces, "", name)
		switch {
		case err == nil && there.DeletionTimestamp == nil:
			return nil
		case err == nil:
			err = w.Gone(ctx, name)
		}
		if ignoreNotFound(err) != nil {
			return err
		}
	}
}

// put makes an object, or replaces what an earlier put has said of it.
func (w *World) put(ctx context.Context, namespace string, object map[string]any) error {
	// As the API server reads it: the language's numbers are Go's of any kind.
	data, err := json.Marshal(object)
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(data); err != nil {
		return err
	}
	at, err := resource(u.GetKind())
	if err != nil {
		return err
	}
	_, err = w.api.Resource(at).Namespace(namespace).Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: owner, Force: true})
	return err
}

func (w *World) patch(ctx context.Context, at schema.GroupVersionResource, namespace, name string, patch []byte) error {
	_, err := w.api.Resource(at).Namespace(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: owner})
	return err
}

func get[T any](ctx context.Context, w *World, at schema.GroupVersionResource, namespace, name string) (object T, err error) {
	u, err := w.api.Resource(at).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return object, err
	}
	return object, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &object)
}

func list[T any](ctx context.Context, w *World, at schema.GroupVersionResource, namespace string) ([]T, error) {
	found, err := w.api.Resource(at).Namespace(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	all := make([]T, len(found.Items))
	for i, u := range found.Items {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &all[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// runs says why a pod does not run; nil when it does, and has an address.
func runs(all []corev1.Pod, name string) error {
	i := slices.IndexFunc(all, func(p corev1.Pod) bool { return p.Name == name })
	if i < 0 {
		return fmt.Errorf("pod %s is not there", name)
	}
	status := all[i].Status
	for _, c := range status.ContainerStatuses {
		switch {
		case c.State.Waiting != nil:
			return fmt.Errorf("pod %s waits: %s: %s", name, c.State.Waiting.Reason, c.State.Waiting.Message)
		case c.State.Terminated != nil:
			return fmt.Errorf("pod %s has ended: %s: %s", name, c.State.Terminated.Reason, c.State.Terminated.Message)
		}
	}
	for _, c := range status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return fmt.Errorf("pod %s has no node: %s", name, c.Message)
		}
	}
	if status.Phase != corev1.PodRunning || status.PodIP == "" {
		return fmt.Errorf("pod %s is %s", name, status.Phase)
	}
	return nil
}
