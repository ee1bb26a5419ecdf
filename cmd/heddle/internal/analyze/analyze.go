package analyze

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/trim"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Finding is one thing that would not work.
type Finding struct {
	// Warning is set of what may work all the same, which nothing is refused for.
	Warning bool `json:"warning,omitempty"`
	// Kind is one of the constants Kind....
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	// Object is the one that is about what would not work, as "NetworkPolicy shop/db".
	Object string `json:"object"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy"`
	// Fix is the object, as YAML, that keeps it working; "" when there is none.
	Fix string `json:"fix,omitempty"`
}

// member is a pod that is enrolled.
type member struct {
	pod      *corev1.Pod
	workload *mesh.Workload
}

// Analyze returns what would not work, or does not, in the namespaces that are
// enrolled, or in one of them only; in order of namespace and object. An error
// means that the objects cannot be compiled.
func (o *Objects) Analyze(only string) ([]Finding, error) {
	enrolled, err := o.enrolled()
	if err != nil {
		return nil, err
	}
	var all []Finding
	calls := slices.Concat(o.calls, o.scrapes(enrolled), o.outside(), o.hookCalls())
	for i := range calls {
		all = append(all, o.refused(&calls[i], enrolled)...)
	}
	all = append(all, o.hostNetwork()...)
	all = append(all, o.interfaces(enrolled)...)
	all = append(all, o.unread(enrolled)...)
	all = append(all, o.otherMeshes(enrolled)...)
	all = append(all, o.datagrams(enrolled)...)
	all = append(all, o.lifecycle(enrolled)...)
	all = append(all, o.blocked(enrolled)...)
	all = slices.DeleteFunc(all, func(f Finding) bool { return only != "" && f.Namespace != only })
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Object, b.Object))
	})
	// The pods of one workload are one finding, and so are the services before them that
	// one object has called.
	return slices.CompactFunc(all, func(a, b Finding) bool {
		return a.Kind == b.Kind && a.Namespace == b.Namespace && a.Detail == b.Detail && (a.Fix == b.Fix || a.Object == b.Object)
	}), nil
}

// enrolled returns the pods that are enrolled, with their modes, by the rules of
// the mesh itself.
func (o *Objects) enrolled() ([]member, error) {
	settings := v1alpha1.Mesh{}
	settings.Name = v1alpha1.MeshName
	settings.Spec.TrustDomain = "analyze"
	settings.Spec.ClusterRanges = []v1alpha1.AddressBlock{"0.0.0.0/0", "::/0"}
	if len(o.meshes) > 0 {
		settings.Spec.Defaults = o.meshes[0].Spec.Defaults
	}
	objects := &kube.Objects{Meshes: []kube.Sourced[v1alpha1.Mesh]{{Value: &settings}}}
	for i := range o.namespaces {
		objects.Namespaces = append(objects.Namespaces, kube.Sourced[corev1.Namespace]{Value: &o.namespaces[i]})
	}
	for i := range o.modes {
		objects.PeerAuthentications = append(objects.PeerAuthentications, kube.Sourced[v1alpha1.PeerAuthentication]{Value: &o.modes[i]})
	}
	pods := map[mesh.Key]*corev1.Pod{}
	trimmer := trim.New()
	for i := range o.pods {
		trimmed := trimmer.Pod(&o.pods[i])
		trimmed.Addresses = nil // templates have none
		trimmed.Node = cmp.Or(trimmed.Node, "unknown")
		objects.Pods = append(objects.Pods, trimmed)
		pods[trimmed.Key()] = &o.pods[i]
	}
	compiled, err := kube.CompileEach(objects)
	if err != nil {
		return nil, fmt.Errorf("analyze: %w", err)
	}
	members := make([]member, 0, len(compiled.Workloads))
	for i := range compiled.Workloads {
		if w := &compiled.Workloads[i]; w.Enrolled {
			members = append(members, member{pods[w.Key], w})
		}
	}
	return members, nil
}

// refused is what becomes of a call.
func (o *Objects) refused(c *call, enrolled []member) []Finding {
	selector, ports := o.reached(c, enrolled)
	if len(ports) == 0 {
		return nil
	}
	what := fmt.Sprintf("%s, in plaintext, at port %s of pods %s, which is STRICT: %s", c.what, join(ports), labels(selector), c.lost)
	return []Finding{{
		Kind: c.kind, Namespace: c.service.Namespace, Object: c.object, Detail: what,
		Remedy: "let the port take plaintext, too, by this PeerAuthentication; AuthorizationPolicies go on to hold for it",
		Fix:    permissive(c.service, selector, ports),
	}}
}

// permissive is the PeerAuthentication that lets ports take plaintext.
func permissive(service mesh.Key, selector map[string]string, ports []uint16) string {
	values := map[string]v1alpha1.LabelValue{}
	for key, value := range selector {
		values[key] = v1alpha1.LabelValue(value)
	}
	modes := make([]any, len(ports))
	for i, port := range ports {
		modes[i] = map[string]any{"port": port, "mode": v1alpha1.PeerAuthenticationPermissive}
	}
	return document(map[string]any{
		"apiVersion": v1alpha1.GroupVersion().String(), "kind": "PeerAuthentication",
		"metadata": map[string]any{"namespace": service.Namespace, "name": short(service.Name) + "-plaintext-" + join(ports)},
		"spec":     map[string]any{"selector": map[string]any{"matchLabels": values}, "portModes": modes},
	})
}

// short leaves room in a name for what follows (RFC 1123 has 253, and a label 63).
func short(name string) string { return strings.TrimRight(name[:min(len(name), 40)], "-.") }

func document(object any) string {
	text, err := yaml.Marshal(object)
	if err != nil {
		return err.Error() // maps of texts always can be
	}
	return string(text)
}

func join(ports []uint16) string {
	words := make([]string, len(ports))
	for i, port := range ports {
		words[i] = fmt.Sprint(port)
	}
	return strings.Join(words, "-")
}

// labels shows a selector, as kubectl's -l takes it.
func labels(selector map[string]string) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(selector)) {
		words = append(words, key+"="+selector[key])
	}
	return cmp.Or(strings.Join(words, ","), "(all)")
}

// hostNetwork finds the pods of enrolled namespaces that cannot be enrolled.
func (o *Objects) hostNetwork() []Finding {
	var all []Finding
	for i := range o.pods {
		p := &o.pods[i]
		if !p.Spec.HostNetwork || !o.wants(p) {
			continue
		}
		all = append(all, Finding{
			Kind: KindHostNetwork, Namespace: p.Namespace, Object: "Pod " + nameOf(p.Namespace, familyOf(p)),
			Detail: fmt.Sprintf("pods %s are in their node's network (hostNetwork): they stay outside the mesh, and STRICT ports refuse what they call", labels(stable(p.Labels))),
			Remedy: "take hostNetwork out; or label the pods, in the template of their workload, " + v1alpha1.LabelMesh + ": " + v1alpha1.MeshDisabled +
				", and let the ports that they call be PERMISSIVE",
		})
	}
	return all
}

// wants reports whether a pod's labels, or its namespace's, enroll it.
func (o *Objects) wants(p *corev1.Pod) bool {
	if own, ok := p.Labels[v1alpha1.LabelMesh]; ok {
		return own == v1alpha1.MeshEnabled
	}
	return o.enrolls(p.Namespace)
}

func (o *Objects) enrolls(namespace string) bool {
	return slices.ContainsFunc(o.namespaces, func(ns corev1.Namespace) bool {
		return ns.Name == namespace && ns.Labels[v1alpha1.LabelMesh] == v1alpha1.MeshEnabled
	})
}
