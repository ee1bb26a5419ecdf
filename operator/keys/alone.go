package keys

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// ErrAnother is matched by Open when there are no keys yet, and another Heddle runs on the
// cluster. Two would have two CAs, and take each other's pods over on every node.
var ErrAnother = errors.New("another Heddle runs on this cluster")

// programs selects the pods of agents and operators, as the chart labels them.
const programs = "app.kubernetes.io/part-of=heddle,app.kubernetes.io/component in (agent, operator)"

// podsAtOnce is how many pods one answer of the API server has at most.
const podsAtOnce = 100

// alone is an error that matches ErrAnother when agents or operators of another namespace
// run. Those that are ending, or have ended, are none.
func alone(ctx context.Context, client typedcorev1.PodsGetter, namespace string) error {
	query := metav1.ListOptions{LabelSelector: programs, FieldSelector: "metadata.namespace!=" + namespace, Limit: podsAtOnce}
	for {
		pods, err := client.Pods(metav1.NamespaceAll).List(ctx, query)
		if err != nil {
			return fmt.Errorf("look for another Heddle: %w", err)
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; p.Namespace != namespace && runs(p) {
				return fmt.Errorf("%w, in namespace %s (pod %s), and a cluster has one: this one makes no keys, serves nobody, and its agents do not start; remedy: take this one away, or first that one, with `heddle uninstall --system-namespace %s`", ErrAnother, p.Namespace, p.Name, p.Namespace)
			}
		}
		if query.Continue = pods.Continue; query.Continue == "" {
			return nil
		}
	}
}

func runs(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}
