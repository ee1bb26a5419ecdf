package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// metrics is the API that metrics-server is for.
const metrics = "metrics.k8s.io/v1beta1"

// measure serves, and is the API metrics.k8s.io on :8443, as metrics-server is, for the
// API server to pass requests on to: it says of one node, n1, that it uses a quarter of
// a processor, and of each pod that its containers use a whole one. Who asks, it does not
// look at.
func measure(ctx context.Context, certificate, key string) error {
	return serveBeside(ctx, certificate, key, measured)
}

func measured(w http.ResponseWriter, r *http.Request) {
	var answer any
	switch r.URL.Path {
	case "/apis/" + metrics: // what there is, which the API server also takes for a sign of life
		answer = metav1.APIResourceList{
			TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: metrics,
			APIResources: []metav1.APIResource{{Name: "nodes", Kind: "NodeMetrics", Verbs: metav1.Verbs{"get", "list"}},
				{Name: "pods", Kind: "PodMetrics", Namespaced: true, Verbs: metav1.Verbs{"get", "list"}}},
		}
	case "/apis/" + metrics + "/nodes":
		answer = map[string]any{"apiVersion": metrics, "kind": "NodeMetricsList", "metadata": map[string]any{}, "items": []any{map[string]any{
			"metadata": map[string]any{"name": "n1"}, "timestamp": time.Now().UTC().Format(time.RFC3339), "window": "10s",
			"usage": map[string]any{"cpu": "250m", "memory": "64Mi"},
		}}}
	default:
		namespace, found := strings.CutPrefix(r.URL.Path, "/apis/"+metrics+"/namespaces/")
		namespace, whole := strings.CutSuffix(namespace, "/pods")
		if !found || !whole {
			http.NotFound(w, r)
			return
		}
		var err error
		if answer, err = podsMeasured(r.Context(), namespace, r.URL.Query().Get("labelSelector")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the API server has gone, or asks again
}

// podsMeasured says of a namespace's pods, which it asks the API server for, that they are
// busy.
func podsMeasured(ctx context.Context, namespace, selector string) (any, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	items := []any{}
	for _, pod := range pods.Items {
		containers := []any{}
		for _, c := range pod.Spec.Containers {
			containers = append(containers, map[string]any{"name": c.Name, "usage": map[string]any{"cpu": "1", "memory": "64Mi"}})
		}
		items = append(items, map[string]any{"metadata": map[string]any{"name": pod.Name, "namespace": namespace, "labels": pod.Labels},
			"timestamp": time.Now().UTC().Format(time.RFC3339), "window": "10s", "containers": containers})
	}
	return map[string]any{"apiVersion": metrics, "kind": "PodMetricsList", "metadata": map[string]any{}, "items": items}, nil
}
