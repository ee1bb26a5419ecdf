package mesh

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The ports that the agent listens on inside every enrolled workload's network
// namespace. Nothing is routed to them and no connection to them is authorized
// (ReasonReservedPort): the agent would be talking to itself.
const (
	// OutboundPort takes what the workload's own processes connect to.
	OutboundPort = 15001
	// InboundPort takes plaintext from the wire.
	InboundPort = 15006
	// TunnelPort serves HBONE.
	TunnelPort = 15008
	// DNSPort answers the workload's name queries.
	DNSPort = 15053
)

// ClusterDomain is the DNS domain of service names.
const ClusterDomain = "cluster.local"

// Mode says how a workload's port treats plaintext from the wire.
type Mode uint8

// The modes. The zero value is ModeStrict, so that a forgotten field refuses.
const (
	ModeStrict Mode = iota
	ModePermissive
)

// String returns "STRICT" or "PERMISSIVE".
func (m Mode) String() string {
	if m == ModePermissive {
		return "PERMISSIVE"
	}
	return "STRICT"
}

// Key names an object: a namespace and a name in it. It is comparable.
type Key struct{ Namespace, Name string }

// String returns "namespace/name".
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Workload is one pod, or one process group in a network namespace of its own.
type Workload struct {
	Key
	// ServiceAccount and Node are never empty.
	ServiceAccount, Node string
	// Identity is spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT.
	Identity spiffeid.ID
	// Addresses are unique in the mesh, unmapped, sorted. There is none while a
	// pod is being set up: its own node is told of it beforehand.
	Addresses []netip.Addr
	// Labels are what policies select by. Only its own node is told.
	Labels map[string]string
	// Enrolled workloads are reached through the tunnel, others in plaintext.
	Enrolled bool
	// Ready workloads receive new connections through services.
	Ready bool
	// Mode is the effective mode of ports that PortModes does not name. Only
	// its own node is told of modes and ProbePorts.
	Mode Mode
	// NetNS is the path of the network namespace; "" unless the workload is
	// enrolled by path (no Kubernetes). Only its own node is told.
	NetNS string
	// UID is the pod's; "" outside Kubernetes. Only its own node is told.
	UID string
	// Zone is the topology zone of the workload's node; "" when not known.
	Zone string
	// PortModes overrides Mode per application port.
	PortModes map[uint16]Mode
	// ProbePorts are the ports that declared health probes go to.
	ProbePorts []uint16
}

// ModeOf returns the effective mode of an application port.
func (w *Workload) ModeOf(port uint16) Mode {
	if m, ok := w.PortModes[port]; ok {
		return m
	}
	return w.Mode
}

// Service is a name and an address set for a changing set of workloads.
type Service struct {
	Key
	// Addresses are the virtual addresses; may be empty (headless).
	Addresses []netip.Addr
	Ports     []ServicePort
	// Endpoints names the selected workloads, ready or not, sorted.
	Endpoints []Key
	// Prefer narrows the candidates to those that are near the client, while
	// there are any.
	Prefer Nearness
	// Sticky sends all connections of one client to the same workload, as long
	// as the ready ones stay the same.
	Sticky bool
}

// Nearness says which workloads of a service a client prefers.
type Nearness uint8

// The kinds of nearness. The zero value has no preference.
const (
	AnyDistance Nearness = iota
	// SameZone prefers workloads in the client's zone.
	SameZone
	// SameNode prefers workloads on the client's node, then those in its zone.
	SameNode
)

// Hostname returns the name that workloads look the service up by,
// NAME.NAMESPACE.svc.cluster.local.
func (s *Service) Hostname() string { return s.Name + "." + s.Namespace + ".svc." + ClusterDomain }

// ServicePort maps a service's port to the workloads' port.
type ServicePort struct {
	Name             string
	Port, TargetPort uint16
}

// Action is what a matching policy does.
type Action uint8

// The actions. DENY is evaluated before ALLOW; AUDIT never decides.
const (
	ActionAllow Action = iota
	ActionDeny
	ActionAudit
)

// String returns "ALLOW", "DENY" or "AUDIT".
func (a Action) String() string {
	switch a {
	case ActionDeny:
		return "DENY"
	case ActionAudit:
		return "AUDIT"
	default:
		return "ALLOW"
	}
}

