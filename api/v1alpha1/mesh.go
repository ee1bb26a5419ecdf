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
	Status MeshStatus `json:"status,omitempty"`
}

// MeshStatus is what the mesh reports about itself.
type MeshStatus struct {
	Status `json:",inline"`
	// federation says what is known of each federated trust domain.
	// +listType=map
	// +listMapKey=trustDomain
	// +optional
	Federation []FederationStatus `json:"federation,omitempty"`
}

// FederationStatus is what is known of one federated trust domain.
type FederationStatus struct {
	// trustDomain is its name.
	TrustDomain string `json:"trustDomain"`
	// lastRefreshed is when its bundle endpoint gave a bundle, to 10 minutes. Absent
	// when it never did: then the bundle that the spec gives is believed, if there is one.
	// +optional
	LastRefreshed *metav1.Time `json:"lastRefreshed,omitempty"`
	// rootsExpire is when the last of its roots expires: no identity of the trust
	// domain is believed from then on. Absent while there is no bundle.
	// +optional
	RootsExpire *metav1.Time `json:"rootsExpire,omitempty"`
	// error is why the endpoint was not asked with success the last time. Absent when it was.
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Error string `json:"error,omitempty"`
}

// MeshSpec is what is wanted of the mesh.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.trustDomain) ? 1 : 0) + (has(self.clusterRanges) ? 1 : 0) + (has(self.defaults) ? 1 : 0) + (has(self.egress) ? 1 : 0) + (has(self.dns) ? 1 : 0) + (has(self.revokedIdentities) ? 1 : 0) + (has(self.federation) ? 1 : 0)",message="spec has no other fields than trustDomain, clusterRanges, defaults, egress, dns, revokedIdentities and federation: an unknown field must not be lost, and leave less than you mean"
// +kubebuilder:validation:XValidation:rule="!has(self.federation) || self.federation.all(d, d.trustDomain != self.trustDomain)",message="the mesh cannot be federated with its own trust domain",fieldPath=".federation"
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
	// federation are other trust domains whose identities are believed, each by its
	// own roots. An identity of theirs is let in by nothing but an ALLOW policy that
	// names it.
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=trustDomain
	// +optional
	Federation []FederatedDomain `json:"federation,omitempty"`
}

// FederationProfile says how a bundle endpoint proves itself (SPIFFE Federation, section 5.2).
// +kubebuilder:validation:Enum=https_web;https_spiffe
type FederationProfile string

// The profiles.
const (
	// FederationWeb is a certificate of the web for the endpoint's host name.
	FederationWeb FederationProfile = "https_web"
	// FederationSPIFFE is an X.509-SVID.
	FederationSPIFFE FederationProfile = "https_spiffe"
)

// FederatedDomain is another trust domain, and where its bundle is to be had.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.trustDomain) ? 1 : 0) + (has(self.endpoint) ? 1 : 0) + (has(self.profile) ? 1 : 0) + (has(self.endpointSPIFFEID) ? 1 : 0) + (has(self.webRoots) ? 1 : 0) + (has(self.bundle) ? 1 : 0) + (has(self.workloads) ? 1 : 0)",message="an entry of federation has no other fields than trustDomain, endpoint, profile, endpointSPIFFEID, webRoots, bundle and workloads: an unknown field must not be lost, and leave less than you mean"
// +kubebuilder:validation:XValidation:rule="(self.profile == 'https_spiffe') == has(self.endpointSPIFFEID)",message="endpointSPIFFEID belongs to profile https_spiffe, which needs it"
// +kubebuilder:validation:XValidation:rule="self.profile == 'https_web' || !has(self.webRoots)",message="webRoots belong to profile https_web"
// +kubebuilder:validation:XValidation:rule="!has(self.workloads) || self.workloads.all(w, w.identity.startsWith('spiffe://' + self.trustDomain + '/'))",message="a workload's identity begins with spiffe:// and the trust domain of the entry",fieldPath=".workloads"
// +kubebuilder:validation:XValidation:rule="!has(self.endpointSPIFFEID) || has(self.bundle) || !self.endpointSPIFFEID.startsWith('spiffe://' + self.trustDomain + '/')",message="an endpoint that proves itself by the bundle that it serves needs a first bundle to be believed by"
type FederatedDomain struct {
	// trustDomain is its name, such as example.com.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9._-]+$`
	TrustDomain string `json:"trustDomain"`
	// endpoint is the URL of its SPIFFE bundle endpoint, such as
	// https://spire.example.com:8443/bundle.
	// +kubebuilder:validation:MinLength=9
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^https://[^/@?#]+(/[^?#]*)?(\?[^#]*)?$`
	Endpoint string `json:"endpoint"`
	// profile says how the endpoint proves itself.
	Profile FederationProfile `json:"profile"`
	// endpointSPIFFEID is the identity of an endpoint of profile https_spiffe. It is of
	// the trust domain itself, of this mesh's, or of another one that it is federated with.
	// +kubebuilder:validation:MinLength=10
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^spiffe://[a-z0-9._-]+(/(\.?[a-zA-Z0-9_-][a-zA-Z0-9._-]*|\.\.[a-zA-Z0-9._-]+))+$`
	// +optional
	EndpointSPIFFEID string `json:"endpointSPIFFEID,omitempty"`
	// webRoots are the certificates, in PEM, that verify an endpoint of profile https_web. The
	// system's unless set.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=49152
	// +optional
	WebRoots string `json:"webRoots,omitempty"`
	// bundle is the SPIFFE bundle that is believed until the endpoint has given one: what
	// `spire-server bundle show -format spiffe` prints. Another one than before takes the place
	// of all that the endpoint gave.
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=49152
	// +optional
	Bundle string `json:"bundle,omitempty"`
	// workloads are those of the trust domain that every workload of this mesh may connect to,
	// at any port, by HBONE (mutual TLS, port 15008). No more than 256 of all trust domains.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=map
	// +listMapKey=identity
	// +optional
	Workloads []FederatedWorkload `json:"workloads,omitempty"`
}

