package analyze

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/network"
)

// KindWaypoint is the kind of findings about NetworkPolicies that block a waypoint.
const KindWaypoint = "waypoint"

// blocked finds the NetworkPolicies that block what they admit, as the mesh carries it.
func (o *Objects) blocked(enrolled []member) []Finding {
	pods := make([]*corev1.Pod, len(enrolled))
	for i := range enrolled {
		pods[i] = enrolled[i].pod
	}
	written := &network.Objects{Namespaces: o.namespaces, Services: o.services, Policies: o.policies, Enrolled: pods}
	return append(networkFindings(KindNetworkPolicy, written.Tunnel()), networkFindings(KindWaypoint, written.Hops())...)
}

// Through has Analyze take all services of a namespace that do not say otherwise for ones
// that go through a waypoint.
func (o *Objects) Through(namespace, waypoint string) {
	for i := range o.namespaces {
		if ns := &o.namespaces[i]; ns.Name == namespace {
			ns.Labels = maps.Clone(ns.Labels)
			if ns.Labels == nil {
				ns.Labels = map[string]string{}
			}
			ns.Labels[v1alpha1.LabelWaypoint] = waypoint
		}
	}
}

func networkFindings(kind string, found []network.Finding) []Finding {
	var all []Finding
	for _, f := range found {
		all = append(all, Finding{
			Kind: kind, Namespace: f.Policy.Namespace, Object: "NetworkPolicy " + nameOf(f.Policy.Namespace, f.Policy.Name),
			Waypoint: f.Waypoint, Detail: f.Detail, Remedy: f.Remedy, Fix: policyDocument(f.Fix),
		})
	}
	return all
}

// matches reports whether a selector picks labels.
func matches(selector *metav1.LabelSelector, labels map[string]string) bool {
	return network.Matches(selector, labels)
}

func policyDocument(p *networkingv1.NetworkPolicy) string {
	return document(map[string]any{
		"apiVersion": p.APIVersion, "kind": p.Kind, "metadata": map[string]any{"namespace": p.Namespace, "name": p.Name}, "spec": p.Spec,
	})
}