// Policy is an L4 authorization policy in compiled form.
type Policy struct {
	Key
	Action Action
	// Selector picks workloads of the policy's namespace by label equality;
	// empty selects all of them.
	Selector map[string]string
	// Rules match when any one of them matches. An ALLOW policy without rules
	// admits nothing: it is the default deny.
	Rules []Rule
}

// Rule matches a connection when its From and its To both match; an empty list
// matches everything.
type Rule struct {
	From []Source
	To   []Destination
}

// Source matches when every non-empty field matches. Identities and namespaces
// are those that mutual TLS proved: a plaintext connection has none of them,
// and an identity of another trust domain, or of another form than IdentityFor
// gives, has no namespace.
//
// What is not proved never lets anybody in: without an identity (a namespace),
// NotIdentities (NotNamespaces) matches in DENY and AUDIT policies and does not
// match in ALLOW policies. Otherwise "everyone but web" would admit web as soon
// as it speaks plaintext.
type Source struct {
	Identities, NotIdentities []IdentityPattern
	Namespaces, NotNamespaces []string
	IPBlocks, NotIPBlocks     []netip.Prefix
}

// Destination matches when every non-empty field matches.
type Destination struct {
	Ports, NotPorts []uint16
}

// IdentityPattern is a SPIFFE ID in which "*" stands for one whole path
// segment, and "*" as the last segment for one or more.
type IdentityPattern string

// EgressMode says what happens to connections that leave the mesh.
type EgressMode uint8

// The egress modes.
const (
	EgressAllow EgressMode = iota
	EgressDeny
)

// Settings are what holds for the whole mesh.
type Settings struct {
	TrustDomain spiffeid.TrustDomain
	// ClusterRanges hold every workload and service address: a destination in
	// them that nobody owns is refused, never passed on in plaintext.
	ClusterRanges []netip.Prefix
	Egress        EgressMode
	// EgressNamespaces overrides Egress per namespace.
	EgressNamespaces map[string]EgressMode
	// RevokedIdentities are refused, and their live connections ended.
	RevokedIdentities []spiffeid.ID
}

// Route says where one outbound connection goes.
type Route struct {
	Kind RouteKind
	// Service is the service whose address was dialled; nil for a direct dial.
	Service *Service
	// Candidates are the workloads that may take it: one for a direct dial,
	// the ready endpoints for a service. Empty unless Kind is RouteWorkload.
	Candidates []*Workload
	// Port is the application port at the candidates, or the dialled one.
	Port uint16
	// Reason says why: of the refusal for RouteReject and RouteHold, of the
	// permission for RouteEgress.
	Reason Reason
}

// RouteKind is the kind of a Route.
type RouteKind uint8

// The kinds of route. The zero value refuses.
const (
	RouteReject RouteKind = iota
	// RouteWorkload goes to one of the candidates: through the tunnel when
	// that candidate is enrolled; else in plaintext, when the source's egress
	// policy allows plaintext (Settings.EgressOf).
	RouteWorkload
	// RouteEgress leaves the mesh in plaintext: dial the address as it is.
	RouteEgress
	// RouteHold is for an address in the cluster's ranges that nobody owns yet:
	// wait for discovery up to a second, then refuse with Reason.
	RouteHold
)

// Connection is what authorization looks at.
type Connection struct {
	// Peer is the identity that mutual TLS proved; the zero ID for plaintext.
	Peer spiffeid.ID
	// Source is the client's address.
	Source netip.Addr
	// Destination is the workload, Port its application port.
	Destination *Workload
	Port        uint16
	// Probe is set when the gate recognized a kubelet probe.
	Probe bool
	// Node is set when the client is a process of the destination's own node, in
	// the node's network. NetworkPolicies do not apply to those.
	Node bool
}

// Decision is the outcome of Authorize, for permitted and refused alike.
type Decision struct {
	Verdict Verdict
	Reason  Reason
	// Policy names the deciding policy, Rule its rule (from 0); the zero Key
	// and -1 when none decided.
	Policy Key
	Rule   int
	// Audited names AUDIT policies that matched.
	Audited []Key
}
