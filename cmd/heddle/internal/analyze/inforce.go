package analyze

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/network"
)

// enforcers are the DaemonSets of what enforces NetworkPolicies on nodes, or may, by its
// settings; and of what does not.
func enforcers() (those, others []string) {
	return []string{"anetd", "antrea-agent", "aws-node", "azure-npm", "calico-node", "canal", "cilium", "kindnet", "kube-network-policies", "kube-router", "ovnkube-node", "weave-net"},
		[]string{"kube-flannel-ds", "kube-flannel"}
}

// ComesIntoForce says which NetworkPolicies of a namespace nothing enforces before it is
// enrolled, as far as that can be known by what runs; "" when there are none.
func (o *Objects) ComesIntoForce(namespace string) string {
	var names []string
	for i := range o.policies {
		if p := &o.policies[i]; p.Namespace == namespace && slices.ContainsFunc(o.pods, func(pod corev1.Pod) bool { return network.Selects(p, &pod) }) {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 || o.enrolls(namespace) {
		return ""
	}
	those, others := enforcers()
	known := false
	for i := range o.pods {
		for _, owner := range o.pods[i].OwnerReferences {
			if owner.Kind == "DaemonSet" && slices.Contains(those, owner.Name) {
				return ""
			}
			known = known || owner.Kind == "DaemonSet" && slices.Contains(others, owner.Name)
		}
	}
	slices.Sort(names)
	if len(names) > maxNamed {
		names = append(names[:maxNamed], "...")
	}
	enforced := "nothing that is known to enforce NetworkPolicies runs on the cluster: if nothing does,"
	if known {
		enforced = "the cluster's network (Flannel) enforces no NetworkPolicies:"
	}
	return fmt.Sprintf("%s those of namespace %s (%s) come into force with the label, as agents hold enrolled pods to them", enforced, namespace, strings.Join(names, ", "))
}
