package judge

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// Source is whence somebody connects: from a node's own network where Node is set.
type Source struct {
	Addr netip.Addr
	Node string
}

// SourceOf is whence a pod connects: from the first of its addresses, as a rule; false while
// it has none.
func SourceOf(p *corev1.Pod) (s Source, ok bool) {
	text := p.Status.PodIP
	if len(p.Status.PodIPs) > 0 {
		text = p.Status.PodIPs[0].IP
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return s, false
	}
	s.Addr = addr.Unmap()
	if p.Spec.HostNetwork {
		s.Node = p.Spec.NodeName
	}
	return s, true
}

// blocks returns an address of each block that policies of each namespace let in.
func (o *Objects) blocks() map[string][]Source {
	all := map[string][]Source{}
	add := func(namespace, block string) {
		prefix, err := netip.ParsePrefix(block)
		if s := (Source{Addr: prefix.Addr()}); err == nil && !slices.Contains(all[namespace], s) {
			all[namespace] = append(all[namespace], s)
		}
	}
	for i := range o.Authorizations {
		for _, rule := range o.Authorizations[i].Spec.Rules {
			for _, from := range rule.From {
				for _, block := range from.IPBlocks {
					add(o.Authorizations[i].Namespace, string(block))
				}
			}
		}
	}
	for i := range o.Policies {
		for _, block := range ingressBlocks(&o.Policies[i]) {
			add(o.Policies[i].Namespace, block.CIDR)
		}
	}
	return all
}

func ingressBlocks(p *networkingv1.NetworkPolicy) (all []*networkingv1.IPBlock) {
	for _, rule := range p.Spec.Ingress {
		for _, peer := range rule.From {
			if peer.IPBlock != nil {
				all = append(all, peer.IPBlock)
			}
		}
	}
	return all
}

// Stable are the labels that all pods of a workload share, in every version.
func Stable(labels map[string]string) map[string]string {
	out := map[string]string{}
	for key, value := range labels {
		switch key {
		case "pod-template-hash", "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
			"controller-uid", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name", "job-name", "app.kubernetes.io/version", "helm.sh/chart":
		default:
			out[key] = value
		}
	}
	return out
}
