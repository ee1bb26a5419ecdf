package analyze

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/judge"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// obstacle is what refuses a call: a reason, and the policy that is named with it.
type obstacle struct {
	reason mesh.Reason
	policy mesh.Key
}

// compare orders obstacles as the model meets them.
func (o obstacle) compare(other obstacle) int {
	order := []mesh.Reason{mesh.ReasonStrictPlaintext, mesh.ReasonNetworkPolicyIngress, mesh.ReasonPolicyNoMatch}
	return cmp.Or(cmp.Compare(slices.Index(order, o.reason), slices.Index(order, other.reason)), cmp.Compare(o.reason, other.reason), o.policy.Compare(other.policy))
}

// refused is what becomes of a call: a finding for each thing that stands in its way, with
// the object that lets it past; but where no object can, that one alone.
func (o *Objects) refused(c *call, enrolled []member, model *judge.Judge) []Finding {
	ports := map[obstacle][]uint16{}
	add := func(reason mesh.Reason, policy mesh.Key, port uint16) {
		at := obstacle{reason, policy}
		if !slices.Contains(ports[at], port) {
			ports[at] = append(ports[at], port)
		}
	}
	selector := o.reached(c, enrolled, func(m *member, port uint16) {
		v := model.Of(&c.from, m.judged, port)
		if v.Policy != nil {
			add(v.Policy.Reason, v.Policy.Policy, port)
		}
		if v.Final() {
			return
		}
		if v.Strict {
			add(mesh.ReasonStrictPlaintext, mesh.Key{}, port)
		}
		if v.Network != nil {
			add(v.Network.Reason, v.Network.Policy, port)
		}
	})
	var all []Finding
	for _, at := range slices.SortedFunc(maps.Keys(ports), obstacle.compare) {
		slices.Sort(ports[at])
		all = append(all, o.finding(c, at, selector, ports[at]))
	}
	return all
}

// finding says that ports of pods refuse a call.
func (o *Objects) finding(c *call, at obstacle, selector map[string]string, ports []uint16) Finding {
	f := Finding{Kind: c.kind, Namespace: c.service.Namespace, Object: c.object}
	why := ""
	switch at.reason {
	case mesh.ReasonStrictPlaintext:
		why = "which is STRICT"
		f.Remedy = "let the port take plaintext, too, by this PeerAuthentication; AuthorizationPolicies go on to hold for it"
		f.Fix = permissive(c.service, selector, ports)
	case mesh.ReasonPolicyNoMatch:
		why = fmt.Sprintf("which AuthorizationPolicy %s, and every other to ALLOW, admits no such client to", at.policy)
		f.Remedy = "let the port in by this AuthorizationPolicy beside it, which holds for everybody: name ipBlocks in it where you know whence the calls come"
		f.Fix = o.allowing(c.service, at.policy, selector, ports)
	case mesh.ReasonNetworkPolicyIngress:
		why = fmt.Sprintf("which NetworkPolicy %s, and every other of these pods, admits no such client to: agents hold enrolled pods to it, also where the cluster's network does not", at.policy)
		f.Remedy = "let the port in by this NetworkPolicy beside it, which holds for everybody, as does the tunnel's port in it, behind which agents go on to hold the pods to these policies: name an ipBlock where you know whence the calls come"
		if len(c.peers) > 0 {
			f.Remedy = "let the pods of Prometheus in at the port, by this NetworkPolicy beside it"
		}
		f.Fix = o.admitting(c, at.policy, selector, ports)
	case mesh.ReasonReservedPort:
		why = "which is the agent's own in an enrolled pod, and refused under every mode"
		f.Remedy = "let the container listen elsewhere"
	default:
		why = fmt.Sprintf("which AuthorizationPolicy %s refuses (%s)", at.policy, at.reason)
		f.Remedy = fmt.Sprintf("leave the port, or these clients, out of the rules of AuthorizationPolicy %s: what a DENY policy refuses, no policy beside it lets in", at.policy)
	}
	who := labels(selector)
	if c.pod != nil {
		who = alike(c.pod)
	}
	switch {
	case f.Fix == "":
	case c.pod != nil:
		f.Fix, f.Remedy = "", unselectable
	case judge.JobOf(selector) != "":
		f.Remedy += "; it is for Jobs of this name: where the next one has another, give the pods a label of their own in the Job's template"
	}
	f.Detail = fmt.Sprintf("%s, in plaintext, at port %s of pods %s, %s: %s", c.what, join(ports), who, why, c.lost)
	return f
}

// unselectable is the remedy where an object would be one for other pods, too.
const unselectable = "no label that stays selects these pods, and no other object lets them in alone: give them one of their own, in the template of their workload " +
	"(spec.template.metadata.labels of a Job, spec.jobTemplate.spec.template.metadata.labels of a CronJob), and look again"

// allowing is the AuthorizationPolicy that lets ports in, of those pods that another one
// selects too: where none selects a pod, an ALLOW policy would shut everybody else out.
func (o *Objects) allowing(service, other mesh.Key, selector map[string]string, ports []uint16) string {
	values := maps.Clone(selector)
	for i := range o.authorizations {
		if p := &o.authorizations[i]; p.Namespace == other.Namespace && p.Name == other.Name && p.Spec.Selector != nil {
			for key, value := range p.Spec.Selector.MatchLabels {
				values[key] = string(value)
			}
		}
	}
	return document(map[string]any{
		"apiVersion": v1alpha1.GroupVersion().String(), "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"namespace": service.Namespace, "name": short(service.Name) + "-plaintext-" + join(ports)},
		"spec": map[string]any{
			"selector": map[string]any{"matchLabels": values}, "action": v1alpha1.ActionAllow,
			"rules": []any{map[string]any{"to": []any{map[string]any{"ports": ports}}}},
		},
	})
}

// admitting is the NetworkPolicy that lets ports in, of those pods that another one isolates.
func (o *Objects) admitting(c *call, other mesh.Key, selector map[string]string, ports []uint16) string {
	made := networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}}
	made.Namespace, made.Name = c.service.Namespace, short(c.service.Name)+"-plaintext-"+join(ports)
	made.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	made.Spec.PodSelector.MatchLabels = maps.Clone(selector)
	for i := range o.policies {
		if p := &o.policies[i]; p.Namespace == other.Namespace && p.Name == other.Name {
			maps.Copy(made.Spec.PodSelector.MatchLabels, p.Spec.PodSelector.MatchLabels)
			made.Spec.PodSelector.MatchExpressions = p.Spec.PodSelector.MatchExpressions
		}
	}
	rule := networkingv1.NetworkPolicyIngressRule{From: c.peers}
	if len(c.peers) == 0 { // so are enrolled pods of other namespaces let in, by the tunnel
		ports = append(slices.Clone(ports), mesh.TunnelPort)
	}
	for _, number := range ports {
		protocol, port := corev1.ProtocolTCP, intstr.FromInt32(int32(number))
		rule.Ports = append(rule.Ports, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port})
	}
	made.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{rule}
	return policyDocument(&made)
}
