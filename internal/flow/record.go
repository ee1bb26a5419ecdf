package flow

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone/secured"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ProtocolUDP is UDP's number (IANA's protocol numbers).
const ProtocolUDP = 17

// Record is one flow: a finished or refused connection, packets that the
// gate dropped, or datagrams that it let pass. Record is a value; one that is in a Ring must not be changed.
type Record struct {
	// ID counts the records of one agent's life, from 1. The Ring gives it.
	ID uint64
	// Start is when the connection was accepted or the first packet dropped; of one
	// that was open before its pod was enrolled, and that the gate ended, when it did.
	Start time.Time
	// Duration runs from Start to the end of the connection, or to the last
	// of the dropped packets.
	Duration time.Duration
	// Direction is seen from the workload of the agent that made the record.
	Direction Direction
	// Source opened the connection; Destination is the workload, or the
	// address outside the mesh, that it reached or would have reached.
	Source, Destination Endpoint
	// Service is the service whose address was dialled; the zero Key for a
	// direct dial.
	Service mesh.Key
	// Node is the node of the agent that made the record.
	Node    string
	Verdict mesh.Verdict
	Reason  mesh.Reason
	// Policy and Rule (from 0) decided; the zero Key and -1 when none did.
	Policy mesh.Key
	Rule   int
	// Audited are the AUDIT policies that matched, whatever was decided.
	Audited Names
	// BytesSent went from Source to Destination and BytesReceived back:
	// payload of the application, without any framing.
	BytesSent, BytesReceived uint64
	Timing                   Timing
	Wire
	// Packets is how many dropped packets, or datagrams, or queries, or connections that
	// the kernel refused, the record stands for; 0 of a connection that the agent had.
	Packets uint64
	// Protocol is the IP protocol number, such as ProtocolUDP; 0 means TCP.
	Protocol uint8
	// Detail is an error's text or another hint for a person; never parsed.
	Detail string
}

// Decide puts a decision into the record.
func (r *Record) Decide(d mesh.Decision) {
	r.Verdict, r.Reason, r.Policy, r.Rule, r.Audited = d.Verdict, d.Reason, d.Policy, d.Rule, NamesOf(d.Audited)
}

// Wire is what is known of the wire leg.
type Wire struct {
	// Waypoint is the waypoint of Service to which the connection goes, in place of one of
	// the workloads of Service: Destination is one of the waypoint's, and has the address
	// and port of Service that it is asked for. Zero of other connections.
	Waypoint mesh.Key
	// Retransmits counts segments that the kernel sent again
	// (tcp_info.tcpi_total_retrans).
	Retransmits uint32
	// Transport is how the bytes travelled; it lies in the word of Retransmits.
	Transport Transport
	// Secured is the key exchange and the peer's certificate of the tunnel
	// connection; zero of what went without one.
	Secured Secured
}

// Secured is what secures a tunnel connection, which many flows may share.
type Secured = secured.By

// Timing is what one connection waited for. A zero field was not measured.
type Timing struct {
	// Handshake is the TLS handshake of the tunnel connection; 0 for a stream
	// on a warm one.
	Handshake time.Duration
	// Connect runs from the acceptance of the application's connection until
	// the far end accepted it.
	Connect time.Duration
	// RTT is the smoothed round-trip time of the wire leg at the end of the
	// flow (tcp_info.tcpi_rtt).
	RTT time.Duration
}

// Endpoint is one end of a flow. The zero Key or ID means not known.
type Endpoint struct {
	Workload mesh.Key
	// Identity of a peer was proved by mutual TLS; that of the agent's own
	// workload is the one of its SVID.
	Identity spiffeid.ID
	Addr     netip.AddrPort
}

// Direction says which of an agent's jobs a record is about.
type Direction uint8

// The directions. DirectionLocal is a connection between two workloads of one
// node, which the agent saw from both ends.
const (
	DirectionOutbound Direction = iota
	DirectionInbound
	DirectionLocal
	DirectionKernel
	// DirectionDNS is of name queries that were refused, failed, or got an old
	// answer. Source asked Destination, the server; Packets counts the queries.
	DirectionDNS
	// DirectionRequest is of requests at a waypoint: see Request.
	DirectionRequest
)

// Directions returns every direction.
func Directions() []Direction {
	return []Direction{DirectionOutbound, DirectionInbound, DirectionLocal, DirectionKernel, DirectionDNS, DirectionRequest}
}

// String returns "outbound", "inbound", "local", "kernel", "dns" or "request".
func (d Direction) String() string {
	switch d {
	case DirectionOutbound:
		return "outbound"
	case DirectionInbound:
		return "inbound"
	case DirectionLocal:
		return "local"
	case DirectionKernel:
		return "kernel"
	case DirectionDNS:
		return "dns"
	case DirectionRequest:
		return "request"
	default:
		return fmt.Sprintf("Direction(%d)", uint8(d))
	}
}

// ParseDirection is the inverse of Direction.String.
func ParseDirection(word string) (Direction, error) {
	for _, d := range Directions() {
		if d.String() == word {
			return d, nil
		}
	}
	return 0, fmt.Errorf("unknown direction %q: use outbound, inbound, local, kernel, dns or request", word)
}

// Transport says how the bytes of a flow travelled between the workloads.
type Transport uint8

// The transports. TransportNone is that of a refused connection.
const (
	TransportNone Transport = iota
	TransportTunnel
	TransportSplice
	TransportPlaintext
)

// Transports returns every transport.
func Transports() []Transport {
	return []Transport{TransportNone, TransportTunnel, TransportSplice, TransportPlaintext}
}

// String returns "none", "tunnel", "splice" or "plaintext".
func (t Transport) String() string {
	switch t {
	case TransportNone:
		return "none"
	case TransportTunnel:
		return "tunnel"
	case TransportSplice:
		return "splice"
	case TransportPlaintext:
		return "plaintext"
	default:
		return fmt.Sprintf("Transport(%d)", uint8(t))
	}
}

// ParseTransport is the inverse of Transport.String.
func ParseTransport(word string) (Transport, error) {
	for _, t := range Transports() {
		if t.String() == word {
			return t, nil
		}
	}
	return 0, fmt.Errorf("unknown transport %q: use tunnel, splice, plaintext or none", word)
}

// ParseVerdict is the inverse of mesh.Verdict.String.
func ParseVerdict(word string) (mesh.Verdict, error) {
	for _, v := range []mesh.Verdict{mesh.VerdictDeny, mesh.VerdictAllow, mesh.VerdictAudit} {
		if v.String() == word {
			return v, nil
		}
	}
	return 0, fmt.Errorf("unknown verdict %q: use allow, deny or audit", word)
}
