// Package decode makes objects of the bodies of resources, which anybody may have
// written. Enum values that this program does not know are refused, and so are
// fields of policies and settings: ignoring them could admit more than was meant.
// All of it is pure.
package decode

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery/resources/field"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// Settings decodes the settings of a mesh.
func Settings(body []byte) (*mesh.Settings, error) {
	m := &meshpb.Settings{}
	if err := field.UnmarshalKnown(body, m); err != nil {
		return nil, err
	}
	td, err := spiffeid.TrustDomainFromString(m.GetTrustDomain())
	if err != nil {
		return nil, fmt.Errorf("trust domain: %w", err)
	}
	s := &mesh.Settings{TrustDomain: td}
	if s.ClusterRanges, err = field.Blocks(m.GetClusterRanges()); err != nil {
		return nil, fmt.Errorf("cluster ranges: %w", err)
	}
	if s.Egress, err = field.Egress(m.GetEgress()); err != nil {
		return nil, err
	}
	for _, e := range m.GetEgressNamespaces() {
		mode, err := field.Egress(e.GetEgress())
		if err != nil {
			return nil, fmt.Errorf("namespace %s: %w", e.GetNamespace(), err)
		}
		if s.EgressNamespaces == nil {
			s.EgressNamespaces = map[string]mesh.EgressMode{}
		}
		if _, twice := s.EgressNamespaces[e.GetNamespace()]; twice {
			return nil, fmt.Errorf("egress of namespace %s: given twice", e.GetNamespace())
		}
		s.EgressNamespaces[e.GetNamespace()] = mode
	}
	if err := udpEgress(s, m.GetUdpEgress()); err != nil {
		return nil, err
	}
	for _, text := range m.GetRevokedIdentities() {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return nil, fmt.Errorf("revoked identity: %w", err)
		}
		s.RevokedIdentities = append(s.RevokedIdentities, id)
	}
	for _, name := range m.GetFederatedDomains() {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("federated domain: %w", err)
		}
		s.Federation = append(s.Federation, mesh.FederatedDomain{TrustDomain: td})
	}
	for _, w := range m.GetFederatedWorkloads() {
		if err := federatedWorkload(s, w); err != nil {
			return nil, fmt.Errorf("federated workload %q: %w", w.GetIdentity(), err)
		}
	}
	return s, nil
}

func udpEgress(s *mesh.Settings, all []*meshpb.UDPEgress) error {
	for _, m := range all {
		mode, err := field.Egress(m.GetEgress())
		e := mesh.UDPEgress{Allow: mode == mesh.EgressAllow}
		if err == nil {
			e.Ports, err = field.Ports(m.GetPorts())
		}
		if err == nil {
			err = datagram.CheckEgress(e)
		}
		if _, twice := s.UDPEgress[m.GetNamespace()]; twice {
			err = errors.New("given twice")
		}
		if err != nil {
			return fmt.Errorf("UDP egress of namespace %q: %w", m.GetNamespace(), err)
		}
		if s.UDPEgress == nil {
			s.UDPEgress = map[string]mesh.UDPEgress{}
		}
		s.UDPEgress[m.GetNamespace()] = e
	}
	return nil
}

func federatedWorkload(s *mesh.Settings, w *meshpb.FederatedWorkload) error {
	id, err := spiffeid.FromString(w.GetIdentity())
	if err != nil {
		return err
	}
	addresses, err := field.Addresses(w.GetAddresses())
	if err != nil {
		return err
	}
	i := slices.IndexFunc(s.Federation, func(d mesh.FederatedDomain) bool { return id.MemberOf(d.TrustDomain) })
	if i < 0 {
		return errors.New("its trust domain is none of the federated domains")
	}
	s.Federation[i].Workloads = append(s.Federation[i].Workloads, mesh.FederatedWorkload{Identity: id, Addresses: addresses})
	return nil
}

// Workload decodes a workload.
func Workload(body []byte) (*mesh.Workload, error) {
	m := &meshpb.Workload{}
	if err := field.Unmarshal(body, m); err != nil {
		return nil, err
	}
	w := &mesh.Workload{
		Key:            field.Key(m.GetKey()),
		ServiceAccount: m.GetServiceAccount(),
		Node:           m.GetNode(),
		Enrolled:       m.GetEnrolled(),
		Ready:          m.GetReady(),
		Leaving:        m.GetLeaving(),
		NetNS:          m.GetNetworkNamespace(),
		UID:            m.GetUid(),
		Zone:           m.GetZone(),
		Gated:          m.GetGated(),
	}
	// A mode that this program does not know is what it was started with.
	if dns := mesh.DNSMode(m.GetDns()); m.GetDns() >= 0 && dns <= mesh.DNSDirect {
		w.DNS = dns
	}
	var err error
	if w.Identity, err = spiffeid.FromString(m.GetIdentity()); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if w.Addresses, err = field.Addresses(m.GetAddresses()); err != nil {
		return nil, err
	}
	if w.Labels, err = field.Labels(m.GetLabels()); err != nil {
		return nil, err
	}
	if w.Mode, err = field.Mode(m.GetMode()); err != nil {
		return nil, err
	}
	if w.PortModes, err = field.PortModes(m.GetPortModes()); err != nil {
		return nil, err
	}
	if w.ProbePorts, err = field.Ports(m.GetProbePorts()); err != nil {
		return nil, fmt.Errorf("probe ports: %w", err)
	}
	w.Datagrams, err = datagrams(m.GetDatagrams())
	return w, err
}

