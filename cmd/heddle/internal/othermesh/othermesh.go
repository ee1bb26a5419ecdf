// Package othermesh knows other meshes than Heddle by what they leave on objects: labels
// of their control planes, marks on namespaces, and what they put into pods. It reads
// what it is given, asks nobody, and decides nothing.
package othermesh

import corev1 "k8s.io/api/core/v1"

// The names of meshes that mark namespaces.
const (
	Istio   = "Istio"
	Linkerd = "Linkerd"
)

// Mark says by which key a namespace is in another mesh; "" is in none. Istio looks at
// istio.io/rev only where istio-injection is not there (its sidecar injector's webhooks).
func Mark(labels, annotations map[string]string) (mesh, key, value string) {
	injects := "istio-injection"
	if labels[injects] == "" {
		injects = "istio.io/rev"
	}
	for _, mark := range []struct{ mesh, key, value string }{
		{Istio, "istio.io/dataplane-mode", labels["istio.io/dataplane-mode"]}, {Istio, injects, labels[injects]}, {Linkerd, "linkerd.io/inject", annotations["linkerd.io/inject"]},
	} {
		if mark.value != "" && mark.value != "disabled" && mark.value != "none" {
			return mark.mesh, mark.key, mark.value
		}
	}
	return "", "", ""
}

// Controls returns the mesh that a pod controls, or carries for; "" is none.
func Controls(p *corev1.Pod) string {
	switch {
	case p.Labels["app"] == "istiod", p.Labels["app"] == "ztunnel", p.Labels["k8s-app"] == "istio-cni-node":
		return Istio
	case p.Labels["linkerd.io/control-plane-component"] == "destination":
		return Linkerd
	}
	return ""
}

// Captured says which other mesh takes a pod's connections, and by what; "" is none. A
// gateway that has a mesh's proxy, and redirects nothing to it, is not captured.
func Captured(p *corev1.Pod) (mesh, by string) {
	const ambient = "ambient.istio.io/redirection" // what Istio's CNI says of a pod that ztunnel carries for
	if p.Annotations[ambient] == "enabled" {
		return Istio, "annotation " + ambient
	}
	// What redirects, or, where a CNI plugin does that, waits until it has.
	redirects := map[string]string{
		"istio-init": Istio, "istio-validation": Istio, "linkerd-init": Linkerd, "linkerd-network-validator": Linkerd,
		"kuma-init": "Kuma", "kuma-validation": "Kuma", "consul-connect-inject-init": "Consul",
	}
	for i := range p.Spec.InitContainers {
		if name := p.Spec.InitContainers[i].Name; redirects[name] != "" {
			return redirects[name], "init container " + name
		}
	}
	return "", ""
}
