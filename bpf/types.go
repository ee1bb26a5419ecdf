package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
	"unsafe"
)

// Mode says what plaintext from the wire may do on a port.
type Mode uint8

// The modes. The zero value is ModeStrict, so that a forgotten field refuses.
const (
	ModeStrict Mode = iota
	ModePermissive
)

// Slot names one of a pod's listeners.
type Slot uint32

// The slots, for IPv4 and IPv6 each.
const (
	OutboundV4 = Slot(gateSlotSLOT_OUTBOUND4)
	OutboundV6 = Slot(gateSlotSLOT_OUTBOUND6)
	InboundV4  = Slot(gateSlotSLOT_INBOUND4)
	InboundV6  = Slot(gateSlotSLOT_INBOUND6)
	TunnelV4   = Slot(gateSlotSLOT_TUNNEL4)
	TunnelV6   = Slot(gateSlotSLOT_TUNNEL6)

	// DNSDatagramV4 and DNSDatagramV6 are UDP sockets, the others listeners:
	// they get what the pod sends to port 53 while PodConfig.CaptureDNS is set.
	DNSDatagramV4 = firstDNSSlot + Slot(gateDnsSlotDNS_DATAGRAM4)
	DNSDatagramV6 = firstDNSSlot + Slot(gateDnsSlotDNS_DATAGRAM6)
	DNSStreamV4   = firstDNSSlot + Slot(gateDnsSlotDNS_STREAM4)
	DNSStreamV6   = firstDNSSlot + Slot(gateDnsSlotDNS_STREAM6)

	firstDNSSlot = Slot(gateSlotSLOTS)
)

// place is the map that has the slot's socket, and where in it; "" for no slot.
func (s Slot) place() (table string, index uint32) {
	switch {
	case s < firstDNSSlot:
		return redirectMapListeners, uint32(s)
	case s < firstDNSSlot+Slot(gateDnsSlotDNS_SLOTS):
		return redirectMapNames, uint32(s - firstDNSSlot)
	}
	return "", 0
}

// class is what the slot's accepted sockets are for.
func (s Slot) class() Class {
	switch s {
	case InboundV4, InboundV6:
		return ClassInbound
	case TunnelV4, TunnelV6:
		return ClassTunnel
	default:
		return ClassLocal
	}
}

// Class is what a stamped socket is for. A socket made in the agent's cgroup
// is ClassAgent until Pod.Stamp says otherwise.
type Class uint32

// The classes.
const (
	// ClassAgent may dial; the gate counts it as plaintext.
	ClassAgent = Class(gateStampClassCLASS_AGENT)
	// ClassTunnel carries mutual TLS, dialled or accepted.
	ClassTunnel = Class(gateStampClassCLASS_TUNNEL)
	// ClassPlaintext dials plaintext that policy allows out.
	ClassPlaintext = Class(gateStampClassCLASS_PLAINTEXT)
	// ClassLocal stays inside the pod; the gate drops it.
	ClassLocal = Class(gateStampClassCLASS_LOCAL)
	// ClassInbound was accepted by the inbound plaintext listener: it answers
	// connections that the gate admitted, and opens none.
	ClassInbound = Class(gateStampClassCLASS_INBOUND)
)

// Direction is seen from the pod.
type Direction uint8

// The directions.
const (
	Outbound = Direction(gateDirectionOUTBOUND)
	Inbound  = Direction(gateDirectionINBOUND)
)

// String returns "outbound" or "inbound".
func (d Direction) String() string {
	if d == Outbound {
		return "outbound"
	}
	return "inbound"
}

// Hook names one of the gate's places.
type Hook uint32

// The hooks: two on the host side of the veth, two on the pod's eth0.
const (
	HostOutbound = Hook(gateHookHOOK_HOST_OUTBOUND)
	HostInbound  = Hook(gateHookHOOK_HOST_INBOUND)
	PodOutbound  = Hook(gateHookHOOK_POD_OUTBOUND)
	PodInbound   = Hook(gateHookHOOK_POD_INBOUND)
)

