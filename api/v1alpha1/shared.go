package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// LabelMesh is the label that enrolls a workload, or every workload of a
// namespace: MeshEnabled or MeshDisabled. A workload's own label wins over its
// namespace's; without either, the workload is not enrolled.
const LabelMesh = "heddle.dev/mesh"

// The values of LabelMesh.
const (
	MeshEnabled  = "enabled"
	MeshDisabled = "disabled"
)

// LabelWaypoint is the label of a Service, or of a namespace for all its Services, that
// names the Service of the waypoint, in the same namespace, that takes their connections:
// a Service's own label wins over its namespace's, and WaypointNone is none.
const LabelWaypoint = "heddle.dev/waypoint"

// WaypointNone is the value of LabelWaypoint that names no waypoint.
const WaypointNone = "none"

// LabelWaypointBypass is the label of a Service, or of a namespace for all its Services,
// by which "true" lets connections past a waypoint that does not answer. By default, and
// with "false", they are refused.
const LabelWaypointBypass = "heddle.dev/waypoint-bypass"

// TaintAgentNotReady is the key of the taint with which nodes may register, so that only
// what tolerates it starts there before the node's agent is ready.
const TaintAgentNotReady = "heddle.dev/agent-not-ready"

// MeshName is the name of the one Mesh.
const MeshName = "default"

// The types of conditions. Each condition's observedGeneration is the generation
// that it is about.
const (
	// ConditionAccepted says whether the object is valid and in use; its reason
	// and message say why not.
	ConditionAccepted = "Accepted"
	// ConditionLive says whether every node that needs the object enforces it,
	// as agents read it back: what is so, not what was sent. Its message names
	// nodes that do not.
	ConditionLive = "Live"
)

// The reasons of conditions.
const (
	// ReasonAccepted is that of an Accepted condition that is True.
	ReasonAccepted = "Accepted"
	// ReasonInvalid: a field says what cannot be enforced; the message has the
	// field and the remedy.
	ReasonInvalid = "Invalid"
	// ReasonConflict: another object has what only one may have.
	ReasonConflict = "Conflict"
	// ReasonLive is that of a Live condition that is True.
	ReasonLive = "Live"
	// ReasonPending: some nodes have not confirmed yet, or have pods that are not as
	// they should be.
	ReasonPending = "Pending"
	// ReasonNotNeeded: no node has a workload that the object is about.
	ReasonNotNeeded = "NotNeeded"
)

// Selector picks workloads of the object's own namespace by their labels.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.matchLabels) ? 1 : 0)",message="a selector has no other fields than matchLabels: an unknown field, or one without a value, must not leave less than you mean"
type Selector struct {
	expressionFields `json:",inline"`

	// matchLabels must all be among a workload's labels, with these values.
	// At least one; leave the selector out to pick every workload of the
	// namespace.
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=16
	// +kubebuilder:validation:XValidation:rule="self.all(key, size(key) <= 317 && key.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))",message="a key is not that of a label: at most 63 letters, digits, '-', '_' and '.', the first and the last a letter or a digit; a domain and / may precede them"
	MatchLabels map[string]LabelValue `json:"matchLabels"`
}

// LabelValue is the value of a label.
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$`
type LabelValue string

// Labels returns what a workload must have, as Kubernetes' own kinds hold labels.
func (s *Selector) Labels() map[string]string {
	labels := make(map[string]string, len(s.MatchLabels))
	for key, value := range s.MatchLabels {
		labels[key] = string(value)
	}
	return labels
}

// Port is a TCP or UDP port, 1 to 65535.
// +kubebuilder:validation:Minimum=1
// +kubebuilder:validation:Maximum=65535
type Port int32

// AddressBlock is a range of IP addresses in CIDR notation, "10.1.0.0/16" or
// "fd00:1::/64", with no bits set after the prefix. One address is "10.1.2.3/32".
// +kubebuilder:validation:MinLength=3
// +kubebuilder:validation:MaxLength=49
// +kubebuilder:validation:Pattern=`^[0-9a-fA-F:.]+/[0-9]{1,3}$`
// +kubebuilder:validation:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="want a range such as 10.1.0.0/16 or fd00:1::/64, with no bits set after the prefix and IPv4 written as IPv4; one address is 10.1.2.3/32"
type AddressBlock string

// Status is what the mesh reports about an object.
type Status struct {
	// observedGeneration is the generation of the object that the conditions
	// are about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// nodes says on how many nodes the object is live. Absent until it has been
	// accepted.
	// +optional
	Nodes *NodeCount `json:"nodes,omitempty"`
	// conditions of the object. "Accepted" says whether it is valid and in use,
	// "Live" whether every node that needs it enforces it.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// NodeCount says on how many of the nodes that need an object it is enforced. Pods of waypoints
// that enforce it count as nodes do, and a waypoint that has none connected as one.
type NodeCount struct {
	// live nodes enforce the observed generation: their agents have read it back.
	// +kubebuilder:validation:Minimum=0
	Live int32 `json:"live"`
	// wanted is the number of nodes that have a workload which the object is
	// about.
	// +kubebuilder:validation:Minimum=0
	Wanted int32 `json:"wanted"`
	// summary is both for people, such as "2/3".
	// +kubebuilder:validation:MaxLength=32
	// +optional
	Summary string `json:"summary,omitempty"`
}