// FederatedWorkload is a workload of another trust domain, or several with the same identity.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.identity) ? 1 : 0) + (has(self.addresses) ? 1 : 0)",message="an entry of workloads has no other fields than identity and addresses: an unknown field must not be lost, and leave less than you mean"
type FederatedWorkload struct {
	// identity is the SPIFFE ID that whoever answers at the addresses has to prove, exactly,
	// by the roots of its trust domain.
	// +kubebuilder:validation:MinLength=10
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^spiffe://[a-z0-9._-]+(/(\.?[a-zA-Z0-9_-][a-zA-Z0-9._-]*|\.\.[a-zA-Z0-9._-]+))+$`
	Identity string `json:"identity"`
	// addresses are where it is, inside the mesh's clusterRanges: there, who does not know of
	// the workload refuses what goes to it, and beyond them it would leave in plaintext. No
	// workload and no service of the mesh has one of them.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=2
	// +kubebuilder:validation:items:MaxLength=45
	// +kubebuilder:validation:items:XValidation:rule="isIP(self)",message="want an IP address such as 10.1.2.3 or fd00::3"
	// +kubebuilder:validation:items:XValidation:rule="!isIP(self) || ip(self).isGlobalUnicast()",message="others cannot reach this address: it is unspecified, loopback, multicast or link-local"
	// +listType=set
	Addresses []string `json:"addresses"`
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
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.mode) ? 1 : 0) + (has(self.namespaces) ? 1 : 0) + (has(self.udp) ? 1 : 0)",message="egress has no other fields than mode, namespaces and udp: an unknown field must not be lost, and leave less than you mean"
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
	// udp says which datagrams may leave the mesh: none unless set. mode and namespaces
	// beside it are about TCP.
	// +optional
	UDP *UDPEgress `json:"udp,omitempty"`
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

// UDPEgress says which conversations over UDP may be begun with addresses outside the
// cluster's ranges. Datagrams leave as the application sends them; answers come back for
// 30 s after each. Port 53 is as spec.dns says, and not here.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.mode) ? 1 : 0) + (has(self.ports) ? 1 : 0) + (has(self.namespaces) ? 1 : 0)",message="egress.udp has no other fields than mode, ports and namespaces: an unknown field must not be lost, and leave less than you mean"
// +kubebuilder:validation:XValidation:rule="!has(self.ports) || has(self.mode) && self.mode == 'ALLOW'",message="ports narrow what mode ALLOW lets out: write mode ALLOW, or take them out",fieldPath=".ports"
type UDPEgress struct {
	// mode holds for namespaces that are not listed. DENY unless set.
	// +kubebuilder:default=DENY
	// +optional
	Mode EgressMode `json:"mode,omitempty"`
	// ports are the only destination ports that ALLOW opens; unless set it opens all but 53,
	// and those of tunnels (4789, 4790, 6081 and 8472), which stay closed.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:XValidation:rule="!(self in [53, 4789, 4790, 6081, 8472])",message="this port stays closed: 53 is as spec.dns says, and the others are of tunnels, by which a pod could send as somebody else"
	// +listType=set
	// +optional
	Ports []Port `json:"ports,omitempty"`
	// namespaces override mode and ports, one entry each.
	// +kubebuilder:validation:MaxItems=1024
	// +listType=map
	// +listMapKey=namespace
	// +optional
	Namespaces []NamespaceUDPEgress `json:"namespaces,omitempty"`
}

// NamespaceUDPEgress says which conversations over UDP may leave the mesh from one
// namespace.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.namespace) ? 1 : 0) + (has(self.mode) ? 1 : 0) + (has(self.ports) ? 1 : 0)",message="an entry of egress.udp.namespaces has no other fields than namespace, mode and ports: an unknown field must not be lost, and leave less than you mean"
// +kubebuilder:validation:XValidation:rule="!has(self.ports) || has(self.mode) && self.mode == 'ALLOW'",message="ports narrow what mode ALLOW lets out: write mode ALLOW, or take them out",fieldPath=".ports"
type NamespaceUDPEgress struct {
	// namespace is its name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// mode for the workloads of the namespace.
	Mode EgressMode `json:"mode"`
	// ports are the only destination ports that ALLOW opens, as in egress.udp.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:XValidation:rule="!(self in [53, 4789, 4790, 6081, 8472])",message="this port stays closed: 53 is as spec.dns says, and the others are of tunnels, by which a pod could send as somebody else"
	// +listType=set
	// +optional
	Ports []Port `json:"ports,omitempty"`
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
