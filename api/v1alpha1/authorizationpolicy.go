package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AuthorizationPolicy says who may connect to workloads of its namespace, and with which
// requests.
//
// A connection is refused when a rule of a DENY policy matches it; else allowed
// when a rule of an ALLOW policy matches it; else refused when any ALLOW policy
// selects the workload; else allowed. An ALLOW policy without rules therefore
// refuses everyone whom no other policy allows: the default deny.
//
// That is about TCP. Datagrams (UDP, and QUIC with it) are let in only by a rule of an
// ALLOW policy whose entry of to says protocol: UDP, and only from an address of an
// enrolled workload, whose identity the sender then has; the same rule lets them leave
// there. Policies whose rules are all about UDP say nothing about TCP.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,path=authorizationpolicies,shortName=ap,categories=heddle
// +kubebuilder:printcolumn:name="Action",type=string,JSONPath=`.spec.action`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Live",type=string,JSONPath=`.status.nodes.summary`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AuthorizationPolicy struct {
	metav1.TypeMeta `json:",inline"`
	// metadata of the object.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// spec says what is wanted.
	// +required
	Spec AuthorizationPolicySpec `json:"spec"`
	// status says what is so.
	// +optional
	Status Status `json:"status,omitempty"`
}

// Action is what a matching policy does.
// +kubebuilder:validation:Enum=ALLOW;DENY;AUDIT
type Action string

// The actions.
const (
	// ActionAllow lets the connection in, unless a DENY policy matches.
	ActionAllow Action = "ALLOW"
	// ActionDeny refuses the connection.
	ActionDeny Action = "DENY"
	// ActionAudit decides nothing: the flow record names the policy.
	ActionAudit Action = "AUDIT"
)

// AuthorizationPolicySpec is what is wanted of the policy.
// +kubebuilder:validation:XValidation:rule="!has(self.action) || self.action == 'ALLOW' || (has(self.rules) && size(self.rules) > 0)",message="a DENY or AUDIT policy without rules never matches; to match every connection write rules: [{}]"
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.selector) ? 1 : 0) + (has(self.action) ? 1 : 0) + (has(self.rules) ? 1 : 0)",message="spec has no other fields than selector, action and rules: an unknown field, or one without a value, must not leave less than you mean"
// +kubebuilder:validation:XValidation:rule="has(self.action) && self.action != 'ALLOW' || !has(self.rules) || self.rules.all(r, !has(r.to) || r.to.all(t, !has(t.protocol) || t.protocol != 'UDP' || has(t.ports)))",message="an ALLOW rule about UDP names its ports: the kernel's table of who may send datagrams has no room for all of them"
type AuthorizationPolicySpec struct {
	requestFields `json:",inline"`
	tokenFields   `json:",inline"`
	foreignFields `json:",inline"`
	sourceFields  `json:",inline"`
	portFields    `json:",inline"`
	ruleFields    `json:",inline"`

	// selector picks the workloads; all of the namespace without one.
	// +nullable
	// +optional
	Selector *Selector `json:"selector,omitempty"`
	// action is what a match does. ALLOW unless set.
	// +kubebuilder:default=ALLOW
	// +optional
	Action Action `json:"action,omitempty"`
	// rules match when any one of them does. The rule {} matches every
	// connection, and datagrams unless it is of an ALLOW policy.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Rules []Rule `json:"rules,omitempty"`
}

// Rule matches a connection when one entry of from matches it and one entry of
// to does. A from that is left out matches everyone. A to that is left out matches
// every TCP connection, and in DENY and AUDIT policies every datagram too.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.from) ? 1 : 0) + (has(self.to) ? 1 : 0)",message="a rule has no other fields than from and to: an unknown field, or one without a value, must not leave less than you mean"
type Rule struct {
	requestFields `json:",inline"`
	tokenFields   `json:",inline"`
	foreignFields `json:",inline"`
	sourceFields  `json:",inline"`
	portFields    `json:",inline"`
	policyFields  `json:",inline"`

	// from says who connects.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +listType=atomic
	// +nullable
	// +optional
	From []Source `json:"from,omitempty"`
	// to says where to.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +nullable
	// +optional
	To []Destination `json:"to,omitempty"`
}

