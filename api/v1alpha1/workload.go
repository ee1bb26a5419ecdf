package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Workload is a process, or a group of them, outside Kubernetes: on a virtual
// machine, or in a network namespace of its own on a machine without
// Kubernetes. Pods need none.
//
// Its labels are what selectors of services and policies see. The label
// heddle.dev/mesh (enabled or disabled), on it or else on its namespace,
// enrolls it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,path=workloads,shortName=wl,categories=heddle
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Service account",type=string,JSONPath=`.spec.serviceAccount`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Live",type=string,JSONPath=`.status.nodes.summary`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Workload struct {
	metav1.TypeMeta `json:",inline"`
	// metadata of the object.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// spec says what is wanted.
	// +required
	Spec WorkloadSpec `json:"spec"`
	// status says what is so.
	// +optional
	Status Status `json:"status,omitempty"`
}

// WorkloadSpec describes a workload.
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="size(dyn(self)) == (has(self.node) ? 1 : 0) + (has(self.serviceAccount) ? 1 : 0) + (has(self.addresses) ? 1 : 0) + (has(self.networkNamespace) ? 1 : 0) + (has(self.probePorts) ? 1 : 0) + (has(self.ready) ? 1 : 0)",message="spec has no other fields than node, serviceAccount, addresses, networkNamespace, probePorts and ready: an unknown field must not be lost, and leave less than you mean"
type WorkloadSpec struct {
	// node is the name of the node whose agent serves the workload.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	Node string `json:"node"`
	// serviceAccount is the last part of the workload's identity,
	// spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT. "default" unless
	// set.
	// +kubebuilder:default=default
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	// +optional
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// addresses are the workload's own, inside the mesh's clusterRanges; no two
	// workloads or services share one.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=2
	// +kubebuilder:validation:items:MaxLength=45
	// +kubebuilder:validation:items:XValidation:rule="isIP(self)",message="want an IP address such as 10.1.2.3 or fd00::3"
	// +kubebuilder:validation:items:XValidation:rule="!isIP(self) || ip(self).isGlobalUnicast()",message="others cannot reach this address: it is unspecified, loopback, multicast or link-local"
	// +kubebuilder:validation:XValidation:rule="self.all(a, !isIP(a) || self.exists_one(b, isIP(b) && ip(a) == ip(b)))",message="an address is given twice"
	// +listType=set
	Addresses []string `json:"addresses"`
	// networkNamespace is the path of the workload's network namespace on its
	// node, such as /run/netns/web. Needed when the workload is enrolled.
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:validation:Pattern=`^(/|(/([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+))+)$`
	// +optional
	NetworkNamespace string `json:"networkNamespace,omitempty"`
	// probePorts are the ports that health probes of this node go to. A probe
	// is let in without an identity; nothing else is.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.all(port, !(port in [15001, 15006, 15008, 15009, 15053]))",message="a port is the agent's own in an enrolled workload; let the process listen elsewhere"
	// +listType=set
	// +optional
	ProbePorts []Port `json:"probePorts,omitempty"`
	// ready workloads get new connections through services; others keep the
	// connections that they have, and can be reached at their own address. True
	// unless set.
	// +kubebuilder:default=true
	// +optional
	Ready *bool `json:"ready,omitempty"`
}

// WorkloadList is a list of Workload.
// +kubebuilder:object:root=true
type WorkloadList struct {
	metav1.TypeMeta `json:",inline"`
	// metadata of the list.
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	// items of the list.
	Items []Workload `json:"items"`
}
