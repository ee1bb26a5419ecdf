package resources

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

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

func decodeNetworkPolicy(body []byte) (*netpolicy.Policy, error) {
	m := &meshpb.NetworkPolicy{}
	if err := field.UnmarshalKnown(body, m); err != nil {
		return nil, err
	}
	p := &netpolicy.Policy{Name: netpolicy.Name(field.Key(m.GetKey()))}
	for _, r := range m.GetSelector() {
		op := r.GetOperator() - meshpb.LabelOperator_LABEL_OPERATOR_IN
		if op < 0 || op > meshpb.LabelOperator(netpolicy.DoesNotExist) {
			return nil, fmt.Errorf("operator %v is unknown", r.GetOperator())
		}
		p.Selector = append(p.Selector, netpolicy.Requirement{Key: r.GetKey(), Operator: netpolicy.Operator(op), Values: r.GetValues()})
	}
	var err error
	if p.Ingress, err = directionOf(m.GetIngress()); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	if p.Egress, err = directionOf(m.GetEgress()); err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	return p, p.Validate()
}

func directionOf(m *meshpb.NetworkDirection) (*netpolicy.Direction, error) {
	if m == nil {
		return nil, nil
	}
	d := &netpolicy.Direction{}
	for i, r := range m.GetRules() {
		rule, err := networkRuleOf(r)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		d.Rules = append(d.Rules, rule)
	}
	return d, nil
}

func networkRuleOf(m *meshpb.NetworkRule) (netpolicy.Rule, error) {
	var rule netpolicy.Rule
	for _, p := range m.GetPeers() {
		peer := netpolicy.Peer{Set: p.GetSet()}
		if peer.Set == "" {
			block, err := field.Blocks([]*meshpb.AddressBlock{p.GetBlock()})
			if err != nil {
				return rule, err
			}
			peer.Block = block[0]
			if peer.Except, err = field.Blocks(p.GetExcept()); err != nil {
				return rule, err
			}
		}
		rule.Peers = append(rule.Peers, peer)
	}
	for _, p := range m.GetPorts() {
		port := netpolicy.Port{Set: p.GetSet()}
		if port.Set == "" {
			var err error
			if port.First, err = field.Port(p.GetFirst()); err != nil {
				return rule, err
			}
			if port.Last, err = field.Port(p.GetLast()); err != nil {
				return rule, err
			}
		}
		rule.Ports = append(rule.Ports, port)
	}
	return rule, nil
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

func decodeAddressSet(body []byte) (*netpolicy.Shard, error) {
	m := &meshpb.AddressSet{}
	if err := field.UnmarshalKnown(body, m); err != nil {
		return nil, err
	}
	s := &netpolicy.Shard{Set: m.GetSet(), Index: m.GetIndex(), Count: m.GetCount()}
	size := 0
	for _, g := range m.GetGroups() {
		if len(g.GetIpv4())%4 != 0 || len(g.GetIpv6())%16 != 0 || g.GetPort() > 65535 {
			return nil, fmt.Errorf("group of port %d: addresses are cut off, or the port is none", g.GetPort())
		}
		size += len(g.GetIpv4())/4 + len(g.GetIpv6())/16
	}
	s.Members = make([]netpolicy.Member, 0, size)
	for _, g := range m.GetGroups() {
		for raw := range slices.Chunk(g.GetIpv4(), 4) {
			s.Members = append(s.Members, netpolicy.Member{Addr: netip.AddrFrom4([4]byte(raw)), Port: uint16(g.GetPort())})
		}
		for raw := range slices.Chunk(g.GetIpv6(), 16) {
			s.Members = append(s.Members, netpolicy.Member{Addr: netip.AddrFrom16([16]byte(raw)), Port: uint16(g.GetPort())})
		}
	}
	slices.SortFunc(s.Members, func(a, b netpolicy.Member) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
	})
	return s, s.Validate()
}