// Source matches a connection when every field that is given matches it.
//
// Identities, service accounts and namespaces are those that mutual TLS proved.
// A plaintext connection proves none: notIdentities and notNamespaces then match
// in DENY and AUDIT policies and do not match in ALLOW policies, so that nobody
// is let in for want of proof.
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:XValidation:rule="!(has(self.identities) && has(self.serviceAccounts))",message="give identities or serviceAccounts, not both; two sources match either"
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.identities) ? 1 : 0) + (has(self.notIdentities) ? 1 : 0) + (has(self.serviceAccounts) ? 1 : 0) + (has(self.namespaces) ? 1 : 0) + (has(self.notNamespaces) ? 1 : 0) + (has(self.ipBlocks) ? 1 : 0) + (has(self.notIpBlocks) ? 1 : 0)",message="an entry of from has no other fields than identities, notIdentities, serviceAccounts, namespaces, notNamespaces, ipBlocks and notIpBlocks: an unknown field, or one without a value, must not leave less than you mean"
type Source struct {
	requestFields `json:",inline"`
	tokenFields   `json:",inline"`
	foreignFields `json:",inline"`
	portFields    `json:",inline"`
	ruleFields    `json:",inline"`
	policyFields  `json:",inline"`

	// identities are SPIFFE IDs. "*" stands for one whole segment of the path,
	// and as the last segment for one or more:
	// spiffe://example.org/ns/shop/sa/*.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=10
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:Pattern=`^spiffe://[a-z0-9._-]+(/(\*|\.?[a-zA-Z0-9_-][a-zA-Z0-9._-]*|\.\.[a-zA-Z0-9._-]+))+$`
	// +listType=set
	// +nullable
	// +optional
	Identities []string `json:"identities,omitempty"`
	// notIdentities are SPIFFE IDs, as identities, that must not match.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=10
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:Pattern=`^spiffe://[a-z0-9._-]+(/(\*|\.?[a-zA-Z0-9_-][a-zA-Z0-9._-]*|\.\.[a-zA-Z0-9._-]+))+$`
	// +listType=set
	// +nullable
	// +optional
	NotIdentities []string `json:"notIdentities,omitempty"`
	// serviceAccounts of this mesh's trust domain, as NAMESPACE/NAME or as NAME
	// for one of the policy's own namespace: a short form of identities.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=317
	// +kubebuilder:validation:items:Pattern=`^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	// +listType=set
	// +nullable
	// +optional
	ServiceAccounts []string `json:"serviceAccounts,omitempty"`
	// namespaces of this mesh's trust domain.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[^*]+$`
	// +listType=set
	// +nullable
	// +optional
	Namespaces []string `json:"namespaces,omitempty"`
	// notNamespaces are namespaces that must not match.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[^*]+$`
	// +listType=set
	// +nullable
	// +optional
	NotNamespaces []string `json:"notNamespaces,omitempty"`
	// ipBlocks hold the client's address. For more than 64, write several
	// sources.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	// +nullable
	// +optional
	IPBlocks []AddressBlock `json:"ipBlocks,omitempty"`
	// notIpBlocks do not hold the client's address.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	// +nullable
	// +optional
	NotIPBlocks []AddressBlock `json:"notIpBlocks,omitempty"`
}

// Protocol is what carries a connection: TCP or UDP. It is no enumeration, since that
// would refuse null without the reason.
// +kubebuilder:validation:MaxLength=3
// +kubebuilder:validation:Pattern=`^(TCP|UDP)$`
type Protocol string

// The protocols.
const (
	ProtocolTCP Protocol = "TCP"
	// ProtocolUDP is that of datagrams, and so of QUIC. The mesh does not encrypt them.
	ProtocolUDP Protocol = "UDP"
)