// datagrams decodes the policies about UDP of a workload. Of a policy that says what this
// program does not know, all that stays is closed: nothing is let in by default.
func datagrams(all []*meshpb.Policy) (out []*mesh.Policy, err error) {
	for _, m := range all {
		if field.CheckKnown(m) != nil {
			return nil, nil
		}
		p, err := policyOf(m)
		if err != nil {
			return nil, fmt.Errorf("policy %v about UDP: %w", field.Key(m.GetKey()), err)
		}
		out = append(out, p)
	}
	return out, nil
}

// Service decodes a service.
func Service(body []byte) (*mesh.Service, error) {
	m := &meshpb.Service{}
	if err := field.Unmarshal(body, m); err != nil {
		return nil, err
	}
	s := &mesh.Service{Key: field.Key(m.GetKey()), Sticky: m.GetSticky(), StickyFor: time.Duration(m.GetStickySeconds()) * time.Second, Unready: m.GetUnready(),
		Waypoint: field.Key(m.GetWaypoint()), Bypass: m.GetWaypointBypass()}
	// A nearness that this program does not know is no preference.
	if near := mesh.Nearness(m.GetPrefer()); m.GetPrefer() >= 0 && near <= mesh.OnlyNode {
		s.Prefer = near
	}
	var err error
	if s.Addresses, err = field.Addresses(m.GetAddresses()); err != nil {
		return nil, err
	}
	if s.External, err = field.Addresses(m.GetExternal()); err != nil {
		return nil, fmt.Errorf("external: %w", err)
	}
	for _, p := range m.GetPorts() {
		port, err := field.Port(p.GetPort())
		if err != nil {
			return nil, err
		}
		target, err := field.Port(p.GetTargetPort())
		if err != nil {
			return nil, fmt.Errorf("target: %w", err)
		}
		decoded := mesh.ServicePort{Name: p.GetName(), Port: port, TargetPort: target, Only: field.Keys(p.GetOnly()), AppProtocol: p.GetAppProtocol()}
		if decoded.Elsewhere, err = elsewhereOf(p.GetElsewhere()); err != nil {
			return nil, fmt.Errorf("port %d: %w", port, err)
		}
		s.Ports = append(s.Ports, decoded)
	}
	for _, p := range m.GetUdpPorts() {
		var decoded mesh.ServicePort
		var target error
		decoded.Port, err = field.Port(p.GetPort())
		if decoded.TargetPort, target = field.Port(p.GetTargetPort()); err != nil || target != nil {
			return nil, fmt.Errorf("port over UDP: %w", cmp.Or(err, target))
		}
		s.UDPPorts = append(s.UDPPorts, decoded)
	}
	s.Endpoints = field.Keys(m.GetEndpoints())
	return s, nil
}

func elsewhereOf(all []*meshpb.PortElsewhere) (out []mesh.PortElsewhere, err error) {
	for _, m := range all {
		e := mesh.PortElsewhere{}
		if e.TargetPort, err = field.Port(m.GetTargetPort()); err != nil {
			return nil, fmt.Errorf("elsewhere: %w", err)
		}
		e.Endpoints = mesh.SortedKeys(field.Keys(m.GetEndpoints()))
		out = append(out, e)
	}
	return out, nil
}

// Policy decodes a policy.
func Policy(body []byte) (*mesh.Policy, error) {
	m := &meshpb.Policy{}
	if err := field.UnmarshalKnown(body, m); err != nil {
		return nil, err
	}
	return policyOf(m)
}

func policyOf(m *meshpb.Policy) (*mesh.Policy, error) {
	p := &mesh.Policy{Key: field.Key(m.GetKey())}
	switch m.GetAction() {
	case meshpb.Action_ACTION_ALLOW:
		p.Action = mesh.ActionAllow
	case meshpb.Action_ACTION_DENY:
		p.Action = mesh.ActionDeny
	case meshpb.Action_ACTION_AUDIT:
		p.Action = mesh.ActionAudit
	default:
		return nil, fmt.Errorf("action %v is unknown", m.GetAction())
	}
	var err error
	if p.Selector, err = field.Labels(m.GetSelector()); err != nil {
		return nil, fmt.Errorf("selector: %w", err)
	}
	for i, r := range m.GetRules() {
		rule, err := ruleOf(r)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p, nil
}

func ruleOf(m *meshpb.Rule) (mesh.Rule, error) {
	var rule mesh.Rule
	for _, from := range m.GetFrom() {
		source := mesh.Source{
			Identities:    field.Patterns(from.GetIdentities()),
			NotIdentities: field.Patterns(from.GetNotIdentities()),
			Namespaces:    from.GetNamespaces(),
			NotNamespaces: from.GetNotNamespaces(),
		}
		var err error
		if source.IPBlocks, err = field.Blocks(from.GetIpBlocks()); err != nil {
			return rule, err
		}
		if source.NotIPBlocks, err = field.Blocks(from.GetNotIpBlocks()); err != nil {
			return rule, err
		}
		rule.From = append(rule.From, source)
	}
	for _, to := range m.GetTo() {
		ports, err := field.Ports(to.GetPorts())
		if err != nil {
			return rule, err
		}
		notPorts, err := field.Ports(to.GetNotPorts())
		if err != nil {
			return rule, err
		}
		rule.To = append(rule.To, mesh.Destination{Ports: ports, NotPorts: notPorts, Requests: field.Requests(to.GetRequests())})
	}
	return rule, nil
}

// NetworkPolicy decodes a NetworkPolicy.
func NetworkPolicy(body []byte) (*netpolicy.Policy, error) {
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

// AddressSet decodes a shard of a set of addresses.
func AddressSet(body []byte) (*netpolicy.Shard, error) {
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
