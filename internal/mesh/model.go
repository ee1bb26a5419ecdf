package mesh

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/federation"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/pattern"
	"github.com/heddle-mesh/heddle/internal/mesh/policy"
	"github.com/heddle-mesh/heddle/internal/mesh/service"
	"github.com/heddle-mesh/heddle/internal/mesh/workload"
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

// WaypointPort is where a waypoint takes what agents carry to it, each connection behind
// a header that says whose it is. Only the agent of a waypoint's own node connects to it:
// whoever else could write the header could be anybody, so it is reserved, as the agent's
// own ports are, in every enrolled workload.
const WaypointPort = 15009

// ClusterDomain is the DNS domain of service names.
const ClusterDomain = service.ClusterDomain

// Key names an object: a namespace and a name in it. It is comparable.
type Key = keyed.Key

// What is said of workloads; see package workload.
type (
	Workload = workload.Workload
	// Mode says how a workload's port treats plaintext from the wire.
	Mode = workload.Mode
	// DNSMode says who answers a workload's name queries.
	DNSMode = workload.DNSMode
	// Receiver is a workload of which policies say something about UDP.
	Receiver = workload.Receiver
)

// The modes, and who answers name queries. The zero values refuse plaintext, and leave
// names to what the agent was started with.
const (
	ModeStrict     = workload.Strict
	ModePermissive = workload.Permissive
	DNSDefault     = workload.DNSDefault
	DNSCapture     = workload.DNSCapture
	DNSDirect      = workload.DNSDirect
)

// What is said of services; see package service.
type (
	Service       = service.Service
	ServicePort   = service.Port
	PortElsewhere = service.PortElsewhere
	// Nearness says which workloads of a service a client prefers.
	Nearness = service.Nearness
)

// The kinds of nearness, and for how long clients of a sticky service stay with a workload
// where nothing is said of it.
const (
	AnyDistance   = service.AnyDistance
	SameZone      = service.SameZone
	SameNode      = service.SameNode
	OnlyNode      = service.OnlyNode
	DefaultSticky = service.DefaultSticky
	// ExternalNamespace is described in package service.
	ExternalNamespace = service.ExternalNamespace
)

// What is said of other trust domains; see package federation.
type (
	FederatedDomain   = federation.Domain
	FederatedWorkload = federation.Workload
)

// MaxFederatedWorkloads bounds the workloads of all other trust domains.
const MaxFederatedWorkloads = federation.MaxWorkloads

// What AuthorizationPolicies say; see package policy.
type (
	Policy      = policy.Policy
	Rule        = policy.Rule
	Source      = policy.Source
	Destination = policy.Destination
	// Request is what policies look at of a request, and RequestMatch names some.
	Request       = policy.Request
	RequestHeader = policy.RequestHeader
	RequestMatch  = policy.RequestMatch
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

// UDPEgress says with which ports outside the mesh conversations over UDP may be begun;
// see package datagram. The zero value is none.
type UDPEgress struct {
	// Allow opens Ports; without any, all that are never closed.
	Allow bool
	Ports []uint16
}

// Settings are what holds for the whole mesh.
type Settings struct {
	TrustDomain spiffeid.TrustDomain
	// ClusterRanges hold every workload and service address: a destination in
	// them that nobody owns is refused, never passed on in plaintext.
	ClusterRanges []netip.Prefix
	Egress        EgressMode
	// EgressNamespaces overrides Egress per namespace.
	EgressNamespaces map[string]EgressMode
	// UDPEgress is by namespace: that of "" is of those that are not in it.
	UDPEgress map[string]UDPEgress
	// RevokedIdentities are refused, and their live connections ended.
	RevokedIdentities []spiffeid.ID
	// RevokedUntold are revoked too, and more than agents can be told of: the operator
	// signs nothing for them. Empty at an agent.
	RevokedUntold []spiffeid.ID
	// Federation are the other trust domains whose identities are believed, sorted.
	Federation []FederatedDomain
}

// Route says where one outbound connection goes.
type Route struct {
	Kind RouteKind
	// Service is the service whose address was dialled; nil for a direct dial.
	Service *Service
	// Waypoint is the waypoint of Service, when it is to be asked for the connection to
	// the dialled address and port; else nil.
	Waypoint *Service
	// Candidates are the workloads that may take it: one for a direct dial, which may be
	// of another trust domain (ForeignAt), the ready endpoints for a service, or those of its waypoint, all enrolled. Empty
	// unless Kind is RouteWorkload.
	Candidates []*Workload
	// Port is the application port at the candidates that elsewhere does not name, or
	// the dialled one, or that of waypoints; see PortOf.
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
	// policy allows plaintext (View.Egress).
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
	// Behind is the address and port of the service that a waypoint, the destination, is
	// asked for at WaypointPort; else zero.
	Behind netip.AddrPort
	// Request is one of the connection's, as its waypoint judges it; nil for the connection
	// itself, of whose requests nothing is known.
	Request *Request
	// Probe is set when the gate recognized a kubelet probe.
	Probe bool
	// Former is set when the client was, until a moment ago, the waypoint that SentOn says
	// no of now. It stands in for an ALLOW policy that names the client. With Behind it is
	// set of what the destination was asked when it was that service's waypoint.
	Former bool
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
