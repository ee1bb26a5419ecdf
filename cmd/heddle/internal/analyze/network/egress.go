package network

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// departures are the connections that begin on the way through a waypoint: those of clients
// to it, and its own to workloads. Policies about egress let them out, or not.
type departures struct {
	*Objects
	w       *waypoint
	clients []departure   // pods that are isolated in what they send: one of those that are alike
	free    []*corev1.Pod // clients that are not
	pods    []departure   // the waypoint's
	gaps    []*gap        // by policies that let them out to workloads alone
	own     gap           // of the waypoint's pods; its services are those of kept
	kept    []kept
}

// kept is a service to whose workloads the waypoint does not come, at ports of theirs.
type kept struct {
	*corev1.Service
	ports []intstr.IntOrString
}

// departure is a pod that sends, and what isolates it.
type departure struct {
	pod       *corev1.Pod
	isolating []*networkingv1.NetworkPolicy
}

// departures are those of a waypoint. Pods that the same policies isolate are alike: of whom
// they let out to whom, nothing else of a pod decides.
func (o *Objects) departures(w *waypoint) *departures {
	d := &departures{Objects: o, w: w}
	for _, pod := range w.pods {
		d.pods = append(d.pods, departure{pod, o.isolating(pod, networkingv1.PolicyTypeEgress)})
	}
	known := map[string]bool{}
	for _, pod := range o.Enrolled {
		if w.has(pod) {
			continue
		}
		isolating, by := o.isolating(pod, networkingv1.PolicyTypeEgress), ""
		for _, p := range isolating {
			by += p.Namespace + "/" + p.Name + " "
		}
		switch {
		case by == "":
			d.free = append(d.free, pod)
		case !known[by]:
			known[by] = true
			d.clients = append(d.clients, departure{pod, isolating})
		}
	}
	return d
}

// letsOut is the first of the policies that lets a pod out to another one's port; nil when none does.
func (o *Objects) letsOut(from departure, to *corev1.Pod, port uint16) *networkingv1.NetworkPolicy {
	i := slices.IndexFunc(from.isolating, func(p *networkingv1.NetworkPolicy) bool {
		rules, _ := rulesOf(p, networkingv1.PolicyTypeEgress)
		return slices.ContainsFunc(rules, func(r rule) bool {
			return hasPort(r.ports, to, port) && slices.ContainsFunc(r.from(), func(peer networkingv1.NetworkPolicyPeer) bool { return o.isPeer(p.Namespace, &peer, to) })
		})
	})
	if i < 0 {
		return nil
	}
	return from.isolating[i]
}

// look notes what keeps clients of a workload of a service from leaving for the waypoint, and
// the waypoint from leaving for the workload.
func (d *departures) look(s *corev1.Service, pod *corev1.Pod) {
	for _, target := range targets(s) {
		number := numberOf(pod, target)
		if number == 0 {
			continue
		}
		for _, client := range d.clients {
			by := d.letsOut(client, pod, number)
			if by != nil && slices.ContainsFunc(d.w.pods, func(to *corev1.Pod) bool { return d.letsOut(client, to, mesh.WaypointPort) == nil }) {
				d.gapOf(by).note(s)
			}
		}
		for _, out := range d.pods {
			if len(out.isolating) > 0 && d.letsOut(out, pod, number) == nil && d.isMeant(s, pod) {
				d.own.policy = out.isolating[0]
				d.keep(s, target)
				break
			}
		}
	}
}

func (d *departures) keep(s *corev1.Service, port intstr.IntOrString) {
	i := slices.IndexFunc(d.kept, func(k kept) bool { return k.Service == s })
	if i < 0 {
		i = len(d.kept)
		d.kept = append(d.kept, kept{Service: s})
		d.own.note(s)
	}
	if k := &d.kept[i]; !slices.Contains(k.ports, port) {
		k.ports = append(k.ports, port)
	}
}

// isMeant reports whether any client is let out to a port of a service's workload, or to the
// waypoint: where none is, nobody is meant to come there. Who comes to the waypoint asks for
// any of the service's ports.
func (d *departures) isMeant(s *corev1.Service, pod *corev1.Pod) bool {
	for _, client := range d.clients {
		if d.letsOut(client, d.w.pods[0], mesh.WaypointPort) != nil || slices.ContainsFunc(targets(s), func(target intstr.IntOrString) bool {
			number := numberOf(pod, target)
			return number != 0 && d.letsOut(client, pod, number) != nil
		}) {
			return true
		}
	}
	return slices.ContainsFunc(d.free, func(client *corev1.Pod) bool { return client != pod })
}

func (d *departures) gapOf(policy *networkingv1.NetworkPolicy) *gap {
	for _, g := range d.gaps {
		if g.policy == policy {
			return g
		}
	}
	d.gaps = append(d.gaps, &gap{policy: policy})
	return d.gaps[len(d.gaps)-1]
}

func (d *departures) findings() (all []Finding) {
	w := d.w
	for _, g := range d.gaps {
		peer := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: w.selector}}
		if g.policy.Namespace != w.Namespace {
			peer.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: w.Namespace}}
		}
		fix := beside(g.policy, g.policy.Spec.PodSelector, "to-"+w.Name)
		fix.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
		fix.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{
			To: []networkingv1.NetworkPolicyPeer{peer}, Ports: portsOf(intstr.FromInt32(mesh.WaypointPort), intstr.FromInt32(mesh.TunnelPort)),
		}}
		all = append(all, Finding{
			Policy: g.policy, Waypoint: w.Key, Fix: fix,
			Detail: fmt.Sprintf("it lets its pods out to workloads of service %s, which goes through waypoint %s, and nothing lets them out to the waypoint's pods: to these they connect then, at port %d, and %d between nodes, and are refused (NetworkPolicyEgress)",
				strings.Join(g.services, ", "), w.Key, mesh.WaypointPort, mesh.TunnelPort),
			Remedy: "let the same pods out to the waypoint's, by this NetworkPolicy beside it",
		})
	}
	if d.own.policy == nil {
		return all
	}
	named := *d.own.policy
	named.Name = w.Name
	fix := beside(&named, metav1.LabelSelector{MatchLabels: w.selector}, "workloads")
	fix.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	for _, k := range d.kept {
		fix.Spec.Egress = append(fix.Spec.Egress, networkingv1.NetworkPolicyEgressRule{
			To:    []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: k.Spec.Selector}}},
			Ports: portsOf(append(k.ports, intstr.FromInt32(mesh.TunnelPort))...),
		})
	}
	return append(all, Finding{
		Policy: d.own.policy, Waypoint: w.Key, Fix: fix,
		Detail: fmt.Sprintf("it isolates the pods of waypoint %s in what they send, and no policy lets them out to the workloads of service %s, nor to port %d of these between nodes: through the waypoint nobody reaches them (NetworkPolicyEgress)",
			w.Key, strings.Join(d.own.services, ", "), mesh.TunnelPort),
		Remedy: "let the waypoint's pods out to these workloads, by this NetworkPolicy beside it; and, as every pod that is isolated, to what they need themselves, if nothing does yet: the cluster's DNS, and the operator at port 15012",
	})
}
