package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
)

// waitHealthy waits for what runs.
func (c *Cluster) waitHealthy(ctx context.Context, r Request, objects []*unstructured.Unstructured) error {
	var running []*unstructured.Unstructured
	for _, o := range objects {
		if o.GetKind() == "Deployment" || o.GetKind() == "DaemonSet" {
			running = append(running, o)
		}
	}
	return c.waitFor(ctx, r, r.Wait, running)
}

// lastQuestion is how much longer than the wait a question may take. With less, the client's
// limit of requests refuses a question that could not be asked in time, and its error
// says nothing of what is waited for.
const lastQuestion = 5 * time.Second

// bounded returns the context of a wait, and that of its questions, which lasts longer.
func bounded(ctx context.Context, bound time.Duration) (wait, asking context.Context, cancel func()) {
	asking, stop := context.WithTimeout(ctx, bound+lastQuestion)
	wait, end := context.WithTimeout(asking, bound)
	return wait, asking, func() { end(); stop() }
}

// waitFor waits until every object is as its kind should be, and says what it
// waits for whenever that changes.
func (c *Cluster) waitFor(ctx context.Context, r Request, bound time.Duration, objects []*unstructured.Unstructured) error {
	ctx, asking, cancel := bounded(ctx, bound)
	defer cancel()
	tick := time.NewTicker(c.patient)
	defer tick.Stop()
	said := map[ref]string{}
	var missing []string // as it was last known
	for {
		var now []string
		for _, o := range objects {
			lack, err := c.lack(asking, o)
			if err != nil && ctx.Err() == nil {
				return err
			}
			if lack != "" {
				now = append(now, fmt.Sprintf("%s: %s", refOf(o), lack))
				if said[refOf(o)] != lack && ctx.Err() == nil {
					r.say("waiting for %s: %s", refOf(o), lack)
				}
			}
			said[refOf(o)] = lack
		}
		if ctx.Err() == nil { // or the last question had no answer
			missing = now
		}
		if len(missing) == 0 && ctx.Err() == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("not healthy after %s: %s; remedy: `heddle check --cluster` says what stands in the way; the same command goes on from here, --wait 5m waits longer",
				bound, strings.Join(missing, "; "))
		case <-tick.C:
		}
	}
}

// lack says what an object lacks to be healthy; "" when nothing.
func (c *Cluster) lack(ctx context.Context, wanted *unstructured.Unstructured) (string, error) {
	o, err := c.get(ctx, wanted.GroupVersionKind(), wanted.GetNamespace(), wanted.GetName())
	if err != nil {
		return "", err
	}
	if o == nil {
		return "is gone", nil
	}
	lack := ""
	switch o.GetKind() {
	case "CustomResourceDefinition":
		if !condition(o, "Established") {
			lack = "the API server has not established it"
		}
	case "Deployment":
		lack = lackOfDeployment(o)
	case "DaemonSet":
		lack = lackOfDaemonSet(o)
	}
	if lack == "" || o.GetKind() == "CustomResourceDefinition" {
		return lack, nil
	}
	why, err := c.stuckPods(ctx, o)
	if err != nil || why == "" {
		return lack, err
	}
	return lack + " (" + why + ")", nil
}

func lackOfDeployment(o *unstructured.Unstructured) string {
	wanted := number(o, "spec", "replicas")
	switch updated, available, all := number(o, "status", "updatedReplicas"), number(o, "status", "availableReplicas"), number(o, "status", "replicas"); {
	case number(o, "status", "observedGeneration") < o.GetGeneration():
		return "not looked at yet"
	case updated < wanted || available < wanted:
		return fmt.Sprintf("%d of %d replicas are new, %d are ready", updated, wanted, available)
	case all > updated:
		return fmt.Sprintf("%d old replicas are going", all-updated)
	}
	return ""
}

func lackOfDaemonSet(o *unstructured.Unstructured) string {
	wanted := number(o, "status", "desiredNumberScheduled")
	switch updated, available := number(o, "status", "updatedNumberScheduled"), number(o, "status", "numberAvailable"); {
	case number(o, "status", "observedGeneration") < o.GetGeneration():
		return "not looked at yet"
	case wanted == 0:
		return "no node is to have an agent: agent.nodeSelector selects none of the cluster's nodes (`kubectl get nodes --show-labels`)"
	case updated < wanted || available < wanted:
		return fmt.Sprintf("%d of %d nodes have the new agent, on %d one is ready", updated, wanted, available)
	}
	return ""
}

// stuckPods says why pods of a workload do not run.
func (c *Cluster) stuckPods(ctx context.Context, o *unstructured.Unstructured) (string, error) {
	match, _, err := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels")
	if err != nil {
		return "", fmt.Errorf("%s: selector: %w", refOf(o), err)
	}
	pods, err := c.list(ctx, core("Pod"), o.GetNamespace(), labels.SelectorFromSet(match).String())
	if err != nil {
		return "", err
	}
	var reasons []string
	for i := range pods {
		if reason := stuck(&pods[i]); reason != "" && !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	slices.Sort(reasons)
	return strings.Join(reasons, ", "), nil
}

// stuck says why a pod does not run: it cannot be placed, or a container waits.
func stuck(pod *unstructured.Unstructured) string {
	for _, c := range maps(pod, "status", "conditions") {
		if c["type"] == "PodScheduled" && c["status"] == "False" {
			return fmt.Sprint(c["message"])
		}
	}
	for _, status := range maps(pod, "status", "containerStatuses") {
		waiting, found, err := unstructured.NestedMap(status, "state", "waiting")
		if err != nil || !found || waiting["reason"] == "ContainerCreating" {
			continue // it is no more than on its way
		}
		reason := fmt.Sprint(waiting["reason"])
		if strings.Contains(reason, "Image") {
			reason += fmt.Sprintf(" of %v: set image.registry and image.tag, or load the image onto the nodes", status["image"])
		}
		return reason
	}
	return ""
}

func condition(o *unstructured.Unstructured, kind string) bool {
	for _, c := range maps(o, "status", "conditions") {
		if c["type"] == kind {
			return c["status"] == "True"
		}
	}
	return false
}

// maps returns the objects of a list; what is no object is passed over.
func maps(o *unstructured.Unstructured, path ...string) []map[string]any {
	list, _, err := unstructured.NestedSlice(o.Object, path...)
	if err != nil {
		return nil // the API server's schema knows better
	}
	var out []map[string]any
	for _, item := range list {
		if m, ok := item.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}

// number returns an integer; 0 where there is none.
func number(o *unstructured.Unstructured, path ...string) int64 {
	n, _, err := unstructured.NestedInt64(o.Object, path...)
	if err != nil {
		return 0 // the API server's schema knows better
	}
	return n
}
