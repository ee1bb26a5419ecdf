package flow

import (
	"net/netip"
	"time"
	"unique"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// kept is a Record as a Ring holds it: a third of its size. What many records
// have alike is there once for all of them, and goes with the last of them.
type kept struct {
	id              uint64
	start, duration int64 // nanoseconds, start as UnixNano has it
	alike           unique.Handle[alike]
	detail          string
	bytesSent       uint64
	bytesReceived   uint64
	packets         uint64
	timing          Timing
	retransmits     uint32
	source, dest    address
}

// alike is what the connections of two workloads have in common.
type alike struct {
	source, dest     mesh.Key
	sourceID, destID spiffeid.ID
	toward           unique.Handle[toward]
	policy           mesh.Key
	rule             int
	audited          Names
	direction        Direction
	transport        Transport
	protocol         uint8
	verdict          mesh.Verdict
	reason           mesh.Reason
	secured          Secured
}

// toward is what a node's workloads have in common that go to one service: few values
// of it serve all pairs of workloads.
type toward struct {
	service, waypoint    mesh.Key
	node                 string
	sourceZone, destZone string // of IPv6 addresses (RFC 4007)
}

// address is a netip.AddrPort without its zone, and without a pointer.
type address struct {
	ip   [16]byte
	port uint16
	bits uint8 // of the address: 32, 128, or 0 when there is none
}

func compact(r *Record) *kept {
	return &kept{
		id: r.ID, start: meshpb.Nanos(r.Start), duration: int64(r.Duration),
		alike: unique.Make(alike{
			source: r.Source.Workload, dest: r.Destination.Workload, sourceID: r.Source.Identity, destID: r.Destination.Identity,
			toward: unique.Make(toward{
				service: r.Service, waypoint: r.Waypoint, node: r.Node,
				sourceZone: r.Source.Addr.Addr().Zone(), destZone: r.Destination.Addr.Addr().Zone(),
			}),
			policy: r.Policy, rule: r.Rule, audited: r.Audited,
			direction: r.Direction, transport: r.Transport, protocol: r.Protocol, verdict: r.Verdict, reason: r.Reason, secured: r.Secured,
		}),
		detail: r.Detail, bytesSent: r.BytesSent, bytesReceived: r.BytesReceived, packets: r.Packets,
		timing: r.Timing, retransmits: r.Retransmits,
		source: compactAddress(r.Source.Addr), dest: compactAddress(r.Destination.Addr),
	}
}

// record is the inverse of compact, but for Start's monotonic clock and zone.
func (k *kept) record() Record {
	a := k.alike.Value()
	to := a.toward.Value()
	return Record{
		ID: k.id, Start: timeOf(k.start), Duration: time.Duration(k.duration), Direction: a.direction,
		Source:      Endpoint{Workload: a.source, Identity: a.sourceID, Addr: k.source.addrPort(to.sourceZone)},
		Destination: Endpoint{Workload: a.dest, Identity: a.destID, Addr: k.dest.addrPort(to.destZone)},
		Service:     to.service, Node: to.node, Verdict: a.verdict, Reason: a.reason, Policy: a.policy, Rule: a.rule, Audited: a.audited,
		BytesSent: k.bytesSent, BytesReceived: k.bytesReceived, Timing: k.timing, Wire: Wire{to.waypoint, k.retransmits, a.transport, a.secured},
		Packets: k.packets, Protocol: a.protocol, Detail: k.detail,
	}
}

func compactAddress(a netip.AddrPort) address {
	return address{ip: a.Addr().As16(), port: a.Port(), bits: uint8(a.Addr().BitLen())}
}

func (a address) addrPort(zone string) netip.AddrPort {
	var addr netip.Addr
	switch a.bits {
	case 32:
		addr = netip.AddrFrom16(a.ip).Unmap()
	case 128:
		addr = netip.AddrFrom16(a.ip).WithZone(zone)
	}
	return netip.AddrPortFrom(addr, a.port)
}