// Destination matches a connection when every field that is given matches it; one with
// hosts, methods, paths or headers matches requests over HTTP, each by itself, which the
// waypoint of the workload's service judges. Workloads that such a policy selects admit
// nobody but the waypoint where its requests would have to be known.
//
// In hosts, paths and values of headers "*" stands for the rest, at the beginning or at the
// end: *.example.org, /admin*, *.css. Where readers of a request may differ (an escaped slash,
// a header in several lines), an ALLOW policy wants all readings to match, a DENY or AUDIT
// policy one of them.
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.protocol) ? 1 : 0) + (has(self.ports) ? 1 : 0) + (has(self.notPorts) ? 1 : 0) + (has(self.hosts) ? 1 : 0) + (has(self.notHosts) ? 1 : 0) + (has(self.methods) ? 1 : 0) + (has(self.notMethods) ? 1 : 0) + (has(self.paths) ? 1 : 0) + (has(self.notPaths) ? 1 : 0) + (has(self.headers) ? 1 : 0)",message="an entry of to has no other fields than protocol, ports, notPorts, hosts, notHosts, methods, notMethods, paths, notPaths and headers: an unknown field, or one without a value, must not leave less than you mean"
// +kubebuilder:validation:XValidation:rule="!has(self.protocol) || self.protocol != 'UDP' || !(has(self.hosts) || has(self.notHosts) || has(self.methods) || has(self.notMethods) || has(self.paths) || has(self.notPaths) || has(self.headers))",message="hosts, methods, paths and headers are those of HTTP requests, and a datagram is none: take them out, or the protocol"
type Destination struct {
	tokenFields   `json:",inline"`
	foreignFields `json:",inline"`
	sourceFields  `json:",inline"`
	ruleFields    `json:",inline"`
	policyFields  `json:",inline"`

	// protocol is TCP unless set. UDP is off by default: a policy that names it is refused unless
	// the operator is started with --udp-by-identity. UDP is not carried through the mesh: it passes in
	// plaintext, unless the application encrypts, as QUIC does. Identity is then that of
	// the enrolled workload that has the sender's address; no handshake proves it.
	// +nullable
	// +optional
	Protocol *Protocol `json:"protocol,omitempty"`
	// ports of the workload (not of a service). An ALLOW rule about UDP names them.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +listType=set
	// +nullable
	// +optional
	Ports []Port `json:"ports,omitempty"`
	// notPorts are ports that must not match.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +listType=set
	// +nullable
	// +optional
	NotPorts []Port `json:"notPorts,omitempty"`
	// hosts of the request, without a port, in any case.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^(\*|\*?[a-zA-Z0-9._-]+|[a-zA-Z0-9._-]+\*|\[[0-9a-fA-F:.]+\])$`
	// +listType=set
	// +nullable
	// +optional
	Hosts []string `json:"hosts,omitempty"`
	// notHosts are hosts that must not match.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^(\*|\*?[a-zA-Z0-9._-]+|[a-zA-Z0-9._-]+\*|\[[0-9a-fA-F:.]+\])$`
	// +listType=set
	// +nullable
	// +optional
	NotHosts []string `json:"notHosts,omitempty"`
	// methods of the request, in capitals; that of a call of gRPC is POST.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=32
	// +kubebuilder:validation:items:Pattern=`^[A-Z_-]+$`
	// +listType=set
	// +nullable
	// +optional
	Methods []string `json:"methods,omitempty"`
	// notMethods are methods that must not match.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=32
	// +kubebuilder:validation:items:Pattern=`^[A-Z_-]+$`
	// +listType=set
	// +nullable
	// +optional
	NotMethods []string `json:"notMethods,omitempty"`
	// paths of the request, without the query, as the workload gets them: after the rewrites of
	// routes, in their one form (docs/routing.md). A call of gRPC has /SERVICE/METHOD.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	// +kubebuilder:validation:items:Pattern=`^(\*|\*[^*?# \\]+|/[^*?# \\]*\*?)$`
	// +listType=set
	// +nullable
	// +optional
	Paths []string `json:"paths,omitempty"`
	// notPaths are paths that must not match.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	// +kubebuilder:validation:items:Pattern=`^(\*|\*[^*?# \\]+|/[^*?# \\]*\*?)$`
	// +listType=set
	// +nullable
	// +optional
	NotPaths []string `json:"notPaths,omitempty"`
	// headers must all match.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	// +nullable
	// +optional
	Headers []HeaderMatch `json:"headers,omitempty"`
}

// HeaderMatch matches a request that has a header. Without values, it must be there. Of one
// with several values (in several lines, or between commas) an ALLOW policy wants each to
// match, or the line as a whole by a value without "*"; a DENY or AUDIT policy any of them.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.name) ? 1 : 0) + (has(self.values) ? 1 : 0)",message="an entry of headers has no other fields than name and values: an unknown field, or one without a value, must not leave less than you mean"
// +kubebuilder:validation:XValidation:rule="self.name.lowerAscii() != 'host'",message="write hosts in place of the header host"
type HeaderMatch struct {
	// name of the header, in any case.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9!#$%&'*+.^_|~-]+$`
	// +required
	Name string `json:"name"`
	// values of which one must match.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	// +kubebuilder:validation:items:Pattern=`^(\*|\*?[^*]+|[^*]+\*)$`
	// +listType=set
	// +nullable
	// +optional
	Values []string `json:"values,omitempty"`
}

// AuthorizationPolicyList is a list of AuthorizationPolicy.
// +kubebuilder:object:root=true
type AuthorizationPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	// metadata of the list.
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	// items of the list.
	Items []AuthorizationPolicy `json:"items"`
}
