package network

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// IsUnread reports whether a kind is one of policies which cluster networks enforce, and
// neither agents nor anything here knows: those of Cilium, Calico (by its API, and as it keeps
// them), Antrea, and of the Network Policy API for administrators.
func IsUnread(kind schema.GroupKind) bool {
	switch kind.Group {
	case "cilium.io":
		return kind.Kind == "CiliumNetworkPolicy" || kind.Kind == "CiliumClusterwideNetworkPolicy"
	case "crd.projectcalico.org", "projectcalico.org":
		return kind.Kind == "NetworkPolicy" || kind.Kind == "GlobalNetworkPolicy"
	case "crd.antrea.io":
		return kind.Kind == "NetworkPolicy" || kind.Kind == "ClusterNetworkPolicy"
	case "policy.networking.k8s.io":
		return strings.HasSuffix(kind.Kind, "NetworkPolicy")
	}
	return false
}

// IsUnreadGroup reports whether a group has such kinds.
func IsUnreadGroup(group string) bool {
	return slices.ContainsFunc([]string{"CiliumNetworkPolicy", "GlobalNetworkPolicy", "ClusterNetworkPolicy"}, func(kind string) bool {
		return IsUnread(schema.GroupKind{Group: group, Kind: kind})
	})
}

// UnreadKinds are the resources of such kinds among custom resource definitions, each by the
// version in which it is kept.
func UnreadKinds(definitions []unstructured.Unstructured) (all []schema.GroupVersionResource) {
	for i := range definitions {
		u := &definitions[i]
		group, _, _ := unstructured.NestedString(u.Object, "spec", "group") // the API server's schema knows better
		kind, _, _ := unstructured.NestedString(u.Object, "spec", "names", "kind")
		plural, _, _ := unstructured.NestedString(u.Object, "spec", "names", "plural")
		versions, _, _ := unstructured.NestedSlice(u.Object, "spec", "versions")
		if !IsUnread(schema.GroupKind{Group: group, Kind: kind}) {
			continue
		}
		for _, v := range versions {
			if version, ok := v.(map[string]any); ok && version["storage"] == true && version["served"] == true {
				all = append(all, schema.GroupVersionResource{Group: group, Version: fmt.Sprint(version["name"]), Resource: plural})
			}
		}
	}
	return all
}

// Enforcement is whether a cluster's network enforces NetworkPolicies.
type Enforcement int

// The kinds of Enforcement.
const (
	Unknown  Enforcement = iota
	Enforced             // or may be, by the network's settings
	NotEnforced
)

// EnforcedBy says by what runs, of which DaemonSets, whether NetworkPolicies are enforced.
func EnforcedBy(pods []corev1.Pod) Enforcement {
	found := Unknown
	for i := range pods {
		for _, owner := range pods[i].OwnerReferences {
			switch {
			case owner.Kind != "DaemonSet":
			case slices.Contains([]string{"anetd", "antrea-agent", "aws-node", "azure-npm", "calico-node", "canal", "cilium", "kindnet", "kube-network-policies", "kube-router", "ovnkube-node", "weave-net"}, owner.Name):
				return Enforced
			case owner.Name == "kube-flannel-ds" || owner.Name == "kube-flannel":
				found = NotEnforced
			}
		}
	}
	return found
}
