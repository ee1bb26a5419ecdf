package flow

import (
	"crypto/tls"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ToProto returns the record as the admin socket sends it.
func (r *Record) ToProto() *meshpb.Flow {
	p := &meshpb.Flow{
		Id:            r.ID,
		StartNs:       meshpb.Nanos(r.Start),
		DurationNs:    int64(r.Duration),
		Direction:     r.Direction.String(),
		Source:        r.Source.toProto(),
		Destination:   r.Destination.toProto(),
		Service:       KeyWord(r.Service),
		Node:          r.Node,
		Verdict:       r.Verdict.String(),
		Reason:        r.Reason.String(),
		Policy:        KeyWord(r.Policy),
		BytesSent:     r.BytesSent,
		BytesReceived: r.BytesReceived,
		HandshakeNs:   int64(r.Timing.Handshake),
		ConnectNs:     int64(r.Timing.Connect),
		RttNs:         int64(r.Timing.RTT),
		Retransmits:   r.Retransmits,
		Transport:     r.Transport.String(),
		Packets:       r.Packets,
		Protocol:      uint32(r.Protocol),
		Detail:        r.Detail,
		Waypoint:      KeyWord(r.Waypoint),
		Audited:       r.Audited.List(),
	}
	if r.Secured != (Secured{}) {
		by := r.Secured.Facts()
		p.Secured = &meshpb.FlowSecured{KeyExchange: by.KeyExchange(), Group: uint32(by.Group), PeerSerial: by.Serial, PeerNotAfterNs: meshpb.Nanos(by.Expires())}
	}
	if r.Policy != (mesh.Key{}) && r.Rule >= 0 && r.Rule <= math.MaxInt32 {
		rule := int32(r.Rule)
		p.Rule = &rule
	}
	return p
}

func (e *Endpoint) toProto() *meshpb.FlowEndpoint {
	p := &meshpb.FlowEndpoint{Workload: KeyWord(e.Workload)}
	if !e.Identity.IsZero() {
		p.Identity = e.Identity.String()
	}
	if e.Addr.IsValid() {
		p.Address = e.Addr.String()
	}
	return p
}

// FromProto is the inverse of Record.ToProto. It refuses what this version does
// not know; a program that only shows records need not call it.
func FromProto(p *meshpb.Flow) (r Record, err error) {
	r = Record{
		ID: p.GetId(), Start: timeOf(p.GetStartNs()), Duration: time.Duration(p.GetDurationNs()),
		Service: wordKey(p.GetService()), Node: p.GetNode(), Policy: wordKey(p.GetPolicy()), Rule: -1, Audited: NamesIn(p.GetAudited()),
		BytesSent: p.GetBytesSent(), BytesReceived: p.GetBytesReceived(),
		Timing: Timing{
			Handshake: time.Duration(p.GetHandshakeNs()), Connect: time.Duration(p.GetConnectNs()), RTT: time.Duration(p.GetRttNs()),
		},
		Wire: Wire{Retransmits: p.GetRetransmits(), Waypoint: wordKey(p.GetWaypoint())}, Packets: p.GetPackets(), Protocol: uint8(p.GetProtocol()), Detail: p.GetDetail(),
	}
	if p.Rule != nil {
		r.Rule = int(p.GetRule())
	}
	if by := p.GetSecured(); by != nil {
		r.Secured = secured.Facts{Group: tls.CurveID(by.GetGroup()), Serial: by.GetPeerSerial(), NotAfter: by.GetPeerNotAfterNs() / int64(time.Second)}.By()
	}
	if r.Direction, err = ParseDirection(p.GetDirection()); err != nil {
		return r, err
	}
	if r.Transport, err = ParseTransport(p.GetTransport()); err != nil {
		return r, err
	}
	if r.Verdict, err = ParseVerdict(p.GetVerdict()); err != nil {
		return r, err
	}
	if r.Reason, err = mesh.ParseReason(p.GetReason()); err != nil {
		return r, err
	}
	if r.Source, err = endpointOf(p.GetSource()); err != nil {
		return r, fmt.Errorf("source: %w", err)
	}
	if r.Destination, err = endpointOf(p.GetDestination()); err != nil {
		return r, fmt.Errorf("destination: %w", err)
	}
	return r, nil
}

func endpointOf(p *meshpb.FlowEndpoint) (e Endpoint, err error) {
	e.Workload = wordKey(p.GetWorkload())
	if id := p.GetIdentity(); id != "" {
		if e.Identity, err = spiffeid.FromString(id); err != nil {
			return e, err
		}
	}
	if addr := p.GetAddress(); addr != "" {
		if e.Addr, err = netip.ParseAddrPort(addr); err != nil {
			return e, err
		}
	}
	return e, nil
}

// ToProto returns the filter as it goes over the admin socket.
func (f *Filter) ToProto() *meshpb.FlowFilter {
	p := &meshpb.FlowFilter{Namespaces: f.Namespaces, Workloads: keyWords(f.Workloads), Identities: f.Identities, SinceNs: meshpb.Nanos(f.Since)}
	for _, port := range f.Ports {
		p.Ports = append(p.Ports, uint32(port))
	}
	p.Peers = words(f.Peers)
	p.Verdicts = words(f.Verdicts)
	p.Reasons = words(f.Reasons)
	p.Directions = words(f.Directions)
	p.Transports = words(f.Transports)
	p.Methods, p.Statuses, p.Routes = f.Methods, words(f.Statuses), keyWords(f.Routes)
	return p
}

func keyWords(keys []mesh.Key) (out []string) {
	for _, k := range keys {
		if k.Namespace == "" {
			out = append(out, k.Name)
		} else {
			out = append(out, k.String())
		}
	}
	return out
}

func words[T fmt.Stringer](list []T) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// FilterFromProto is the inverse of Filter.ToProto. It refuses unknown words
// and lists of more than 64 values.
func FilterFromProto(p *meshpb.FlowFilter) (Filter, error) {
	f := Filter{Since: timeOf(p.GetSinceNs())}
	for key, values := range map[string][]string{
		"namespace": p.GetNamespaces(), "workload": p.GetWorkloads(), "identity": p.GetIdentities(), "peer": p.GetPeers(),
		"verdict": p.GetVerdicts(), "reason": p.GetReasons(), "direction": p.GetDirections(), "transport": p.GetTransports(),
		"method": p.GetMethods(), "status": p.GetStatuses(), "route": p.GetRoutes(),
	} {
		if len(values) > maxFilterValues {
			return Filter{}, fmt.Errorf("filter %s: %d values, more than %d", key, len(values), maxFilterValues)
		}
		for _, value := range values {
			if err := f.add(key, value, time.Time{}); err != nil {
				return Filter{}, fmt.Errorf("filter %s: %w", key, err)
			}
		}
	}
	if len(p.GetPorts()) > maxFilterValues {
		return Filter{}, fmt.Errorf("filter port: %d values, more than %d", len(p.GetPorts()), maxFilterValues)
	}
	for _, port := range p.GetPorts() {
		if port > math.MaxUint16 {
			return Filter{}, fmt.Errorf("filter port: %d is not a port", port)
		}
		f.Ports = append(f.Ports, uint16(port))
	}
	return f, nil
}

// KeyWord is "namespace/name", or "" for the zero Key.
func KeyWord(k mesh.Key) string {
	if k == (mesh.Key{}) {
		return ""
	}
	return k.String()
}

func wordKey(word string) mesh.Key {
	if word == "" {
		return mesh.Key{}
	}
	return parseWorkload(word)
}

func timeOf(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}
