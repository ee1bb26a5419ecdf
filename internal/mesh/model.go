package mesh

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/pattern"
	"github.com/heddle-mesh/heddle/internal/mesh/policy"
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
type Key = keyed.Key

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
	// Leaving workloads are being deleted and still serve. Services whose workloads
	// are none of them ready use them.
	Leaving bool
	// Mode is the effective mode of ports that PortModes does not name. Only
	// its own node is told of modes, DNS and ProbePorts.
	Mode Mode
	// DNS says who answers its name queries.
	DNS DNSMode
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
	// Datagrams are the rules about UDP of the policies that select the workload, without
	// their selectors, sorted by key; none where no ALLOW policy has one. Every node is
	// told, since what may leave a workload is decided by whoever it goes to.
	Datagrams []*Policy
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
	// External are addresses that lead to the service at its ports only, and are
	// anybody's otherwise: several services may have one. Whoever makes services gives
	// an address and port to one; of several, the first by name has it. Sorted.
	External []netip.Addr
	Ports    []ServicePort
	// Endpoints names the selected workloads, ready or not, sorted.
	Endpoints []Key
	// Prefer narrows the candidates to those that are near the client, while
	// there are any.
	Prefer Nearness
	// Sticky sends all connections of one client to the same workload, as long as
	// that is ready and no pause between two of them is longer than StickyFor, in
	// whole seconds; 0 is DefaultSticky.
	Sticky    bool
	StickyFor time.Duration
	// Unready takes the service's workloads for ready, whatever they are.
	Unready bool
	// UDPPorts are the ports over UDP: no more than Port and TargetPort, which all
	// endpoints have. Nothing is routed to them: see package datagram.
	UDPPorts []ServicePort
}

// DefaultSticky is Kubernetes' own default of
// spec.sessionAffinityConfig.clientIP.timeoutSeconds.
const DefaultSticky = 3 * time.Hour

// Nearness says which workloads of a service a client prefers.
type Nearness uint8

// The kinds of nearness. The zero value has no preference.
const (
	AnyDistance Nearness = iota
	// SameZone prefers workloads in the client's zone.
	SameZone
	// SameNode prefers workloads on the client's node, then those in its zone.
	SameNode
	// OnlyNode leaves out workloads on other nodes than the client's: where it has
	// none, the service has none.
	OnlyNode
)

// Hostname returns the name that workloads look the service up by,
// NAME.NAMESPACE.svc.cluster.local.
func (s *Service) Hostname() string { return s.Name + "." + s.Namespace + ".svc." + ClusterDomain }

// ServicePort maps a service's port to the workloads' port.
type ServicePort struct {
	Name             string
	Port, TargetPort uint16
	// Only are the endpoints that have this port, when not all of the service's have
	// it; sorted. Agents are told an empty list as none: a port that no endpoint has is
	// that of a name which no workload has.
	Only []Key
	// Elsewhere has those that have it under other numbers than TargetPort, and are not
	// among Only, which is set then.
	Elsewhere []PortElsewhere
}

// PortElsewhere is the number that a service's port has at some endpoints, sorted.
type PortElsewhere struct {
	TargetPort uint16
	Endpoints  []Key
}

// String returns {NAME PORT TARGET}, with the endpoints that alone have the port.
func (p ServicePort) String() string {
	if p.Only == nil {
		return fmt.Sprintf("{%s %d %d}", p.Name, p.Port, p.TargetPort)
	}
	text := fmt.Sprintf("{%s %d %d of %v", p.Name, p.Port, p.TargetPort, p.Only)
	for _, e := range p.Elsewhere {
		text += fmt.Sprintf(" %d of %v", e.TargetPort, e.Endpoints)
	}
	return text + "}"
}

// What AuthorizationPolicies say; see package policy.
type (
	Policy      = policy.Policy
	Rule        = policy.Rule
	Source      = policy.Source
	Destination = policy.Destination
	// IdentityPattern is a SPIFFE ID in which "*" stands for one whole path
	// segment, and "*" as the last segment for one or more.
	IdentityPattern = pattern.Pattern
	// Action is what a matching policy does.
	Action = policy.Action
)

// The actions. DENY is evaluated before ALLOW; AUDIT never decides.
const (
	ActionAllow = policy.Allow
	ActionDeny  = policy.Deny
	ActionAudit = policy.Audit
)

// EgressMode says what happens to connections that leave the mesh.
type EgressMode uint8

// The egress modes.
const (
	EgressAllow EgressMode = iota
	EgressDeny
)

// DNSMode says who answers a workload's name queries.
type DNSMode uint8

// The DNS modes. The zero value leaves it to what the agent was started with.
const (
	DNSDefault DNSMode = iota
	// DNSCapture: the agent.
	DNSCapture
	// DNSDirect: whoever was asked, unread by the agent.
	DNSDirect
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
	// RevokedUntold are revoked too, and more than agents can be told of: the operator
	// signs nothing for them. Empty at an agent.
	RevokedUntold []spiffeid.ID
}

// Route says where one outbound connection goes.
type Route struct {
	Kind RouteKind
	// Service is the service whose address was dialled; nil for a direct dial.
	Service *Service
	// Candidates are the workloads that may take it: one for a direct dial,
	// the ready endpoints for a service. Empty unless Kind is RouteWorkload.
	Candidates []*Workload
	// Port is the application port at the candidates that elsewhere does not name, or
	// the dialled one; see PortOf.
	Port      uint16
	elsewhere []PortElsewhere
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
