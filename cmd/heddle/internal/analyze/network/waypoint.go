package network

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// labelGateway is GEP-1762's label of what belongs to a Gateway.
const labelGateway = "gateway.networking.k8s.io/gateway-name"

// waypoint is what services go through. Its pods are those of its Service; where that is not
// there yet, one is taken as the operator will make them.
type waypoint struct {
	mesh.Key
	selector map[string]string
	pods     []*corev1.Pod
}

// gap is a hop that policies do not admit: ports or peers that they admit without a waypoint.
type gap struct {
	policy   *networkingv1.NetworkPolicy // one that isolates who is connected to
	services []string
	ports    []intstr.IntOrString
	peers    []networkingv1.NetworkPolicyPeer // none is everybody
}

// Hops finds the policies that admit clients to the workloads of a service which has a
// waypoint, or is to have one by its label, but admit on the way neither the waypoint's pods
// to the workloads, nor the clients to the waypoint's pods: into either, or out of either.
func (o *Objects) Hops() []Finding {
	var all []Finding
	for _, w := range o.waypoints() {
		in, behind := gap{}, map[*networkingv1.NetworkPolicy]*gap{}
		out := o.departures(w)
		for i := range o.Services {
			s := &o.Services[i]
			if o.waypointOf(s) != w.Key {
				continue
			}
			seen := map[string]bool{}
			for _, pod := range o.Enrolled {
				if pod.Namespace != s.Namespace || !contains(pod.Labels, s.Spec.Selector) {
					continue
				}
				out.look(s, pod)
				if alike := kindOf(pod); !seen[alike] {
					seen[alike] = true
					o.behind(w, s, pod, behind)
					o.into(w, s, pod, &in)
				}
			}
		}
		for i := range o.Policies {
			if g := behind[&o.Policies[i]]; g != nil {
				all = append(all, g.toWorkloads(w))
			}
		}
		if in.policy != nil {
			all = append(all, in.toWaypoint(w))
		}
		all = append(all, out.findings()...)
	}
	return all
}

// kindOf is all of a pod, of one namespace, that decides who is let in: its address does not.
func kindOf(pod *corev1.Pod) string {
	kind := fmt.Sprint(pod.Labels)
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		for _, p := range c.Ports {
			kind += fmt.Sprint(" ", p.Name, " ", p.ContainerPort, p.Protocol)
		}
	}
	return kind
}

// waypoints are those that services are to go through, by name.
func (o *Objects) waypoints() []*waypoint {
	var all []*waypoint
	for i := range o.Services {
		key := o.waypointOf(&o.Services[i])
		if key == (mesh.Key{}) || slices.ContainsFunc(all, func(w *waypoint) bool { return w.Key == key }) {
			continue
		}
		w := &waypoint{Key: key, selector: map[string]string{labelGateway: key.Name}}
		for j := range o.Services {
			if s := &o.Services[j]; s.Namespace == key.Namespace && s.Name == key.Name && len(s.Spec.Selector) > 0 {
				w.selector = s.Spec.Selector
			}
		}
		for _, pod := range o.Enrolled {
			if w.has(pod) {
				w.pods = append(w.pods, pod)
			}
		}
		if len(w.pods) == 0 {
			w.pods = []*corev1.Pod{o.future(w)}
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b *waypoint) int { return a.Compare(b.Key) })
	return all
}

// future is a pod that a waypoint will have: with an address like those of its neighbours.
func (o *Objects) future(w *waypoint) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: w.Name, Labels: w.selector}}
	for _, neighbour := range o.Enrolled {
		if neighbour.Namespace == w.Namespace && len(neighbour.Status.PodIPs) > 0 {
			pod.Status.PodIPs = neighbour.Status.PodIPs
			break
		}
	}
	return pod
}

func (w *waypoint) has(pod *corev1.Pod) bool {
	return pod.Namespace == w.Namespace && contains(pod.Labels, w.selector)
}

// waypointOf is the waypoint that a service names, by its label or its namespace's; zero
// where it has no address that connections could be taken from.
func (o *Objects) waypointOf(s *corev1.Service) mesh.Key {
	name, own := s.Labels[v1alpha1.LabelWaypoint]
	if !own {
		name = o.namespaceLabels(s.Namespace)[v1alpha1.LabelWaypoint]
	}
	if name == "" || name == v1alpha1.WaypointNone || name == s.Name || len(s.Spec.Selector) == 0 ||
		s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return mesh.Key{}
	}
	return mesh.Key{Namespace: s.Namespace, Name: name}
}

