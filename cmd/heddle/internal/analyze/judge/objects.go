package judge

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/trim"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Objects are those that decide.
type Objects struct {
	Namespaces     []corev1.Namespace
	Pods           []corev1.Pod // or what makes some, which have neither nodes nor addresses
	Meshes         []v1alpha1.Mesh
	Modes          []v1alpha1.PeerAuthentication
	Authorizations []v1alpha1.AuthorizationPolicy
	Policies       []networkingv1.NetworkPolicy
}

// pod is one, and what the mesh knows of it.
type pod struct {
	of      *corev1.Pod
	trimmed *kube.Pod
}

// compile compiles them. A federation that has a problem is left out, so that the rest can
// be said.
func (o *Objects) compile(known map[mesh.Key]pod) (*kube.Compiled, error) {
	settings := o.settings()
	objects := &kube.Objects{
		Meshes: []kube.Sourced[v1alpha1.Mesh]{{Value: settings}}, Namespaces: sourced(o.namespaces()), PeerAuthentications: sourced(o.Modes),
		AuthorizationPolicies: sourced(o.Authorizations), NetworkPolicies: sourced(o.Policies),
		UDPByIdentity: true, // whether it is on is not known, and what policies say of UDP is not asked here
	}
	for _, p := range known {
		objects.Pods = append(objects.Pods, p.trimmed)
	}
	compiled, err := kube.CompileEach(objects)
	if err != nil && len(settings.Spec.Federation) > 0 {
		settings.Spec.Federation = nil
		compiled, err = kube.CompileEach(objects)
	}
	return compiled, err
}

// namespaces are those that are written, and those that pods are in: files need not have them.
func (o *Objects) namespaces() []corev1.Namespace {
	all, known := slices.Clone(o.Namespaces), map[string]bool{}
	for i := range all {
		known[all[i].Name] = true
	}
	for i := range o.Pods {
		if name := o.Pods[i].Namespace; !known[name] {
			known[name] = true
			all = append(all, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	}
	return all
}

// settings are those of the Mesh that decide about calls, or the defaults. Every address
// may be a pod's: which are is not looked at here.
func (o *Objects) settings() *v1alpha1.Mesh {
	settings := &v1alpha1.Mesh{}
	settings.Name = v1alpha1.MeshName
	settings.Spec.TrustDomain = "analyze"
	settings.Spec.ClusterRanges = []v1alpha1.AddressBlock{"0.0.0.0/0", "::/0"}
	if len(o.Meshes) == 0 {
		return settings
	}
	spec := &o.Meshes[0].Spec
	settings.Spec.TrustDomain, settings.Spec.Defaults = cmp.Or(spec.TrustDomain, settings.Spec.TrustDomain), spec.Defaults
	for _, domain := range spec.Federation { // a rule that names one that is not there is refused
		domain.Workloads = nil // theirs have addresses outside of clusterRanges
		settings.Spec.Federation = append(settings.Spec.Federation, domain)
	}
	return settings
}

func sourced[T any](objects []T) []kube.Sourced[T] {
	all := make([]kube.Sourced[T], len(objects))
	for i := range objects {
		all[i].Value = &objects[i]
	}
	return all
}

// podsByKey are the pods, each with a key, a node and an address, which no other has:
// NetworkPolicies are about addresses, templates have none, and two of them may have one name.
func (o *Objects) podsByKey() map[mesh.Key]pod {
	all, taken, trimmer := map[mesh.Key]pod{}, map[netip.Addr]bool{}, trim.New()
	for i := range o.Pods {
		p := trimmer.Pod(&o.Pods[i])
		p.Node = cmp.Or(p.Node, "unknown")
		p.Addresses = slices.DeleteFunc(p.Addresses, func(a netip.Addr) bool { return taken[a] || !a.IsGlobalUnicast() })
		if len(p.Addresses) == 0 {
			p.Addresses = []netip.Addr{netip.AddrFrom16([16]byte{0: 1, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})} // 100::/64 is nobody's (RFC 6666)
		}
		for _, addr := range p.Addresses {
			taken[addr] = taken[addr] || !p.HostNetwork && !p.Finished
		}
		key := p.Key()
		for n := i; all[key].of != nil; n++ {
			key.Name = fmt.Sprintf("%s-%d", p.Name, n)
		}
		p.Namespace, p.Name = key.Namespace, key.Name
		all[key] = pod{&o.Pods[i], p}
	}
	return all
}
