package resources

import (
	"fmt"
	"net/netip"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery/resources/field"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// EncodeNetworkPolicy encodes a NetworkPolicy.
func EncodeNetworkPolicy(p *netpolicy.Policy) (*Resource, error) {
	m := &meshpb.NetworkPolicy{Key: field.FromKey(mesh.Key(p.Name)), Ingress: directionToProto(p.Ingress), Egress: directionToProto(p.Egress)}
	for _, r := range p.Selector {
		m.Selector = append(m.Selector, &meshpb.LabelRequirement{Key: r.Key, Operator: meshpb.LabelOperator(r.Operator) + meshpb.LabelOperator_LABEL_OPERATOR_IN, Values: r.Values})
	}
	return encodeKeyed(KindNetworkPolicy, mesh.Key(p.Name), m)
}

func directionToProto(d *netpolicy.Direction) *meshpb.NetworkDirection {
	if d == nil {
		return nil
	}
	m := &meshpb.NetworkDirection{}
	for _, rule := range d.Rules {
		r := &meshpb.NetworkRule{}
		for _, p := range rule.Peers {
			peer := &meshpb.NetworkPeer{Set: p.Set}
			if p.Set == "" {
				peer.Block, peer.Except = field.FromBlocks([]netip.Prefix{p.Block})[0], field.FromBlocks(p.Except)
			}
			r.Peers = append(r.Peers, peer)
		}
		for _, p := range rule.Ports {
			r.Ports = append(r.Ports, &meshpb.NetworkPort{Set: p.Set, First: uint32(p.First), Last: uint32(p.Last)})
		}
		m.Rules = append(m.Rules, r)
	}
	return m
}

func shardName(s *netpolicy.Shard) string { return ShardKey(s).String() }

// ShardKey returns what a shard is kept under; its text is the resource's name.
func ShardKey(s *netpolicy.Shard) mesh.Key {
	return mesh.Key{Namespace: s.Set, Name: fmt.Sprintf("%03x", s.Index)} // so that their order is that of shards
}

// EncodeAddressSet encodes a shard of a set of addresses.
func EncodeAddressSet(s *netpolicy.Shard) (*Resource, error) {
	m := &meshpb.AddressSet{Set: s.Set, Index: s.Index, Count: s.Count}
	groups := map[uint16]*meshpb.AddressGroup{}
	for _, member := range s.Members { // sorted, IPv4 first: so are the bytes
		g := groups[member.Port]
		if g == nil {
			g = &meshpb.AddressGroup{Port: uint32(member.Port)}
			groups[member.Port] = g
		}
		if member.Addr.Is4() {
			g.Ipv4 = append(g.Ipv4, member.Addr.AsSlice()...)
		} else {
			g.Ipv6 = append(g.Ipv6, member.Addr.AsSlice()...)
		}
	}
	for _, port := range field.SortedKeys(groups) {
		m.Groups = append(m.Groups, groups[port])
	}
	return encodeKeyed(KindAddressSet, ShardKey(s), m)
}
