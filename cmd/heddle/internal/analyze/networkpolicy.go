package analyze

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

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

// blocked finds the policies that admit a connection between enrolled pods, but
// not the tunnel that carries it: port 15008. A policy that admits nothing is
// meant to, and so is one whose peers are not enrolled.
func (o *Objects) blocked(enrolled []member) []Finding {
	var all []Finding
	for i := range o.policies {
		p := &o.policies[i]
		selected := slices.DeleteFunc(slices.Clone(enrolled), func(m member) bool {
			return m.pod.Namespace != p.Namespace || !matches(&p.Spec.PodSelector, m.pod.Labels)
		})
		if len(selected) == 0 {
			continue
		}
		fix := networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}}
		fix.Namespace, fix.Name, fix.Spec.PodSelector = p.Namespace, short(p.Name)+"-heddle-tunnel", p.Spec.PodSelector
		var ports []string
		for _, direction := range []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress} {
			for _, r := range o.blockedRules(p, direction, selected, enrolled) {
				ports = append(ports, describe(direction, r.ports))
				add(&fix, direction, r.peers)
			}
		}
		if len(ports) == 0 {
			continue
		}
		all = append(all, Finding{
			Kind: KindNetworkPolicy, Namespace: p.Namespace, Object: "NetworkPolicy " + nameOf(p.Namespace, p.Name),
			Detail: fmt.Sprintf("it admits %s, but between enrolled pods on different nodes this goes to port %d, which the cluster's network then drops", strings.Join(slices.Compact(ports), ", and "), mesh.TunnelPort),
			Remedy: "admit the tunnel between the same pods, by this NetworkPolicy beside it; agents go on to hold what is inside to the ports that the first one names",
			Fix:    policyDocument(&fix),
		})
	}
	return all
}

// blockedRules are the rules of a policy that enrolled pods need, and that no
// policy completes.
func (o *Objects) blockedRules(p *networkingv1.NetworkPolicy, direction networkingv1.PolicyType, selected, enrolled []member) []rule {
	rules, applies := rulesOf(p, direction)
	if !applies {
		return nil
	}
	var blocked []rule
	for _, r := range rules {
		if !tcp(r.ports) || admitsTunnel(r.ports) {
			continue
		}
		everybody := len(r.peers) == 0
		needed := rule{ports: r.ports}
		for _, peer := range r.peers {
			if slices.ContainsFunc(enrolled, func(m member) bool { return o.isPeer(p.Namespace, &peer, m.pod) }) && !o.completed(p.Namespace, direction, selected, &peer) {
				needed.peers = append(needed.peers, peer)
			}
		}
		if len(needed.peers) > 0 || everybody && !o.completed(p.Namespace, direction, selected, nil) {
			blocked = append(blocked, needed)
		}
	}
	return blocked
}

// completed reports whether for each of the selected pods some policy admits the
// tunnel from or to a peer, or everybody for nil.
func (o *Objects) completed(namespace string, direction networkingv1.PolicyType, selected []member, peer *networkingv1.NetworkPolicyPeer) bool {
	return !slices.ContainsFunc(selected, func(m member) bool {
		return !slices.ContainsFunc(o.policies, func(q networkingv1.NetworkPolicy) bool {
			rules, applies := rulesOf(&q, direction)
			return applies && q.Namespace == namespace && matches(&q.Spec.PodSelector, m.pod.Labels) && slices.ContainsFunc(rules, func(r rule) bool {
				return admitsTunnel(r.ports) && (len(r.peers) == 0 || peer != nil && slices.ContainsFunc(r.peers, func(other networkingv1.NetworkPolicyPeer) bool { return reflect.DeepEqual(other, *peer) }))
			})
		})
	})
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
	case !matches(peer.NamespaceSelector, o.namespaceLabels(p.Namespace)):
		return false
	}
	return peer.PodSelector == nil || matches(peer.PodSelector, p.Labels)
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
	for i := range o.namespaces {
		if o.namespaces[i].Name == name {
			for key, value := range o.namespaces[i].Labels {
				out[key] = value
			}
		}
	}
	return out
}

// matches reports whether a selector picks labels; one that is not valid picks
// nothing, and the API server has none.
func matches(selector *metav1.LabelSelector, labels map[string]string) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(k8slabels.Set(labels))
}

func describe(direction networkingv1.PolicyType, ports []networkingv1.NetworkPolicyPort) string {
	var names []string
	for _, p := range ports {
		if isTCP(p.Protocol) && p.Port != nil {
			name := p.Port.String()
			if p.EndPort != nil {
				name += fmt.Sprintf("-%d", *p.EndPort)
			}
			names = append(names, name)
		}
	}
	return fmt.Sprintf("%s to port %s", strings.ToLower(string(direction)), strings.Join(names, ", "))
}

// add adds a rule that admits the tunnel of some peers.
func add(p *networkingv1.NetworkPolicy, direction networkingv1.PolicyType, peers []networkingv1.NetworkPolicyPeer) {
	if !slices.Contains(p.Spec.PolicyTypes, direction) {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, direction)
	}
	protocol, port := corev1.ProtocolTCP, intstr.FromInt32(mesh.TunnelPort)
	ports := []networkingv1.NetworkPolicyPort{{Protocol: &protocol, Port: &port}}
	if direction == networkingv1.PolicyTypeIngress {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers, Ports: ports})
	} else {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers, Ports: ports})
	}
}

func policyDocument(p *networkingv1.NetworkPolicy) string {
	return document(map[string]any{
		"apiVersion": p.APIVersion, "kind": p.Kind, "metadata": map[string]any{"namespace": p.Namespace, "name": p.Name}, "spec": p.Spec,
	})
}
