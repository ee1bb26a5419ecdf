package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Mesh says what holds for the whole mesh. There is exactly one, named
// "default"; whoever may write it is trusted by every namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,path=meshes,categories=heddle
// +kubebuilder:printcolumn:name="Trust domain",type=string,JSONPath=`.spec.trustDomain`
// +kubebuilder:printcolumn:name="DNS",type=string,JSONPath=`.spec.dns.mode`,priority=1
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Live",type=string,JSONPath=`.status.nodes.summary`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="there is one Mesh, and its name is default"
type Mesh struct {
	metav1.TypeMeta `json:",inline"`
	// metadata of the object; its name is "default".
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// spec says what is wanted.
	// +required
	Spec MeshSpec `json:"spec"`
	// status says what is so.
	// +optional
	Status Status `json:"status,omitempty"`
}

// MeshSpec is what is wanted of the mesh.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.trustDomain) ? 1 : 0) + (has(self.clusterRanges) ? 1 : 0) + (has(self.defaults) ? 1 : 0) + (has(self.egress) ? 1 : 0) + (has(self.dns) ? 1 : 0) + (has(self.revokedIdentities) ? 1 : 0)",message="spec has no other fields than trustDomain, clusterRanges, defaults, egress, dns and revokedIdentities: an unknown field must not be lost, and leave less than you mean"
type MeshSpec struct {
	// trustDomain is the SPIFFE trust domain: every identity of the mesh begins
	// with spiffe://TRUST_DOMAIN/. It cannot be changed: every certificate and
	// every policy would have to change at the same moment.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9._-]+$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the trust domain cannot be changed"
	TrustDomain string `json:"trustDomain"`
	// clusterRanges hold the address of every workload and every service. A
	// connection to an address in them that nobody is known to have is held
	// for a moment and then refused: it never leaves in plaintext.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	ClusterRanges []AddressBlock `json:"clusterRanges"`
	// defaults hold where nothing more specific is said.
	// +optional
	Defaults MeshDefaults `json:"defaults,omitempty"`
	// egress says what may leave the mesh.
	// +optional
	Egress Egress `json:"egress,omitempty"`
	// dns says who answers the name queries of enrolled pods.
	// +optional
	DNS DNS `json:"dns,omitempty"`
	// revokedIdentities are refused everywhere, and their live connections
	// ended: SPIFFE IDs, such as spiffe://example.org/ns/shop/sa/web.
	// +kubebuilder:validation:MaxItems=4096
	// +kubebuilder:validation:items:MinLength=10
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:Pattern=`^spiffe://[a-z0-9._-]+(/(\.?[a-zA-Z0-9_-][a-zA-Z0-9._-]*|\.\.[a-zA-Z0-9._-]+))*$`
	// +listType=set
	// +optional
	RevokedIdentities []string `json:"revokedIdentities,omitempty"`
}

// MeshDefaults hold where nothing more specific is said.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.peerAuthentication) ? 1 : 0)",message="defaults have no other fields than peerAuthentication: an unknown field must not be lost, and leave less than you mean"
type MeshDefaults struct {
	// peerAuthentication is the mode of workloads that no PeerAuthentication
	// speaks for. STRICT unless set.
	// +kubebuilder:default=STRICT
	// +optional
	PeerAuthentication PeerAuthenticationMode `json:"peerAuthentication,omitempty"`
}

// EgressMode says what happens to connections that leave the mesh: to
// addresses outside the cluster's ranges, and to workloads that are not
// enrolled.
// +kubebuilder:validation:Enum=ALLOW;DENY
type EgressMode string

// The egress modes.
const (
	// EgressAllow lets them leave in plaintext, and shows them.
	EgressAllow EgressMode = "ALLOW"
	// EgressDeny refuses them, and shows them.
	EgressDeny EgressMode = "DENY"
)

// Egress says what may leave the mesh.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.mode) ? 1 : 0) + (has(self.namespaces) ? 1 : 0)",message="egress has no other fields than mode and namespaces: an unknown field must not be lost, and leave less than you mean"
type Egress struct {
	// mode holds for namespaces that are not listed. ALLOW unless set.
	// +kubebuilder:default=ALLOW
	// +optional
	Mode EgressMode `json:"mode,omitempty"`
	// namespaces override the mode, one entry each.
	// +kubebuilder:validation:MaxItems=4096
	// +listType=map
	// +listMapKey=namespace
	// +optional
	Namespaces []NamespaceEgress `json:"namespaces,omitempty"`
}

// NamespaceEgress says what may leave the mesh from one namespace.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.namespace) ? 1 : 0) + (has(self.mode) ? 1 : 0)",message="an entry of egress.namespaces has no other fields than namespace and mode: an unknown field must not be lost, and leave less than you mean"
type NamespaceEgress struct {
	// namespace is its name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// mode for the workloads of the namespace.
	Mode EgressMode `json:"mode"`
}

// DNSMode says who answers the name queries of enrolled pods.
// +kubebuilder:validation:Enum=CAPTURE;DIRECT
type DNSMode string

// The DNS modes.
const (
	// DNSCapture has the agent of the pod's node answer: from the mesh's services,
	// its cache, or the server that was asked.
	DNSCapture DNSMode = "CAPTURE"
	// DNSDirect lets queries leave the pod unread, to the server that was asked.
	DNSDirect DNSMode = "DIRECT"
)

// DNS says who answers the name queries of enrolled pods.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.mode) ? 1 : 0) + (has(self.namespaces) ? 1 : 0)",message="dns has no other fields than mode and namespaces: an unknown field must not be lost, and leave less than you mean"
type DNS struct {
	// mode holds for namespaces that are not listed. Unless set, it is what each
	// node's agent was started with, --dns.
	// +optional
	Mode DNSMode `json:"mode,omitempty"`
	// namespaces override the mode, one entry each.
	// +kubebuilder:validation:MaxItems=4096
	// +listType=map
	// +listMapKey=namespace
	// +optional
	Namespaces []NamespaceDNS `json:"namespaces,omitempty"`
}

// NamespaceDNS says who answers the name queries of one namespace's pods.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.namespace) ? 1 : 0) + (has(self.mode) ? 1 : 0)",message="an entry of dns.namespaces has no other fields than namespace and mode: an unknown field must not be lost, and leave less than you mean"
type NamespaceDNS struct {
	// namespace is its name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// mode for the workloads of the namespace.
	Mode DNSMode `json:"mode"`
}

// MeshList is a list of Mesh.
// +kubebuilder:object:root=true
type MeshList struct {
	metav1.TypeMeta `json:",inline"`
	// metadata of the list.
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	// items of the list.
	Items []Mesh `json:"items"`
}