// FlowKind is what the gate passed a packet as.
type FlowKind uint8

// The kinds.
const (
	FlowTunnel        = FlowKind(gateFlowKindFLOW_TUNNEL)
	FlowEgress        = FlowKind(gateFlowKindFLOW_EGRESS)        // plaintext out, dialled by the agent
	FlowProbe         = FlowKind(gateFlowKindFLOW_PROBE)         // kubelet to a declared port
	FlowPermissive    = FlowKind(gateFlowKindFLOW_PERMISSIVE)    // plaintext in, the port is PERMISSIVE
	FlowGrandfathered = FlowKind(gateFlowKindFLOW_GRANDFATHERED) // open before its pod was enrolled
	FlowDatagram      = FlowKind(gateFlowKindFLOW_DATAGRAM)      // UDP: DNS, and what SetDatagrams or the pod's configuration lets pass
	FlowControl       = FlowKind(gateFlowKindFLOW_CONTROL)       // ARP, neighbour discovery, ICMP
)

// String returns the kind in lower case.
func (k FlowKind) String() string {
	names := [...]string{"none", "tunnel", "egress", "probe", "permissive", "grandfathered", "datagram", "control"}
	if int(k) >= len(names) {
		return fmt.Sprintf("FlowKind(%d)", uint8(k))
	}
	return names[k]
}

// DropReason says why the gate dropped a packet. Its words are those of
// mesh.Reason, its numbers those of c/reasons.h.
type DropReason uint8

// The reasons.
const (
	DropUnstamped        = DropReason(gateDropReasonDROP_UNSTAMPED)
	DropForgedSource     = DropReason(gateDropReasonDROP_FORGED_SOURCE)
	DropNoFlow           = DropReason(gateDropReasonDROP_NO_FLOW)
	DropPlaintextInbound = DropReason(gateDropReasonDROP_PLAINTEXT_INBOUND)
	DropPassthruReuse    = DropReason(gateDropReasonDROP_PASSTHRU_REUSE)
	DropProtocol         = DropReason(gateDropReasonDROP_PROTOCOL)
	DropFragment         = DropReason(gateDropReasonDROP_FRAGMENT)
	DropIPOptions        = DropReason(gateDropReasonDROP_IP_OPTIONS)
	DropExtensionHeader  = DropReason(gateDropReasonDROP_EXTENSION_HEADER)
	DropMalformed        = DropReason(gateDropReasonDROP_MALFORMED)
	DropUDP              = DropReason(gateDropReasonDROP_UDP)
	DropICMP             = DropReason(gateDropReasonDROP_ICMP)
	DropBudget           = DropReason(gateDropReasonDROP_BUDGET)
	DropSynPayload       = DropReason(gateDropReasonDROP_SYN_PAYLOAD)

	dropReasons = int(gateDropReasonDROP_REASONS)

	// RefusedNoEndpoint is not of the gate, and no Counters have it: the redirect
	// refused a connection to a service in Node.SetVacant's list.
	RefusedNoEndpoint = DropReason(gateDropReasonREFUSED_NO_ENDPOINT)
)

// String returns the word of the mesh.Reason that the drop reason is a twin of.
func (r DropReason) String() string {
	names := [dropReasons]string{
		DropUnstamped:        "KernelUnstamped",
		DropForgedSource:     "KernelForgedSource",
		DropNoFlow:           "KernelNoFlow",
		DropPlaintextInbound: "KernelPlaintextInbound",
		DropPassthruReuse:    "KernelPassthruReuse",
		DropProtocol:         "KernelProtocol",
		DropFragment:         "KernelFragment",
		DropIPOptions:        "KernelIPOptions",
		DropExtensionHeader:  "KernelExtensionHeader",
		DropMalformed:        "KernelMalformed",
		DropUDP:              "KernelUDP",
		DropICMP:             "KernelICMP",
		DropBudget:           "KernelBudget",
		DropSynPayload:       "KernelSynPayload",
	}
	if r == RefusedNoEndpoint {
		return "NoEndpoint"
	}
	if int(r) >= dropReasons || names[r] == "" {
		return fmt.Sprintf("DropReason(%d)", uint8(r))
	}
	return names[r]
}

