package v1alpha1

import "k8s.io/apimachinery/pkg/util/intstr"

// What follows is in the schemas to be refused, and nothing reads it. An API server
// takes fields out that its schema does not have, and tells only the clients that ask:
// of a rule that has nothing but when, {} would be left, which matches everyone. So
// policies keep unknown fields, and a rule refuses each object that has one: it counts
// the object's fields, as an API server's size(dyn(self)) counts unknown ones, and those
// that are null (k8s.io/apiserver, pkg/cel/common, unstructuredMap). No rule can name
// what is unknown: the names that people bring along from other meshes, and those that
// belong elsewhere in a policy, are fields here, with rules that say why. The structs
// are not exported, so that a folder is told of these names as of any that is unknown
// (internal/kube/strict). See ADR 87.

// Unread is an object that is refused for being there.
// +kubebuilder:pruning:PreserveUnknownFields
type Unread struct{}

// requestFields are Destination's, where they do not belong.
// +kubebuilder:validation:XValidation:rule="!(has(self.hosts) || has(self.notHosts) || has(self.methods) || has(self.notMethods) || has(self.paths) || has(self.notPaths) || has(self.headers))",message="hosts, notHosts, methods, notMethods, paths, notPaths and headers belong into an entry of to: what would be left without them could let in more than you mean"
type requestFields struct {
	// hosts belongs into an entry of to.
	// +listType=atomic
	// +optional
	Hosts []intstr.IntOrString `json:"hosts,omitempty"`
	// notHosts belongs into an entry of to.
	// +listType=atomic
	// +optional
	NotHosts []intstr.IntOrString `json:"notHosts,omitempty"`
	// methods belongs into an entry of to.
	// +listType=atomic
	// +optional
	Methods []intstr.IntOrString `json:"methods,omitempty"`
	// notMethods belongs into an entry of to.
	// +listType=atomic
	// +optional
	NotMethods []intstr.IntOrString `json:"notMethods,omitempty"`
	// paths belongs into an entry of to.
	// +listType=atomic
	// +optional
	Paths []intstr.IntOrString `json:"paths,omitempty"`
	// notPaths belongs into an entry of to.
	// +listType=atomic
	// +optional
	NotPaths []intstr.IntOrString `json:"notPaths,omitempty"`
	// headers belongs into an entry of to.
	// +listType=atomic
	// +optional
	Headers []Unread `json:"headers,omitempty"`
}

// tokenFields are others by which policies of other meshes look into requests. They are
// the names that internal/kube/strict knows.
// +kubebuilder:validation:XValidation:rule="!(has(self.notHeaders) || has(self.requestPrincipals) || has(self.notRequestPrincipals) || has(self.jwt) || has(self.claims) || has(self.when))",message="notHeaders, requestPrincipals, notRequestPrincipals, jwt, claims and when are about requests in ways in which no waypoint judges these: write hosts, methods, paths and headers into an entry of to; take the field out: what is left must not let in more than you mean"
type tokenFields struct {
	// notHeaders would be about requests.
	// +listType=atomic
	// +optional
	NotHeaders []Unread `json:"notHeaders,omitempty"`
	// requestPrincipals would be about requests.
	// +listType=atomic
	// +optional
	RequestPrincipals []intstr.IntOrString `json:"requestPrincipals,omitempty"`
	// notRequestPrincipals would be about requests.
	// +listType=atomic
	// +optional
	NotRequestPrincipals []intstr.IntOrString `json:"notRequestPrincipals,omitempty"`
	// jwt would be about requests.
	// +optional
	JWT *Unread `json:"jwt,omitempty"`
	// claims would be about requests.
	// +optional
	Claims *Unread `json:"claims,omitempty"`
	// when would be about requests.
	// +listType=atomic
	// +optional
	When []Unread `json:"when,omitempty"`
}

