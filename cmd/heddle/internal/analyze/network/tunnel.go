package network

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Tunnel finds the policies that admit a connection between enrolled pods, but
// not the tunnel that carries it: port 15008. A policy that admits nothing is
// meant to, and so is one whose peers are not enrolled.
func (o *Objects) Tunnel() []Finding {
	var all []Finding
	for i := range o.Policies {
		p := &o.Policies[i]
		selected := slices.DeleteFunc(slices.Clone(o.Enrolled), func(pod *corev1.Pod) bool { return !Selects(p, pod) })
		if len(selected) == 0 {
			continue
		}
		fix := beside(p, p.Spec.PodSelector, "tunnel")
		var ports []string
		for _, direction := range []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress} {
			for _, r := range o.blockedRules(p, direction, selected) {
				ports = append(ports, describe(direction, r.ports))
				add(fix, direction, r.peers)
			}
		}
		if len(ports) == 0 {
			continue
		}
		all = append(all, Finding{
			Policy: p,
			Detail: fmt.Sprintf("it admits %s, but between enrolled pods on different nodes this goes to port %d, which the cluster's network then drops", strings.Join(slices.Compact(ports), ", and "), mesh.TunnelPort),
			Remedy: "admit the tunnel between the same pods, by this NetworkPolicy beside it; agents go on to hold what is inside to the ports that the first one names",
			Fix:    fix,
		})
	}
	return all
}

// blockedRules are the rules of a policy that enrolled pods need, and that no
// policy completes.
func (o *Objects) blockedRules(p *networkingv1.NetworkPolicy, direction networkingv1.PolicyType, selected []*corev1.Pod) []rule {
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
			if slices.ContainsFunc(o.Enrolled, func(pod *corev1.Pod) bool { return o.isPeer(p.Namespace, &peer, pod) }) && !o.completed(direction, selected, &peer) {
				needed.peers = append(needed.peers, peer)
			}
		}
		if len(needed.peers) > 0 || everybody && !o.completed(direction, selected, nil) {
			blocked = append(blocked, needed)
		}
	}
	return blocked
}

// completed reports whether for each of the selected pods some policy admits the
// tunnel from or to a peer, or everybody for nil.
func (o *Objects) completed(direction networkingv1.PolicyType, selected []*corev1.Pod, peer *networkingv1.NetworkPolicyPeer) bool {
	return !slices.ContainsFunc(selected, func(pod *corev1.Pod) bool {
		return !slices.ContainsFunc(o.Policies, func(q networkingv1.NetworkPolicy) bool {
			rules, applies := rulesOf(&q, direction)
			return applies && Selects(&q, pod) && slices.ContainsFunc(rules, func(r rule) bool {
				return admitsTunnel(r.ports) && (len(r.peers) == 0 || peer != nil && slices.ContainsFunc(r.peers, func(other networkingv1.NetworkPolicyPeer) bool { return reflect.DeepEqual(other, *peer) }))
			})
		})
	})
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
	ports := portsOf(intstr.FromInt32(mesh.TunnelPort))
	if direction == networkingv1.PolicyTypeIngress {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers, Ports: ports})
	} else {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers, Ports: ports})
	}
}
