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
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/judge"
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
	// Waypoint is the one of KindWaypoint.
	Waypoint mesh.Key `json:"-"`
	Detail   string   `json:"detail"`
	Remedy   string   `json:"remedy"`
	// Fix is the object, as YAML, that keeps it working; "" when there is none, or where
	// one would have no effect beside those that are there, which Remedy then names.
	Fix string `json:"fix,omitempty"`
}

// member is a pod that is enrolled.
type member struct {
	pod    *corev1.Pod
	judged *judge.Pod
}

// Analyze returns what would not work, or does not, in the namespaces that are
// enrolled, or in one of them only; in order of namespace and object. What mends it
// does, beside all that is there: it has looked again with it. An error
// means that the objects cannot be compiled.
func (o *Objects) Analyze(only string) ([]Finding, error) {
	found, _, err := o.look(only)
	if err != nil {
		return nil, err
	}
	o.distinct(found)
	return o.lookAgain(found, only)
}

// look returns what Analyze does, as it seems at first, and who has judged it.
func (o *Objects) look(only string) ([]Finding, *judge.Judge, error) {
	model, err := judge.New(&judge.Objects{
		Namespaces: o.namespaces, Pods: o.pods, Meshes: o.meshes, Modes: o.modes, Authorizations: o.authorizations, Policies: o.policies,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("analyze: %w", err)
	}
	var enrolled []member
	for i := range model.Enrolled() {
		p := &model.Enrolled()[i]
		enrolled = append(enrolled, member{p.Pod, p})
	}
	var all []Finding
	calls := distinctCalls(o.answered(slices.Concat(o.called(), o.scrapes(enrolled), o.outside(enrolled), o.hookCalls())))
	for i := range calls {
		all = append(all, o.refused(&calls[i], enrolled, model)...)
	}
	all = append(all, o.hostNetwork()...)
	all = append(all, o.interfaces(enrolled)...)
	all = append(all, o.unread(enrolled)...)
	all = append(all, o.otherMeshes(enrolled)...)
	all = append(all, o.datagrams(enrolled)...)
	all = append(all, o.lifecycle(enrolled)...)
	all = append(all, o.blocked(enrolled)...)
	all = slices.DeleteFunc(all, func(f Finding) bool { return only != "" && f.Namespace != only })
	slices.SortStableFunc(all, byObject)
	// The pods of one workload are one finding, and so are the services before them that
	// one object has called.
	said := map[Finding]bool{}
	return slices.DeleteFunc(all, func(f Finding) bool {
		sameFix, sameObject := f, f
		sameFix.Object, sameObject.Fix = "", "(any)"
		known := said[sameFix] || said[sameObject]
		said[sameFix], said[sameObject] = true, true
		return known
	}), model, nil
}

func byObject(a, b Finding) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Object, b.Object))
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
	return strings.Join(words, ",")
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
			Detail: fmt.Sprintf("pods %s are in their node's network (hostNetwork): they stay outside the mesh, and STRICT ports refuse what they call", alike(p)),
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
