package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// PeerAuthentication says whether workloads of its namespace accept plaintext.
//
// The most specific statement about a workload's port holds:
//
//  1. portModes of an object with a selector that picks the workload,
//  2. portModes of an object without a selector,
//  3. mode of an object with a selector that picks the workload,
//  4. mode of an object without a selector,
//  5. defaults.peerAuthentication of the Mesh.
//
// When two objects say different things in the same place, the older one holds
// (metadata.creationTimestamp); of two equally old, or in a folder, the one
// whose name comes first.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,path=peerauthentications,shortName=pa,categories=heddle
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Live",type=string,JSONPath=`.status.nodes.summary`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type PeerAuthentication struct {
	metav1.TypeMeta `json:",inline"`
	// metadata of the object.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// spec says what is wanted.
	// +required
	Spec PeerAuthenticationSpec `json:"spec"`
	// status says what is so.
	// +optional
	Status Status `json:"status,omitempty"`
}

// PeerAuthenticationMode says whether plaintext is accepted.
// +kubebuilder:validation:Enum=STRICT;PERMISSIVE
type PeerAuthenticationMode string

// The modes.
const (
	// PeerAuthenticationStrict refuses plaintext: only peers with an identity
	// of the mesh, over mutual TLS.
	PeerAuthenticationStrict PeerAuthenticationMode = "STRICT"
	// PeerAuthenticationPermissive accepts both. Authorization policies hold
	// for both; a plaintext peer has no identity.
	PeerAuthenticationPermissive PeerAuthenticationMode = "PERMISSIVE"
)

// PeerAuthenticationSpec is what is wanted of the workloads.
// +kubebuilder:validation:XValidation:rule="has(self.mode) || (has(self.portModes) && size(self.portModes) > 0)",message="mode or portModes must be given"
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.selector) ? 1 : 0) + (has(self.mode) ? 1 : 0) + (has(self.portModes) ? 1 : 0)",message="spec has no other fields than selector, mode and portModes: an unknown field, or one without a value, must not leave less than you mean"
type PeerAuthenticationSpec struct {
	foreignModes `json:",inline"`

	// selector picks the workloads; all of the namespace without one.
	// +nullable
	// +optional
	Selector *Selector `json:"selector,omitempty"`
	// mode of the ports that portModes does not name. Without it, those ports
	// are left to less specific objects.
	// +optional
	Mode PeerAuthenticationMode `json:"mode,omitempty"`
	// portModes are for single ports, of the workload and not of a service.
	// +kubebuilder:validation:MaxItems=64
	// +listType=map
	// +listMapKey=port
	// +optional
	PortModes []PortMode `json:"portModes,omitempty"`
}

// PortMode is the mode of one port.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.port) ? 1 : 0) + (has(self.mode) ? 1 : 0)",message="an entry of portModes has no other fields than port and mode: an unknown field must not be lost, and leave less than you mean"
type PortMode struct {
	// port of the workload.
	Port Port `json:"port"`
	// mode of the port.
	Mode PeerAuthenticationMode `json:"mode"`
}

// PeerAuthenticationList is a list of PeerAuthentication.
// +kubebuilder:object:root=true
type PeerAuthenticationList struct {
	metav1.TypeMeta `json:",inline"`
	// metadata of the list.
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	// items of the list.
	Items []PeerAuthentication `json:"items"`
}