// DropReasons returns every reason of the gate's, in order of declaration.
func DropReasons() []DropReason {
	all := make([]DropReason, 0, dropReasons-1)
	for r := 1; r < dropReasons; r++ {
		all = append(all, DropReason(r))
	}
	return all
}

// Drop is one packet that the gate dropped, or one connection that the redirect refused.
type Drop struct {
	Time        time.Time // to the kernel's tick, some 4 ms
	Pod         uint32    // PodConfig.ID
	Reason      DropReason
	Direction   Direction
	Twin        bool // dropped at the pod's eth0 rather than outside
	Source      netip.AddrPort
	Destination netip.AddrPort
	Protocol    uint8 // IP protocol number; 0 when it is not IP or could not be read
	TCPFlags    uint8 // the low six flags, as in the header
	Length      int   // bytes of the IP packet
}

// FlowEntry is one TCP connection as the gate knows it.
type FlowEntry struct {
	Local, Remote     netip.AddrPort // the pod's end, the other end
	Kind              FlowKind
	LastSeen          time.Duration // since the last packet
	Remaining         time.Duration // grandfathered: until the gate ends it; else 0
	BytesOut, BytesIn uint64        // of IP packets
	Closed            bool          // FINs both ways, or a reset
	// Opened is by whom a grandfathered one was, as far as is known: by the other end
	// where a socket of the pod listened at its port when it was found.
	Opened Direction
}

// Count counts packets, and their bytes from the IP header on.
type Count struct{ Packets, Bytes uint64 }

// Traffic is a Count per direction.
type Traffic struct{ Out, In Count }

// Counters is what a pod's gate counted since the pod was enrolled; agents'
// restarts do not reset it.
type Counters struct {
	Tunnel        Traffic // mutual TLS
	Egress        Traffic // plaintext that the agent sent for the pod
	Probe         Traffic
	Permissive    Traffic
	Grandfathered Traffic
	Datagram      Traffic
	Control       Traffic
	Dropped       map[DropReason]Traffic // only reasons that happened
	Seen          map[Hook]uint64        // packets that a hook saw, whatever became of them
	LostDrops     uint64                 // drops without a record: rate bound, or the ring was full
}

// Peer is an address that plaintext was exchanged with.
type Peer struct {
	Kind      FlowKind
	Direction Direction  // of the packets counted in this row
	Remote    netip.Addr // the other end
	Port      uint16     // the service's: of the pod's end for probes, permissive flows and datagrams that the other end began, else of the other end
	Count     Count
	LastSeen  time.Duration // since the last packet
}

// DropPeer is an address whose packets, or packets to which, were dropped.
type DropPeer struct {
	Reason    DropReason
	Direction Direction
	Remote    netip.Addr
	Port      uint16 // destination port
	Protocol  uint8  // IP protocol number
	Count     Count
	LastSeen  time.Duration // since the last packet
}

func toAddress(a netip.Addr) gateAddress {
	var out gateAddress
	b := a.As16()
	for i := range out.Word {
		out.Word[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

func fromAddress(a gateAddress) netip.Addr {
	var b [16]byte
	for i, w := range a.Word {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

func toTuple(local, remote netip.AddrPort) gateTuple {
	return gateTuple{
		Local: toAddress(local.Addr()), LocalPort: local.Port(),
		Remote: toAddress(remote.Addr()), RemotePort: remote.Port(),
	}
}

// asBytes is a key or value of a map as the kernel sees it: what is given to a
// map otherwise is encoded field by field. T has neither pointers nor padding.
func asBytes[T gateTuple | gateService | gateDatagramRule | gateBlock](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
