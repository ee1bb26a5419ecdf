package resources

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
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
		ClusterRanges: blocksToProto(s.ClusterRanges),
		Egress:        egressToProto(s.Egress),
	}
	for _, ns := range sortedKeys(s.EgressNamespaces) {
		m.EgressNamespaces = append(m.EgressNamespaces, &meshpb.NamespaceEgress{Namespace: ns, Egress: egressToProto(s.EgressNamespaces[ns])})
	}
	for _, id := range s.RevokedIdentities {
		m.RevokedIdentities = append(m.RevokedIdentities, id.String())
	}
	return encode(KindSettings, settingsName, m)
}

// EncodeWorkload encodes a workload as it is, its network namespace included.
func EncodeWorkload(w *mesh.Workload) (*Resource, error) {
	m := &meshpb.Workload{
		Key:              keyToProto(w.Key),
		ServiceAccount:   w.ServiceAccount,
		Node:             w.Node,
		Identity:         w.Identity.String(),
		Addresses:        addressesToProto(w.Addresses),
		Labels:           labelsToProto(w.Labels),
		Enrolled:         w.Enrolled,
		Ready:            w.Ready,
		NetworkNamespace: w.NetNS,
		Mode:             modeToProto(w.Mode),
		ProbePorts:       portsToProto(w.ProbePorts),
		Uid:              w.UID,
		Zone:             w.Zone,
	}
	for _, port := range sortedKeys(w.PortModes) {
		m.PortModes = append(m.PortModes, &meshpb.PortMode{Port: uint32(port), Mode: modeToProto(w.PortModes[port])})
	}
	return encodeKeyed(KindWorkload, w.Key, m)
}

// EncodeService encodes a service.
func EncodeService(s *mesh.Service) (*Resource, error) {
	m := &meshpb.Service{Key: keyToProto(s.Key), Addresses: addressesToProto(s.Addresses), Prefer: meshpb.Nearness(s.Prefer), Sticky: s.Sticky}
	for _, p := range s.Ports {
		m.Ports = append(m.Ports, &meshpb.ServicePort{Name: p.Name, Port: uint32(p.Port), TargetPort: uint32(p.TargetPort)})
	}
	for _, e := range s.Endpoints {
		m.Endpoints = append(m.Endpoints, keyToProto(e))
	}
	return encodeKeyed(KindService, s.Key, m)
}

// EncodePolicy encodes a policy.
func EncodePolicy(p *mesh.Policy) (*Resource, error) {
	action := map[mesh.Action]meshpb.Action{
		mesh.ActionAllow: meshpb.Action_ACTION_ALLOW,
		mesh.ActionDeny:  meshpb.Action_ACTION_DENY,
		mesh.ActionAudit: meshpb.Action_ACTION_AUDIT,
	}[p.Action]
	m := &meshpb.Policy{Key: keyToProto(p.Key), Action: action, Selector: labelsToProto(p.Selector)}
	for _, rule := range p.Rules {
		r := &meshpb.Rule{}
		for _, from := range rule.From {
			r.From = append(r.From, &meshpb.Source{
				Identities:    patternsToProto(from.Identities),
				NotIdentities: patternsToProto(from.NotIdentities),
				Namespaces:    from.Namespaces,
				NotNamespaces: from.NotNamespaces,
				IpBlocks:      blocksToProto(from.IPBlocks),
				NotIpBlocks:   blocksToProto(from.NotIPBlocks),
			})
		}
		for _, to := range rule.To {
			r.To = append(r.To, &meshpb.Destination{Ports: portsToProto(to.Ports), NotPorts: portsToProto(to.NotPorts)})
		}
		m.Rules = append(m.Rules, r)
	}
	return encodeKeyed(KindPolicy, p.Key, m)
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

func keyToProto(k mesh.Key) *meshpb.ObjectKey {
	return &meshpb.ObjectKey{Namespace: k.Namespace, Name: k.Name}
}

func modeToProto(m mesh.Mode) meshpb.Mode {
	if m == mesh.ModePermissive {
		return meshpb.Mode_MODE_PERMISSIVE
	}
	return meshpb.Mode_MODE_STRICT
}

func egressToProto(e mesh.EgressMode) meshpb.Egress {
	if e == mesh.EgressAllow {
		return meshpb.Egress_EGRESS_ALLOW
	}
	return meshpb.Egress_EGRESS_DENY
}

func addressesToProto(addrs []netip.Addr) [][]byte {
	var all [][]byte
	for _, a := range addrs {
		all = append(all, a.AsSlice())
	}
	return all
}

func blocksToProto(blocks []netip.Prefix) []*meshpb.AddressBlock {
	var all []*meshpb.AddressBlock
	for _, b := range blocks {
		all = append(all, &meshpb.AddressBlock{Address: b.Addr().AsSlice(), Bits: uint32(b.Bits())})
	}
	return all
}

func labelsToProto(labels map[string]string) []*meshpb.Label {
	var all []*meshpb.Label
	for _, k := range sortedKeys(labels) {
		all = append(all, &meshpb.Label{Key: k, Value: labels[k]})
	}
	return all
}

func patternsToProto(patterns []mesh.IdentityPattern) []string {
	var all []string
	for _, p := range patterns {
		all = append(all, string(p))
	}
	return all
}

func portsToProto(ports []uint16) []uint32 {
	var all []uint32
	for _, p := range ports {
		all = append(all, uint32(p))
	}
	return all
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