// foreignFields are the others of Istio's security.istio.io/v1 AuthorizationPolicy
// (authorization_policy.proto).
// +kubebuilder:validation:XValidation:rule="!(has(self.principals) || has(self.notPrincipals) || has(self.notServiceAccounts) || has(self.remoteIpBlocks) || has(self.notRemoteIpBlocks) || has(self.trustDomains) || has(self.notTrustDomains) || has(self.source) || has(self.operation) || has(self.provider) || has(self.targetRef) || has(self.targetRefs))",message="principals, notPrincipals, notServiceAccounts, remoteIpBlocks, notRemoteIpBlocks, trustDomains, notTrustDomains, source, operation, provider, targetRef and targetRefs are fields of other meshes' policies, and nothing here reads them: write identities, ipBlocks, notIdentities and selector; an entry of from or to is not wrapped"
type foreignFields struct {
	// principals is no field of this mesh.
	// +listType=atomic
	// +optional
	Principals []intstr.IntOrString `json:"principals,omitempty"`
	// notPrincipals is no field of this mesh.
	// +listType=atomic
	// +optional
	NotPrincipals []intstr.IntOrString `json:"notPrincipals,omitempty"`
	// notServiceAccounts is no field of this mesh.
	// +listType=atomic
	// +optional
	NotServiceAccounts []intstr.IntOrString `json:"notServiceAccounts,omitempty"`
	// remoteIpBlocks is no field of this mesh.
	// +listType=atomic
	// +optional
	RemoteIPBlocks []intstr.IntOrString `json:"remoteIpBlocks,omitempty"`
	// notRemoteIpBlocks is no field of this mesh.
	// +listType=atomic
	// +optional
	NotRemoteIPBlocks []intstr.IntOrString `json:"notRemoteIpBlocks,omitempty"`
	// trustDomains is no field of this mesh.
	// +listType=atomic
	// +optional
	TrustDomains []intstr.IntOrString `json:"trustDomains,omitempty"`
	// notTrustDomains is no field of this mesh.
	// +listType=atomic
	// +optional
	NotTrustDomains []intstr.IntOrString `json:"notTrustDomains,omitempty"`
	// source is no field of this mesh.
	// +optional
	Source *Unread `json:"source,omitempty"`
	// operation is no field of this mesh.
	// +optional
	Operation *Unread `json:"operation,omitempty"`
	// provider is no field of this mesh.
	// +optional
	Provider *Unread `json:"provider,omitempty"`
	// targetRef is no field of this mesh.
	// +optional
	TargetRef *Unread `json:"targetRef,omitempty"`
	// targetRefs is no field of this mesh.
	// +listType=atomic
	// +optional
	TargetRefs []Unread `json:"targetRefs,omitempty"`
}

// sourceFields are Source's, where they do not belong.
// +kubebuilder:validation:XValidation:rule="!(has(self.identities) || has(self.notIdentities) || has(self.serviceAccounts) || has(self.namespaces) || has(self.notNamespaces) || has(self.ipBlocks) || has(self.notIpBlocks))",message="identities, notIdentities, serviceAccounts, namespaces, notNamespaces, ipBlocks and notIpBlocks belong into an entry of from: what would be left without them could let in more than you mean"
type sourceFields struct {
	// identities belongs into an entry of from.
	// +listType=atomic
	// +optional
	Identities []intstr.IntOrString `json:"identities,omitempty"`
	// notIdentities belongs into an entry of from.
	// +listType=atomic
	// +optional
	NotIdentities []intstr.IntOrString `json:"notIdentities,omitempty"`
	// serviceAccounts belongs into an entry of from.
	// +listType=atomic
	// +optional
	ServiceAccounts []intstr.IntOrString `json:"serviceAccounts,omitempty"`
	// namespaces belongs into an entry of from.
	// +listType=atomic
	// +optional
	Namespaces []intstr.IntOrString `json:"namespaces,omitempty"`
	// notNamespaces belongs into an entry of from.
	// +listType=atomic
	// +optional
	NotNamespaces []intstr.IntOrString `json:"notNamespaces,omitempty"`
	// ipBlocks belongs into an entry of from.
	// +listType=atomic
	// +optional
	IPBlocks []intstr.IntOrString `json:"ipBlocks,omitempty"`
	// notIpBlocks belongs into an entry of from.
	// +listType=atomic
	// +optional
	NotIPBlocks []intstr.IntOrString `json:"notIpBlocks,omitempty"`
}

