package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The programs whose pods have an admin socket, by the label of their pods.
const (
	Agent    = "agent"
	Operator = "operator"
	Waypoint = "waypoint"
)

// Program is a pod with an admin socket.
type Program struct {
	// Kind is Agent, Operator or Waypoint, and the container's name.
	Kind, Namespace, Pod, Node string
	// Gateway is the name of a waypoint's; "" of others.
	Gateway string
	// Why is why the pod does not run; "" when it does.
	Why string
}

// Agents returns the agent of each node that has one, or of one node only, sorted
// by node. While one agent takes over from another, both reach the same socket.
func (c *Cluster) Agents(ctx context.Context, node string) ([]Program, error) {
	pods, err := c.programs(ctx, Agent, c.namespace, node)
	if err != nil {
		return nil, err
	}
	pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool { return p.Spec.NodeName == "" })
	slices.SortStableFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Spec.NodeName, b.Spec.NodeName), cmp.Compare(rank(&a), rank(&b)), b.CreationTimestamp.Compare(a.CreationTimestamp.Time))
	})
	pods = slices.CompactFunc(pods, func(a, b corev1.Pod) bool { return a.Spec.NodeName == b.Spec.NodeName })
	return programsOf(Agent, pods), nil
}

// Operators returns the operator's replicas, sorted by name.
func (c *Cluster) Operators(ctx context.Context) ([]Program, error) {
	pods, err := c.programs(ctx, Operator, c.namespace, "")
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return programsOf(Operator, pods), err
}

func (c *Cluster) programs(ctx context.Context, kind, namespace, node string) ([]corev1.Pod, error) {
	options := metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=heddle,app.kubernetes.io/component=" + kind}
	if node != "" {
		options.FieldSelector = "spec.nodeName=" + node
	}
	list, err := c.Core.CoreV1().Pods(namespace).List(ctx, options)
	if err != nil {
		in := "namespace " + namespace
		if namespace == corev1.NamespaceAll {
			in = "all namespaces"
		}
		return nil, c.Explain("list the pods of "+in, err)
	}
	return list.Items, nil
}

func programsOf(kind string, pods []corev1.Pod) []Program {
	all := make([]Program, 0, len(pods))
	for i := range pods {
		all = append(all, Program{Kind: kind, Namespace: pods[i].Namespace, Pod: pods[i].Name, Node: pods[i].Spec.NodeName, Why: notRunning(&pods[i])})
	}
	return all
}

// rank orders the pods of one node: the one that is most likely to answer first.
func rank(p *corev1.Pod) int {
	switch {
	case notRunning(p) != "":
		return 3
	case p.DeletionTimestamp != nil:
		return 2
	case !ready(p):
		return 1
	}
	return 0
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// notRunning says why no command can be run in a pod.
func notRunning(p *corev1.Pod) string {
	if p.Status.Phase == corev1.PodRunning && !slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.State.Waiting != nil }) {
		return ""
	}
	reasons := []string{cmp.Or(string(p.Status.Phase), "Unknown")}
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil {
			reasons = append(reasons, strings.TrimSuffix(w.Reason+": "+w.Message, ": "))
		}
	}
	return fmt.Sprintf("its pod %s does not run: %s", p.Name, strings.Join(reasons, ", "))
}
