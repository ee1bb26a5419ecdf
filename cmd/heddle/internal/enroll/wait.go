package enroll

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
)

// askAgain is how often agents are asked while pods follow.
const askAgain = 250 * time.Millisecond

// Pod is a pod of the namespace, as its node's agent reports it.
type Pod struct {
	Name string `json:"name"`
	Node string `json:"node"`
	// State is "enrolled", "enrolling", "unenrolling", "failed", "outside", or
	// "unknown" when no agent has said.
	State string `json:"state"`
	Error string `json:"error,omitempty"`
	// Done is set when the pod is as was asked for.
	Done bool `json:"done"`
}

// wait waits until every pod of the namespace is in the mesh, or out of it, as
// agents report.
func wait(ctx context.Context, c *cluster.Cluster, agents Agents, r *Request, in bool) ([]Pod, error) {
	if r.Wait == 0 {
		return []Pod{}, nil
	}
	where := "in the mesh"
	if !in {
		where = "out of the mesh"
	}
	bounded, cancel := context.WithTimeout(ctx, r.Wait)
	defer cancel()
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	pods, said, looked := []Pod{}, "", false
	for {
		now, err := look(bounded, c, agents, r.Namespace, in)
		switch {
		case err == nil:
			pods, looked = now, true
		case !looked && bounded.Err() == nil:
			return pods, err
		} // later, an API server that is away is waited for, too
		missing := slices.DeleteFunc(slices.Clone(pods), func(p Pod) bool { return p.Done })
		if line := fmt.Sprintf("%d of %d pods are %s", len(pods)-len(missing), len(pods), where); line != said && bounded.Err() == nil {
			said = line
			r.say("%s", line)
		}
		if len(missing) == 0 && err == nil {
			return pods, nil
		}
		select {
		case <-ctx.Done():
			return pods, ctx.Err()
		case <-bounded.Done():
			return pods, fmt.Errorf("%w after %s: %s; remedy: `heddle check` says what stands in the way; the same command goes on from here", ErrNotInTime, r.Wait, describe(missing))
		case <-tick.C:
		}
	}
}

// maxDescribed bounds the pods that an error names.
const maxDescribed = 5

func describe(pods []Pod) string {
	var words []string
	for _, p := range pods[:min(len(pods), maxDescribed)] {
		words = append(words, strings.TrimSuffix(fmt.Sprintf("%s on node %s is %s: %s", p.Name, p.Node, p.State, p.Error), ": "))
	}
	if more := len(pods) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return cmp.Or(strings.Join(words, "; "), "the API server did not answer")
}

// look compares the pods of a namespace with what their nodes' agents report.
func look(ctx context.Context, c *cluster.Cluster, agents Agents, namespace string, in bool) ([]Pod, error) {
	list, err := c.Core.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, c.Explain("list the pods of namespace "+namespace, err)
	}
	var nodes []string
	pods := []Pod{}
	for i := range list.Items {
		p := &list.Items[i]
		if !follows(p, in) {
			continue
		}
		pods = append(pods, Pod{Name: p.Name, Node: p.Spec.NodeName})
		if !slices.Contains(nodes, p.Spec.NodeName) {
			nodes = append(nodes, p.Spec.NodeName)
		}
	}
	answers := map[string]error{}
	reported := map[string]*meshpb.PodStatus{}
	asked, err := agents(ctx, nodes)
	if err != nil {
		return nil, err
	}
	for _, answer := range asked {
		answers[answer.Target.Node] = answer.Err
		for _, p := range answer.Value.GetPods() {
			reported[p.GetWorkload()] = p
		}
	}
	silent := slices.DeleteFunc(slices.Clone(nodes), func(node string) bool { _, asked := answers[node]; return asked })
	if err := unasked(ctx, c, silent, answers); err != nil {
		return nil, err
	}
	for i := range pods {
		p := &pods[i]
		status := reported[namespace+"/"+p.Name]
		switch err := answers[p.Node]; {
		case errors.Is(err, errNoAgentMeant):
			p.State, p.Error, p.Done = "outside", err.Error(), !in
		case err != nil:
			p.State, p.Error = "unknown", err.Error()
		default:
			p.State, p.Error = cmp.Or(status.GetState(), "outside"), cmp.Or(status.GetError(), stays(status))
			p.Done = in && p.State == "enrolled" || !in && p.State == "outside"
		}
	}
	return pods, nil
}

// errNoAgentMeant is matched of nodes that the agents' DaemonSet leaves out.
var errNoAgentMeant = errors.New("its node is to have no agent (agent.nodeSelector)")

// unasked says why each of the nodes has no agent that could be asked. The error is that
// of the API server.
func unasked(ctx context.Context, c *cluster.Cluster, nodes []string, why map[string]error) error {
	if len(nodes) == 0 {
		return nil
	}
	sets, err := c.Core.AppsV1().DaemonSets(c.Namespace()).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=heddle,app.kubernetes.io/component=" + cluster.Agent})
	if err != nil {
		return c.Explain("list the DaemonSets of namespace "+c.Namespace(), err)
	}
	for _, node := range nodes {
		n, err := c.Core.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		meant := func(set appsv1.DaemonSet) bool {
			return labels.SelectorFromSet(set.Spec.Template.Spec.NodeSelector).Matches(labels.Set(n.Labels))
		}
		switch {
		case apierrors.IsNotFound(err):
			why[node] = errors.New("its node is no part of the cluster any more; remedy: delete the pod")
		case err != nil:
			return c.Explain("get node "+node, err)
		case len(sets.Items) > 0 && !slices.ContainsFunc(sets.Items, meant):
			why[node] = errNoAgentMeant
		default:
			why[node] = errors.New("no agent is on its node, so nobody knows; remedy: `kubectl -n " + c.Namespace() + " get pods -o wide` shows what keeps it away")
		}
	}
	return nil
}

// stays says why a pod is in the mesh that is to leave it; "" of others.
func stays(p *meshpb.PodStatus) string {
	if p.GetStaysNs() == 0 {
		return ""
	}
	return "it has left again and again, and stays until " + time.Unix(0, p.GetStaysNs()).UTC().Format(time.TimeOnly) + " UTC in case it is put back"
}

// follows reports whether the namespace's label decides about a pod.
func follows(p *corev1.Pod, in bool) bool {
	own := p.Labels[v1alpha1.LabelMesh]
	switch {
	case p.Spec.HostNetwork || p.Spec.NodeName == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed:
		return false
	case in:
		return own != v1alpha1.MeshDisabled
	}
	return own != v1alpha1.MeshEnabled
}