// portFields are Destination's, where they do not belong.
// +kubebuilder:validation:XValidation:rule="!(has(self.protocol) || has(self.ports) || has(self.notPorts))",message="protocol, ports and notPorts belong into an entry of to: what would be left without them could let in more than you mean"
type portFields struct {
	// protocol belongs into an entry of to.
	// +optional
	Protocol *intstr.IntOrString `json:"protocol,omitempty"`
	// ports belongs into an entry of to.
	// +listType=atomic
	// +optional
	Ports []intstr.IntOrString `json:"ports,omitempty"`
	// notPorts belongs into an entry of to.
	// +listType=atomic
	// +optional
	NotPorts []intstr.IntOrString `json:"notPorts,omitempty"`
}

// ruleFields are Rule's, where they do not belong.
// +kubebuilder:validation:XValidation:rule="!(has(self.from) || has(self.to))",message="from and to belong into an entry of rules, side by side: what would be left without them could let in more than you mean"
type ruleFields struct {
	// from belongs into a rule.
	// +listType=atomic
	// +optional
	From []Unread `json:"from,omitempty"`
	// to belongs into a rule.
	// +listType=atomic
	// +optional
	To []Unread `json:"to,omitempty"`
}

// policyFields are AuthorizationPolicySpec's, where they do not belong.
// +kubebuilder:validation:XValidation:rule="!(has(self.action) || has(self.selector) || has(self.rules))",message="action, selector and rules are fields of spec, and stand nowhere else: take care of the indentation"
type policyFields struct {
	// action belongs into spec.
	// +optional
	Action *intstr.IntOrString `json:"action,omitempty"`
	// selector belongs into spec.
	// +optional
	Selector *Unread `json:"selector,omitempty"`
	// rules belongs into spec.
	// +listType=atomic
	// +optional
	Rules []Unread `json:"rules,omitempty"`
}

// expressionFields are those of selectors of other kinds.
// +kubebuilder:validation:XValidation:rule="!(has(self.matchExpressions))",message="matchExpressions are not read: a selector has matchLabels alone, and without the expressions it would pick more workloads than you mean"
type expressionFields struct {
	// matchExpressions would pick workloads in ways that no selector here does.
	// +listType=atomic
	// +optional
	MatchExpressions []Unread `json:"matchExpressions,omitempty"`
}

// foreignModes are those of Istio's security.istio.io/v1 PeerAuthentication.
// +kubebuilder:validation:XValidation:rule="!(has(self.mtls) || has(self.portLevelMtls))",message="mtls and portLevelMtls are another mesh's fields, and nothing here reads them: write mode and portModes"
type foreignModes struct {
	// mtls is no field of this mesh: see mode.
	// +optional
	Mtls *Unread `json:"mtls,omitempty"`
	// portLevelMtls is no field of this mesh: see portModes.
	// +optional
	PortLevelMtls *Unread `json:"portLevelMtls,omitempty"`
}

// Nothing sets any of these fields, so that to copy them takes no more than this.
// controller-gen calls these methods and writes none for what is not exported.

func (in *requestFields) DeepCopyInto(out *requestFields)       { *out = *in }
func (in *tokenFields) DeepCopyInto(out *tokenFields)           { *out = *in }
func (in *foreignFields) DeepCopyInto(out *foreignFields)       { *out = *in }
func (in *sourceFields) DeepCopyInto(out *sourceFields)         { *out = *in }
func (in *portFields) DeepCopyInto(out *portFields)             { *out = *in }
func (in *ruleFields) DeepCopyInto(out *ruleFields)             { *out = *in }
func (in *policyFields) DeepCopyInto(out *policyFields)         { *out = *in }
func (in *expressionFields) DeepCopyInto(out *expressionFields) { *out = *in }
func (in *foreignModes) DeepCopyInto(out *foreignModes)         { *out = *in }
