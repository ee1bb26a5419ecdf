package resources

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery/resources/field"
	"github.com/heddle-mesh/heddle/internal/discovery/resources/routing"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// encode marshals a message to the one sequence of bytes that every replica
// makes of it, and checks what a receiver would refuse.
func encode(k Kind, name string, m proto.Message) (*Resource, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", k, name, err)
	}
	r := newResource(k, name, body)
	return r, checkSize(r)
}

func encodeKeyed(k Kind, key mesh.Key, m proto.Message) (*Resource, error) {
	if strings.Contains(key.Namespace, "/") || strings.Contains(key.Name, "/") {
		return nil, fmt.Errorf("encode %s %q of namespace %q: a name has no slash", k, key.Name, key.Namespace)
	}
	return encode(k, key.String(), m)
}

// EncodeSettings encodes the one Settings resource.
func EncodeSettings(s *mesh.Settings) (*Resource, error) {
	m := &meshpb.Settings{
		TrustDomain:   s.TrustDomain.Name(),
		ClusterRanges: field.FromBlocks(s.ClusterRanges),
		Egress:        field.FromEgress(s.Egress),
	}
	for _, ns := range field.SortedKeys(s.EgressNamespaces) {
		m.EgressNamespaces = append(m.EgressNamespaces, &meshpb.NamespaceEgress{Namespace: ns, Egress: field.FromEgress(s.EgressNamespaces[ns])})
	}
	for _, ns := range field.SortedKeys(s.UDPEgress) {
		m.UdpEgress = append(m.UdpEgress, field.FromUDPEgress(ns, s.UDPEgress[ns]))
	}
	for _, id := range s.RevokedIdentities {
		m.RevokedIdentities = append(m.RevokedIdentities, id.String())
	}
	for i := range s.Federation {
		m.FederatedDomains = append(m.FederatedDomains, s.Federation[i].TrustDomain.Name())
		for _, w := range s.Federation[i].Workloads {
			m.FederatedWorkloads = append(m.FederatedWorkloads, &meshpb.FederatedWorkload{Identity: w.Identity.String(), Addresses: field.FromAddresses(w.Addresses)})
		}
	}
	slices.SortFunc(m.FederatedWorkloads, func(a, b *meshpb.FederatedWorkload) int { return strings.Compare(a.GetIdentity(), b.GetIdentity()) })
	return encode(KindSettings, settingsName, m)
}

// EncodeWorkload encodes a workload as it is, its network namespace included.
func EncodeWorkload(w *mesh.Workload) (*Resource, error) {
	m := &meshpb.Workload{
		Key:              field.FromKey(w.Key),
		ServiceAccount:   w.ServiceAccount,
		Node:             w.Node,
		Identity:         w.Identity.String(),
		Addresses:        field.FromAddresses(w.Addresses),
		Labels:           field.FromLabels(w.Labels),
		Enrolled:         w.Enrolled,
		Ready:            w.Ready,
		Leaving:          w.Leaving,
		NetworkNamespace: w.NetNS,
		Mode:             field.FromMode(w.Mode),
		ProbePorts:       field.FromPorts(w.ProbePorts),
		Uid:              w.UID,
		Zone:             w.Zone,
		Dns:              meshpb.DNSMode(w.DNS),
		Gated:            w.Gated,
	}
	for _, p := range w.Datagrams {
		m.Datagrams = append(m.Datagrams, policyToProto(p))
	}
	for _, port := range field.SortedKeys(w.PortModes) {
		m.PortModes = append(m.PortModes, &meshpb.PortMode{Port: uint32(port), Mode: field.FromMode(w.PortModes[port])})
	}
	return encodeKeyed(KindWorkload, w.Key, m)
}

// EncodeService encodes a service.
func EncodeService(s *mesh.Service) (*Resource, error) {
	m := &meshpb.Service{Key: field.FromKey(s.Key), Addresses: field.FromAddresses(s.Addresses), Prefer: meshpb.Nearness(s.Prefer), Sticky: s.Sticky,
		StickySeconds: uint32(s.StickyFor / time.Second), Unready: s.Unready, External: field.FromAddresses(s.External), WaypointBypass: s.Bypass}
	if s.Waypoint != (mesh.Key{}) {
		m.Waypoint = field.FromKey(s.Waypoint)
	}
	for _, p := range s.Ports {
		port := &meshpb.ServicePort{Name: p.Name, Port: uint32(p.Port), TargetPort: uint32(p.TargetPort), Only: field.FromKeys(p.Only), AppProtocol: p.AppProtocol}
		for _, at := range p.Elsewhere {
			port.Elsewhere = append(port.Elsewhere, &meshpb.PortElsewhere{TargetPort: uint32(at.TargetPort), Endpoints: field.FromKeys(at.Endpoints)})
		}
		m.Ports = append(m.Ports, port)
	}
	for _, p := range s.UDPPorts {
		m.UdpPorts = append(m.UdpPorts, &meshpb.ServicePort{Port: uint32(p.Port), TargetPort: uint32(p.TargetPort)})
	}
	m.Endpoints = field.FromKeys(s.Endpoints)
	return encodeKeyed(KindService, s.Key, m)
}

// EncodePolicy encodes a policy.
func EncodePolicy(p *mesh.Policy) (*Resource, error) {
	return encodeKeyed(KindPolicy, p.Key, policyToProto(p))
}

func policyToProto(p *mesh.Policy) *meshpb.Policy {
	action := map[mesh.Action]meshpb.Action{
		mesh.ActionAllow: meshpb.Action_ACTION_ALLOW,
		mesh.ActionDeny:  meshpb.Action_ACTION_DENY,
		mesh.ActionAudit: meshpb.Action_ACTION_AUDIT,
	}[p.Action]
	m := &meshpb.Policy{Key: field.FromKey(p.Key), Action: action, Selector: field.FromLabels(p.Selector)}
	for _, rule := range p.Rules {
		r := &meshpb.Rule{}
		for _, from := range rule.From {
			r.From = append(r.From, &meshpb.Source{
				Identities:    field.FromPatterns(from.Identities),
				NotIdentities: field.FromPatterns(from.NotIdentities),
				Namespaces:    from.Namespaces,
				NotNamespaces: from.NotNamespaces,
				IpBlocks:      field.FromBlocks(from.IPBlocks),
				NotIpBlocks:   field.FromBlocks(from.NotIPBlocks),
			})
		}
		for _, to := range rule.To {
			r.To = append(r.To, &meshpb.Destination{Ports: field.FromPorts(to.Ports), NotPorts: field.FromPorts(to.NotPorts), Requests: field.FromRequests(to.Requests)})
		}
		m.Rules = append(m.Rules, r)
	}
	return m
}

// EncodeRoute encodes a route.
func EncodeRoute(r *route.Route) (*Resource, error) {
	return encode(KindRoute, routing.Name(r.ID), routing.Encode(r))
}

func commitToProto(c *Commit) *meshpb.Commit {
	return &meshpb.Commit{Epoch: c.Epoch, SetHash: c.Hash, Signature: c.signature, Node: c.Node, Revision: c.Revision}
}

// EncodeCommit encodes the body of a Commit resource.
func EncodeCommit(c *Commit) ([]byte, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(commitToProto(c))
	if err != nil {
		return nil, fmt.Errorf("encode commit: %w", err)
	}
	return body, nil
}
