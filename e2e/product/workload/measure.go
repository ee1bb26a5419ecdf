package main

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// metrics is the API that metrics-server is for.
const metrics = "metrics.k8s.io/v1beta1"

// measure serves, and is the API metrics.k8s.io on :8443, as metrics-server is, for the
// API server to pass requests on to: it says of one node, n1, that it uses a quarter of
// a processor. Who asks, it does not look at.
func measure(ctx context.Context, certificate, key string) error {
	return serveBeside(ctx, certificate, key, measured)
}

func measured(w http.ResponseWriter, r *http.Request) {
	var answer any
	switch r.URL.Path {
	case "/apis/" + metrics: // what there is, which the API server also takes for a sign of life
		answer = metav1.APIResourceList{
			TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: metrics,
			APIResources: []metav1.APIResource{{Name: "nodes", Kind: "NodeMetrics", Verbs: metav1.Verbs{"get", "list"}}},
		}
	case "/apis/" + metrics + "/nodes":
		answer = map[string]any{"apiVersion": metrics, "kind": "NodeMetricsList", "metadata": map[string]any{}, "items": []any{map[string]any{
			"metadata": map[string]any{"name": "n1"}, "timestamp": time.Now().UTC().Format(time.RFC3339), "window": "10s",
			"usage": map[string]any{"cpu": "250m", "memory": "64Mi"},
		}}}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the API server has gone, or asks again
}
