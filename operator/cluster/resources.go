package cluster

import (
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/trim"
)

// resource is one of those that are mirrored.
type resource struct {
	group schema.GroupVersion
	name  string
	// example is an empty object of the kind.
	example runtime.Object
	// labels is a label selector; "" for all.
	labels string
	// trim returns what is kept of an object; nil when it is of no interest.
	trim func(*trim.Trimmer, runtime.Object) any
	// same reports whether two rows mean the same to the model.
	same func(a, b any) bool
	// add puts a row among the objects to compile; nil for a resource that is apart.
	add func(*kube.Objects, any)
	// routes is set for what Routing returns, apart for what only Routing does, and optional
	// for a resource that not every API server has, whose group may be older, too.
	routes, apart, optional bool
	older                   schema.GroupVersion
}

// resources are those that are mirrored: with allSlices, also EndpointSlices that say they
// are of Kubernetes' own controller, of which those are kept that are not like it.
func resources(allSlices bool) []resource {
	return slices.Concat(kubernetesResources(allSlices), heddleResources(), gatewayResources())
}

func kubernetesResources(allSlices bool) []resource {
	others := discoveryv1.LabelManagedBy + "!=" + trim.Controller
	if allSlices {
		others = ""
	}
	return []resource{
		{
			group: corev1.SchemeGroupVersion, name: "namespaces", example: &corev1.Namespace{},
			trim: whole(func(_ *trim.Trimmer, ns *corev1.Namespace) *corev1.Namespace {
				return &corev1.Namespace{ObjectMeta: trimMeta(&ns.ObjectMeta)}
			}),
			same: equal(func(ns *corev1.Namespace) any { return [2]any{ns.Labels, ns.UID} }),
			add:  add(func(o *kube.Objects) *[]kube.Sourced[corev1.Namespace] { return &o.Namespaces }),
		},
		{
			group: corev1.SchemeGroupVersion, name: "nodes", example: &corev1.Node{},
			trim: whole(func(t *trim.Trimmer, n *corev1.Node) *node {
				return &node{n.Name, t.Zone(n), startupTaints(n), n.CreationTimestamp.Unix()}
			}),
			same: equal(func(n *node) any { return *n }),
			add:  func(o *kube.Objects, row any) { o.Zones[row.(*node).name] = row.(*node).zone },
		},
		{
			group: corev1.SchemeGroupVersion, name: "pods", example: &corev1.Pod{},
			trim: whole((*trim.Trimmer).Pod),
			same: equal(func(p *kube.Pod) any { return p }),
			add:  func(o *kube.Objects, row any) { o.Pods = append(o.Pods, row.(*kube.Pod)) },
		},
		{
			group: corev1.SchemeGroupVersion, name: "services", example: &corev1.Service{}, routes: true,
			trim: whole(func(_ *trim.Trimmer, s *corev1.Service) *corev1.Service {
				out := &corev1.Service{ObjectMeta: trimMeta(&s.ObjectMeta), Spec: s.Spec}
				out.Status.LoadBalancer.Ingress = s.Status.LoadBalancer.Ingress
				return out
			}),
			same: equal(func(s *corev1.Service) any { return [3]any{s.Labels, s.Spec, s.Status.LoadBalancer.Ingress} }),
			add:  add(func(o *kube.Objects) *[]kube.Sourced[corev1.Service] { return &o.Services }),
		},
		{
			group: discoveryv1.SchemeGroupVersion, name: "endpointslices", example: &discoveryv1.EndpointSlice{},
			labels: others,
			trim:   whole((*trim.Trimmer).EndpointSlice),
			same:   equal(func(s *kube.EndpointSlice) any { return s }),
			add:    func(o *kube.Objects, row any) { o.Slices = append(o.Slices, row.(*kube.EndpointSlice)) },
		},
		{
			group: networkingv1.SchemeGroupVersion, name: "networkpolicies", example: &networkingv1.NetworkPolicy{},
			trim: whole(func(_ *trim.Trimmer, p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
				return &networkingv1.NetworkPolicy{ObjectMeta: trimPolicy(&p.ObjectMeta), Spec: p.Spec}
			}),
			same: equal(func(p *networkingv1.NetworkPolicy) any { return [2]any{p.Spec, p.UID} }),
			add:  add(func(o *kube.Objects) *[]kube.Sourced[networkingv1.NetworkPolicy] { return &o.NetworkPolicies }),
		},
	}
}

