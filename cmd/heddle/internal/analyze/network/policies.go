// Package network says which NetworkPolicies stand in the way of what they admit, as the
// mesh carries it: in a tunnel, which a cluster's network judges by the tunnel's port; and
// by way of a waypoint, whose pods are who connects then. Each finding has the policy to
// have beside. It is pure.
package network

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Objects are policies, and what they are about. They are read only.
type Objects struct {
	Namespaces []corev1.Namespace
	Services   []corev1.Service
	Policies   []networkingv1.NetworkPolicy
	Enrolled   []*corev1.Pod // those that are in the mesh
}

// Finding is a policy that blocks what it, or another one, is to admit.
type Finding struct {
	Policy         *networkingv1.NetworkPolicy
	Waypoint       mesh.Key // the way through which it blocks; zero of the tunnel
	Detail, Remedy string
	Fix            *networkingv1.NetworkPolicy // to have beside it
}

// beside returns a policy to have beside p, without rules yet, which selects pods that p isolates.
func beside(p *networkingv1.NetworkPolicy, selector metav1.LabelSelector, what string) *networkingv1.NetworkPolicy {
	made := &networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}}
	// Room is left in the name for what follows: RFC 1123 has 253, and a label 63.
	made.Namespace, made.Name = p.Namespace, strings.TrimRight(p.Name[:min(len(p.Name), 40)], "-.")+"-heddle-"+what
	made.Spec.PodSelector = selector
	return made
}

// portsOf are ports over TCP.
func portsOf(all ...intstr.IntOrString) []networkingv1.NetworkPolicyPort {
	protocol := corev1.ProtocolTCP
	ports := make([]networkingv1.NetworkPolicyPort, len(all))
	for i := range all {
		ports[i] = networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &all[i]}
	}
	return ports
}

// Selects reports whether a policy is about a pod.
func Selects(p *networkingv1.NetworkPolicy, pod *corev1.Pod) bool {
	return p.Namespace == pod.Namespace && Matches(&p.Spec.PodSelector, pod.Labels)
}

// rule is one of a NetworkPolicy's, of either direction.
type rule struct {
	peers []networkingv1.NetworkPolicyPeer // none is everybody
	ports []networkingv1.NetworkPolicyPort // none is every port
}

// rulesOf returns a policy's rules of a direction, and whether it has any say in
// it.
func rulesOf(p *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) (rules []rule, applies bool) {
	applies = slices.Contains(p.Spec.PolicyTypes, direction)
	if direction == networkingv1.PolicyTypeIngress {
		for _, r := range p.Spec.Ingress {
			rules = append(rules, rule{r.From, r.Ports})
		}
		return rules, applies || len(p.Spec.PolicyTypes) == 0
	}
	for _, r := range p.Spec.Egress {
		rules = append(rules, rule{r.To, r.Ports})
	}
	return rules, applies || len(p.Spec.PolicyTypes) == 0 && len(rules) > 0
}

// tcp reports whether a rule is about TCP at all.
func tcp(ports []networkingv1.NetworkPolicyPort) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool { return isTCP(p.Protocol) })
}

func isTCP(protocol *corev1.Protocol) bool { return protocol == nil || *protocol == corev1.ProtocolTCP }

// admitsTunnel reports whether the tunnel's port is among a rule's.
func admitsTunnel(ports []networkingv1.NetworkPolicyPort) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		if !isTCP(p.Protocol) {
			return false
		}
		if p.Port == nil {
			return true
		}
		first := p.Port.IntVal
		last := first
		if p.EndPort != nil {
			last = *p.EndPort
		}
		return p.Port.Type == intstr.Int && first <= mesh.TunnelPort && mesh.TunnelPort <= last
	})
}

// isPeer reports whether a pod is one of a peer's, as a policy of a namespace has
// it.
func (o *Objects) isPeer(namespace string, peer *networkingv1.NetworkPolicyPeer, p *corev1.Pod) bool {
	if peer.IPBlock != nil {
		return slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return inBlock(peer.IPBlock, ip.IP) })
	}
	switch {
	case peer.NamespaceSelector == nil:
		if p.Namespace != namespace {
			return false
		}
	case !Matches(peer.NamespaceSelector, o.namespaceLabels(p.Namespace)):
		return false
	}
	return peer.PodSelector == nil || Matches(peer.PodSelector, p.Labels)
}

func inBlock(block *networkingv1.IPBlock, text string) bool {
	addr, err := netip.ParseAddr(text)
	in := func(cidr string) bool {
		prefix, err := netip.ParsePrefix(cidr)
		return err == nil && prefix.Contains(addr)
	}
	return err == nil && in(block.CIDR) && !slices.ContainsFunc(block.Except, in)
}

// namespaceLabels are those of a namespace, with the one that the API server adds.
func (o *Objects) namespaceLabels(name string) map[string]string {
	out := map[string]string{corev1.LabelMetadataName: name}
	for i := range o.Namespaces {
		if o.Namespaces[i].Name == name {
			for key, value := range o.Namespaces[i].Labels {
				out[key] = value
			}
		}
	}
	return out
}

// Matches reports whether a selector picks labels; one that is not valid picks
// nothing, and the API server has none.
func Matches(selector *metav1.LabelSelector, labels map[string]string) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(k8slabels.Set(labels))
}
