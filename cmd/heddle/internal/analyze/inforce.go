package analyze

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/network"
)

// ComesIntoForce says which NetworkPolicies of a namespace nothing enforces before it is
// enrolled, as far as that can be known by what runs; "" when there are none.
func (o *Objects) ComesIntoForce(namespace string) string {
	var names []string
	for i := range o.policies {
		if p := &o.policies[i]; p.Namespace == namespace && slices.ContainsFunc(o.pods, func(pod corev1.Pod) bool { return network.Selects(p, &pod) }) {
			names = append(names, p.Name)
		}
	}
	enforcement := network.EnforcedBy(o.pods)
	if len(names) == 0 || enforcement == network.Enforced || o.enrolls(namespace) {
		return ""
	}
	slices.Sort(names)
	if len(names) > maxNamed {
		names = append(names[:maxNamed], "...")
	}
	enforced := "nothing that is known to enforce NetworkPolicies runs on the cluster: if nothing does,"
	if enforcement == network.NotEnforced {
		enforced = "the cluster's network (Flannel) enforces no NetworkPolicies:"
	}
	return fmt.Sprintf("%s those of namespace %s (%s) come into force with the label, as agents hold enrolled pods to them", enforced, namespace, strings.Join(names, ", "))
}