// behind adds what keeps a waypoint from a workload of a service.
func (o *Objects) behind(w *waypoint, s *corev1.Service, pod *corev1.Pod, gaps map[*networkingv1.NetworkPolicy]*gap) {
	for _, target := range targets(s) {
		number := numberOf(pod, target)
		if number == 0 || !slices.ContainsFunc(w.pods, func(from *corev1.Pod) bool { return !o.admits(from, pod, number) }) {
			continue
		}
		by, _ := o.admitting(w, pod, number)
		if by == nil {
			continue // nobody is meant to
		}
		g := gaps[by]
		if g == nil {
			g = &gap{policy: by}
			gaps[by] = g
		}
		g.note(s)
		if !slices.Contains(g.ports, target) {
			g.ports = append(g.ports, target)
		}
	}
}

// into adds what keeps the clients of a workload from a waypoint.
func (o *Objects) into(w *waypoint, s *corev1.Service, pod *corev1.Pod, in *gap) {
	isolating := o.isolating(w.pods[0], networkingv1.PolicyTypeIngress)
	if len(isolating) == 0 {
		return
	}
	kept := func(client *corev1.Pod) bool {
		return !w.has(client) && !o.admits(client, w.pods[0], mesh.WaypointPort)
	}
	for _, target := range targets(s) {
		number := numberOf(pod, target)
		if number == 0 {
			continue
		}
		if len(o.isolating(pod, networkingv1.PolicyTypeIngress)) == 0 {
			// Who isolates the waypoint alone means to, as long as anybody comes in.
			if !slices.ContainsFunc(o.Enrolled, func(client *corev1.Pod) bool { return !w.has(client) && !kept(client) }) {
				in.policy, in.peers = isolating[0], []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}}
				in.note(s)
			}
			continue
		}
		_, rules := o.admitting(w, pod, number)
		for _, r := range rules {
			for _, peer := range r.from() {
				if !slices.ContainsFunc(o.Enrolled, func(client *corev1.Pod) bool { return kept(client) && o.isPeer(pod.Namespace, &peer, client) }) {
					continue
				}
				in.policy = isolating[0]
				in.note(s)
				if !slices.ContainsFunc(in.peers, func(p networkingv1.NetworkPolicyPeer) bool { return reflect.DeepEqual(p, peer) }) {
					in.peers = append(in.peers, peer)
				}
			}
		}
	}
}

func (g *gap) note(s *corev1.Service) {
	if !slices.Contains(g.services, s.Name) {
		g.services = append(g.services, s.Name)
	}
}

func (g *gap) toWorkloads(w *waypoint) Finding {
	fix := beside(g.policy, g.policy.Spec.PodSelector, w.Name)
	fix.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	fix.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: w.selector}}},
		Ports: portsOf(append(slices.Clone(g.ports), intstr.FromInt32(mesh.TunnelPort))...),
	}}
	names := make([]string, len(g.ports))
	for i := range g.ports {
		names[i] = g.ports[i].String()
	}
	return Finding{
		Policy: g.policy, Waypoint: w.Key, Fix: fix,
		Detail: fmt.Sprintf("it admits clients of service %s, which goes through waypoint %s, and not the waypoint's pods: these are who connects then, to port %s, and to %d between nodes, and are refused (NetworkPolicyIngress)",
			strings.Join(g.services, ", "), w.Key, strings.Join(names, ", "), mesh.TunnelPort),
		Remedy: "admit the waypoint's pods, by this NetworkPolicy beside it; who may come is asked at the waypoint, by AuthorizationPolicies and by NetworkPolicies that select its pods",
	}
}

func (g *gap) toWaypoint(w *waypoint) Finding {
	named := *g.policy
	named.Name = w.Name
	fix := beside(&named, metav1.LabelSelector{MatchLabels: w.selector}, "clients")
	fix.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	fix.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From: g.peers, Ports: portsOf(intstr.FromInt32(mesh.WaypointPort), intstr.FromInt32(mesh.TunnelPort)),
	}}
	return Finding{
		Policy: g.policy, Waypoint: w.Key, Fix: fix,
		Detail: fmt.Sprintf("it isolates the pods of waypoint %s, and no policy admits there, at port %d, and %d between nodes, who is admitted to service %s: through the waypoint they are refused (NetworkPolicyIngress)",
			w.Key, mesh.WaypointPort, mesh.TunnelPort, strings.Join(g.services, ", ")),
		Remedy: "admit the same clients to the waypoint's pods, by this NetworkPolicy beside it",
	}
}

