package kube

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/folder"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Sourced is an object and where it was read.
type Sourced[T any] struct {
	Value  *T
	Origin Origin
}

// Objects are what the mesh is configured by, by kind. No two of one kind have
// the same namespace and name.
type Objects struct {
	Namespaces            []Sourced[corev1.Namespace]
	Services              []Sourced[corev1.Service]
	Meshes                []Sourced[v1alpha1.Mesh]
	Workloads             []Sourced[v1alpha1.Workload]
	PeerAuthentications   []Sourced[v1alpha1.PeerAuthentication]
	AuthorizationPolicies []Sourced[v1alpha1.AuthorizationPolicy]
	NetworkPolicies       []Sourced[networkingv1.NetworkPolicy]
	// HTTPRoutes, GRPCRoutes, TLSRoutes, TCPRoutes and Grants come from a folder only; package folderroutes
	// compiles them.
	HTTPRoutes []Sourced[gatewayv1.HTTPRoute]
	GRPCRoutes []Sourced[gatewayv1.GRPCRoute]
	TLSRoutes  []Sourced[gatewayv1.TLSRoute]
	TCPRoutes  []Sourced[gatewayv1.TCPRoute]
	Grants     []Sourced[gatewayv1.ReferenceGrant]
	// Pods, Slices and Zones (the zone of each node, by its name) come from a
	// cluster only. Slices are those of services without a selector.
	Pods   []*Pod
	Slices []*EndpointSlice
	Zones  map[string]string
	// Relayed are the ports, sorted, of services at which TLSRoutes and TCPRoutes have
	// connections passed on as they are, for all clients: routes.Relayed. No request is seen there.
	Relayed map[mesh.Key][]uint16
	// Digest is a hash of what was read, in hexadecimal: equal folders have
	// equal ones. Empty unless the objects came from a folder.
	Digest string
	// UDPByIdentity lets policies name UDP, see ADR 90. Where it is not set, one that
	// does is refused, and nothing is said about UDP.
	UDPByIdentity bool
	// Mark is the place of these objects among the changes of a mirror of a cluster; 0
	// elsewhere.
	Mark uint64
}

// kinds are those that a folder may hold; what is read goes into objs.
func kinds(objs *Objects, looks []Look) []folder.Kind {
	heddle, gateway := v1alpha1.GroupVersion().String(), gatewayv1.GroupVersion.String()
	return []folder.Kind{
		{APIVersion: "v1", Name: "Namespace", Read: reader(&objs.Namespaces, looks)},
		{APIVersion: "v1", Name: "Service", Namespaced: true, Read: reader(&objs.Services, looks)},
		{APIVersion: networkingv1.SchemeGroupVersion.String(), Name: "NetworkPolicy", Namespaced: true, Read: reader(&objs.NetworkPolicies, looks)},
		{APIVersion: gateway, Name: "HTTPRoute", Namespaced: true, Read: reader(&objs.HTTPRoutes, looks)},
		{APIVersion: gateway, Name: "GRPCRoute", Namespaced: true, Read: reader(&objs.GRPCRoutes, looks)},
		{APIVersion: gateway, Name: "TLSRoute", Namespaced: true, Read: reader(&objs.TLSRoutes, looks)},
		{APIVersion: gateway, Name: "TCPRoute", Namespaced: true, Read: reader(&objs.TCPRoutes, looks)},
		{APIVersion: gateway, Name: "ReferenceGrant", Namespaced: true, Read: reader(&objs.Grants, looks)},
		{APIVersion: heddle, Name: "Mesh", Read: reader(&objs.Meshes, looks)},
		{APIVersion: heddle, Name: "Workload", Namespaced: true, Read: reader(&objs.Workloads, looks)},
		{APIVersion: heddle, Name: "PeerAuthentication", Namespaced: true, Read: reader(&objs.PeerAuthentications, looks)},
		{APIVersion: heddle, Name: "AuthorizationPolicy", Namespaced: true, Spec: true, Read: reader(&objs.AuthorizationPolicies, looks)},
	}
}

// reader makes the Read function of a kind whose objects are kept in list.
func reader[T any, P interface {
	*T
	metav1.Object
}](list *[]Sourced[T], looks []Look) func(*folder.Document) metav1.Object {
	return func(doc *folder.Document) metav1.Object {
		value := P(new(T))
		if !doc.Decode(value) {
			return nil
		}
		*list = append(*list, Sourced[T]{Value: value, Origin: doc.Origin()})
		for _, look := range looks {
			look(doc)
		}
		return value
	}
}
