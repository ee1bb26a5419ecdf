package check

import (
	"strings"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
)

// clusterPrefix begins the names of namespaces that are kept for the cluster itself
// (https://kubernetes.io/docs/concepts/overview/working-with-objects/namespaces/#initial-namespaces).
const clusterPrefix = "kube-"

// KeptOut says whether a namespace that is labelled for the mesh stays outside all the same,
// and reports it: a label on all namespaces, as `kubectl label namespaces --all` puts it, is
// not to cut off what the mesh itself is reached by. Single pods of such a namespace can join
// by labels of their own.
func KeptOut(s Subject, namespace string) bool {
	if !strings.HasPrefix(namespace, clusterPrefix) {
		return false
	}
	s.Problem("metadata.labels["+v1alpha1.LabelMesh+"]", "take the label off, or label single pods",
		"the cluster, its DNS among others, cannot start without the pods of this namespace: they stay outside the mesh")
	return true
}