// isolating are the policies that isolate a pod in what it takes, or in what it sends.
func (o *Objects) isolating(pod *corev1.Pod, direction networkingv1.PolicyType) []*networkingv1.NetworkPolicy {
	var all []*networkingv1.NetworkPolicy
	for i := range o.Policies {
		if _, applies := rulesOf(&o.Policies[i], direction); applies && Selects(&o.Policies[i], pod) {
			all = append(all, &o.Policies[i])
		}
	}
	return all
}

// admits reports whether a pod takes a connection of another one at a port, as agents judge it.
func (o *Objects) admits(from, to *corev1.Pod, port uint16) bool {
	isolating := o.isolating(to, networkingv1.PolicyTypeIngress)
	return len(isolating) == 0 || slices.ContainsFunc(isolating, func(p *networkingv1.NetworkPolicy) bool {
		rules, _ := rulesOf(p, networkingv1.PolicyTypeIngress)
		return slices.ContainsFunc(rules, func(r rule) bool {
			return hasPort(r.ports, to, port) && slices.ContainsFunc(r.from(), func(peer networkingv1.NetworkPolicyPeer) bool { return o.isPeer(to.Namespace, &peer, from) })
		})
	})
}

// admitting returns the rules that admit enrolled clients to a pod's port, the waypoint not
// counted, and the policy of the first; nil when nobody is admitted, or everybody is.
func (o *Objects) admitting(w *waypoint, to *corev1.Pod, port uint16) (by *networkingv1.NetworkPolicy, all []rule) {
	for _, p := range o.isolating(to, networkingv1.PolicyTypeIngress) {
		rules, _ := rulesOf(p, networkingv1.PolicyTypeIngress)
		for _, r := range rules {
			if hasPort(r.ports, to, port) && slices.ContainsFunc(o.Enrolled, func(client *corev1.Pod) bool {
				return !w.has(client) && slices.ContainsFunc(r.from(), func(peer networkingv1.NetworkPolicyPeer) bool { return o.isPeer(to.Namespace, &peer, client) })
			}) {
				by, all = cmp.Or(by, p), append(all, r)
			}
		}
	}
	return by, all
}

// from are a rule's peers; pods of all namespaces where it names none.
func (r rule) from() []networkingv1.NetworkPolicyPeer {
	if len(r.peers) == 0 {
		return []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}}
	}
	return r.peers
}

// hasPort reports whether a port of a pod is among a rule's.
func hasPort(ports []networkingv1.NetworkPolicyPort, pod *corev1.Pod, number uint16) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		switch {
		case !isTCP(p.Protocol):
			return false
		case p.Port == nil:
			return true
		case p.EndPort != nil:
			return p.Port.IntVal <= int32(number) && int32(number) <= *p.EndPort
		}
		return numberOf(pod, *p.Port) == number
	})
}

// targets are the ports of a service's workloads over TCP.
func targets(s *corev1.Service) []intstr.IntOrString {
	var all []intstr.IntOrString
	for _, p := range s.Spec.Ports {
		if p.Protocol == "" || p.Protocol == corev1.ProtocolTCP {
			target := p.TargetPort
			if target == (intstr.IntOrString{}) {
				target = intstr.FromInt32(p.Port)
			}
			all = append(all, target)
		}
	}
	return all
}

// numberOf is a pod's port, by its number or its name: containers' names come before those of
// sidecars, as in the endpoints of Kubernetes. 0 is none.
func numberOf(pod *corev1.Pod, port intstr.IntOrString) uint16 {
	if port.Type == intstr.Int {
		return uint16(max(0, min(port.IntVal, 65535)))
	}
	sidecars := slices.DeleteFunc(slices.Clone(pod.Spec.InitContainers), func(c corev1.Container) bool {
		return c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways
	})
	for _, c := range slices.Concat(pod.Spec.Containers, sidecars) {
		for _, p := range c.Ports {
			if p.Name == port.StrVal && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
				return uint16(p.ContainerPort)
			}
		}
	}
	return 0
}

func contains(labels, wanted map[string]string) bool {
	for key, value := range wanted {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}
