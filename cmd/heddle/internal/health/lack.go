package health

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// LackOfDeployment says what a Deployment lacks to be healthy; "" when nothing.
func LackOfDeployment(o *unstructured.Unstructured) string {
	wanted := Number(o, "spec", "replicas")
	switch updated, available, all := Number(o, "status", "updatedReplicas"), Number(o, "status", "availableReplicas"), Number(o, "status", "replicas"); {
	case Number(o, "status", "observedGeneration") < o.GetGeneration():
		return "not looked at yet"
	case updated < wanted || available < wanted:
		return fmt.Sprintf("%d of %d replicas are new, %d are ready", updated, wanted, available)
	case all > updated:
		return fmt.Sprintf("%d old replicas are going", all-updated)
	}
	return ""
}

// LackOfDaemonSet says what a DaemonSet lacks to be healthy; "" when nothing.
func LackOfDaemonSet(o *unstructured.Unstructured) string {
	wanted := Number(o, "status", "desiredNumberScheduled")
	switch updated, available := Number(o, "status", "updatedNumberScheduled"), Number(o, "status", "numberAvailable"); {
	case Number(o, "status", "observedGeneration") < o.GetGeneration():
		return "not looked at yet"
	case wanted == 0:
		return "no node is to have an agent: agent.nodeSelector selects none of the cluster's nodes (`kubectl get nodes --show-labels`)"
	case updated < wanted || available < wanted:
		return fmt.Sprintf("%d of %d nodes have the new agent, on %d one is ready", updated, wanted, available)
	}
	return ""
}

// Stuck says why a pod does not run: it cannot be placed, or a container waits.
func Stuck(pod *unstructured.Unstructured) string {
	for _, c := range Objects(pod, "status", "conditions") {
		if c["type"] == "PodScheduled" && c["status"] == "False" {
			return fmt.Sprint(c["message"])
		}
	}
	for _, status := range Objects(pod, "status", "containerStatuses") {
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

// Condition reports whether an object has a condition, and it is True.
func Condition(o *unstructured.Unstructured, kind string) bool {
	for _, c := range Objects(o, "status", "conditions") {
		if c["type"] == kind {
			return c["status"] == "True"
		}
	}
	return false
}

// Objects returns the objects of a list; what is no object is passed over.
func Objects(o *unstructured.Unstructured, path ...string) []map[string]any {
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

// Number returns a number of an object; 0 when it is not there.
func Number(o *unstructured.Unstructured, path ...string) int64 {
	n, _, err := unstructured.NestedInt64(o.Object, path...)
	if err != nil {
		return 0 // the API server's schema knows better
	}
	return n
}