// Statuses are kept for whoever reports; they are nothing to the model.
func heddleResources() []resource {
	return []resource{
		{
			group: v1alpha1.GroupVersion(), name: "meshes", example: &v1alpha1.Mesh{},
			trim: whole(func(_ *trim.Trimmer, m *v1alpha1.Mesh) *v1alpha1.Mesh {
				return &v1alpha1.Mesh{ObjectMeta: trimPolicy(&m.ObjectMeta), Spec: m.Spec, Status: m.Status}
			}),
			same: equal(func(m *v1alpha1.Mesh) any { return written(m, m.Spec) }),
			add:  add(func(o *kube.Objects) *[]kube.Sourced[v1alpha1.Mesh] { return &o.Meshes }),
		},
		{
			group: v1alpha1.GroupVersion(), name: "workloads", example: &v1alpha1.Workload{},
			trim: whole(func(_ *trim.Trimmer, w *v1alpha1.Workload) *v1alpha1.Workload {
				return &v1alpha1.Workload{ObjectMeta: trimPolicy(&w.ObjectMeta), Spec: w.Spec, Status: w.Status}
			}),
			same: equal(func(w *v1alpha1.Workload) any { return [2]any{written(w, w.Spec), w.Labels} }),
			add:  add(func(o *kube.Objects) *[]kube.Sourced[v1alpha1.Workload] { return &o.Workloads }),
		},
		{
			group: v1alpha1.GroupVersion(), name: "peerauthentications", example: &v1alpha1.PeerAuthentication{},
			trim: whole(func(_ *trim.Trimmer, p *v1alpha1.PeerAuthentication) *v1alpha1.PeerAuthentication {
				return &v1alpha1.PeerAuthentication{ObjectMeta: trimPolicy(&p.ObjectMeta), Spec: p.Spec, Status: p.Status}
			}),
			same: equal(func(p *v1alpha1.PeerAuthentication) any { return written(p, p.Spec) }),
			add:  add(func(o *kube.Objects) *[]kube.Sourced[v1alpha1.PeerAuthentication] { return &o.PeerAuthentications }),
		},
		{
			group: v1alpha1.GroupVersion(), name: "authorizationpolicies", example: &v1alpha1.AuthorizationPolicy{},
			trim: whole(func(_ *trim.Trimmer, p *v1alpha1.AuthorizationPolicy) *v1alpha1.AuthorizationPolicy {
				return &v1alpha1.AuthorizationPolicy{ObjectMeta: trimPolicy(&p.ObjectMeta), Spec: p.Spec, Status: p.Status}
			}),
			same: equal(func(p *v1alpha1.AuthorizationPolicy) any { return written(p, p.Spec) }),
			add:  add(func(o *kube.Objects) *[]kube.Sourced[v1alpha1.AuthorizationPolicy] { return &o.AuthorizationPolicies }),
		},
	}
}

// node is what is kept of a Node.
type node struct {
	name, zone string
	// taints are all of the node's while it has the startup taint, else nil.
	taints []corev1.Taint
	// created is in seconds of Unix time.
	created int64
}

func startupTaints(n *corev1.Node) []corev1.Taint {
	if slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintAgentNotReady }) {
		return n.Spec.Taints
	}
	return nil
}

// trimMeta keeps what compiling and reporting need.
func trimMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, Labels: m.Labels, Generation: m.Generation, CreationTimestamp: m.CreationTimestamp}
}

// trimPolicy keeps besides which program has changed the object last, and when; which
// fields it has is left out, and so is who wrote the status.
func trimPolicy(m *metav1.ObjectMeta) metav1.ObjectMeta {
	out := trimMeta(m)
	for _, e := range m.ManagedFields {
		last := metav1.ManagedFieldsEntry{Manager: strings.Clone(e.Manager), Operation: e.Operation, Time: e.Time}
		switch {
		case e.Subresource != "":
		case out.ManagedFields == nil:
			out.ManagedFields = []metav1.ManagedFieldsEntry{last}
		case !last.Time.Before(out.ManagedFields[0].Time):
			out.ManagedFields[0] = last
		}
	}
	return out
}

// whole makes a resource's trim function of a typed one. A nil result stays nil.
func whole[T runtime.Object, R any](f func(*trim.Trimmer, T) *R) func(*trim.Trimmer, runtime.Object) any {
	return func(t *trim.Trimmer, obj runtime.Object) any {
		typed, ok := obj.(T)
		if !ok {
			return nil
		}
		if row := f(t, typed); row != nil {
			return row
		}
		return nil
	}
}

// equal makes a resource's same function: what is selected of both is the same.
func equal[R any](of func(*R) any) func(a, b any) bool {
	return func(a, b any) bool { return reflect.DeepEqual(of(a.(*R)), of(b.(*R))) }
}

func add[R any](list func(*kube.Objects) *[]kube.Sourced[R]) func(*kube.Objects, any) {
	return func(o *kube.Objects, row any) {
		into := list(o)
		*into = append(*into, kube.Sourced[R]{Value: row.(*R)})
	}
}
