package resources

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// decoded is a resource with what is in it: exactly one of the pointers is set.
type decoded struct {
	*Resource
	digest   digest
	settings *mesh.Settings
	service  *mesh.Service
	workload *mesh.Workload
	policy   *mesh.Policy
	network  *netpolicy.Policy
	shard    *netpolicy.Shard
}

// decodeResource checks one resource from outside, against its name and its
// version, and decodes it. It keeps body. Enum values that this program
// does not know are refused, and so are fields of policies and settings:
// ignoring them could admit more than was meant.
func decodeResource(k Kind, name, version string, body []byte) (*decoded, error) {
	if len(name) > MaxName || len(body) > maxResource {
		return nil, fmt.Errorf("decode %s %.80s: larger than any resource", k, name)
	}
	d := &decoded{digest: digestOf(k, name, body)}
	d.Resource = &Resource{Ref: Ref{k, name, d.digest.String()}, Body: body}
	if d.Version != version {
		return nil, fmt.Errorf("decode %s %s: version %.64q is not that of the contents, %q", k, name, version, d.Version)
	}
	is, err := d.decode()
	if err != nil {
		return nil, fmt.Errorf("decode %s %s: %w", k, name, err)
	}
	if is != name {
		return nil, fmt.Errorf("decode %s %s: the contents are those of %.200s", k, name, is)
	}
	return d, nil
}

// decode fills in the contents and returns the name that they have.
func (d *decoded) decode() (name string, err error) {
	switch d.Kind {
	case KindSettings:
		d.settings, err = decodeSettings(d.Body)
		return settingsName, err
	case KindService:
		if d.service, err = decodeService(d.Body); err == nil {
			name = d.service.Key.String()
		}
	case KindWorkload:
		if d.workload, err = decodeWorkload(d.Body); err == nil {
			name = d.workload.Key.String()
		}
	case KindPolicy:
		if d.policy, err = decodePolicy(d.Body); err == nil {
			name = d.policy.Key.String()
		}
	case KindNetworkPolicy:
		if d.network, err = decodeNetworkPolicy(d.Body); err == nil {
			name = d.network.Name.String()
		}
	case KindAddressSet:
		if d.shard, err = decodeAddressSet(d.Body); err == nil {
			name = shardName(d.shard)
		}
	default:
		err = errors.New("not a kind of resource that is held")
	}
	return name, err
}

func decodeSettings(body []byte) (*mesh.Settings, error) {
	m := &meshpb.Settings{}
	if err := unmarshalKnown(body, m); err != nil {
		return nil, err
	}
	td, err := spiffeid.TrustDomainFromString(m.GetTrustDomain())
	if err != nil {
		return nil, fmt.Errorf("trust domain: %w", err)
	}
	s := &mesh.Settings{TrustDomain: td}
	if s.ClusterRanges, err = blocksOf(m.GetClusterRanges()); err != nil {
		return nil, fmt.Errorf("cluster ranges: %w", err)
	}
	if s.Egress, err = egressOf(m.GetEgress()); err != nil {
		return nil, err
	}
	for _, e := range m.GetEgressNamespaces() {
		mode, err := egressOf(e.GetEgress())
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
	for _, text := range m.GetRevokedIdentities() {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return nil, fmt.Errorf("revoked identity: %w", err)
		}
		s.RevokedIdentities = append(s.RevokedIdentities, id)
	}
	return s, nil
}

func decodeWorkload(body []byte) (*mesh.Workload, error) {
	m := &meshpb.Workload{}
	if err := unmarshal(body, m); err != nil {
		return nil, err
	}
	w := &mesh.Workload{
		Key:            keyOf(m.GetKey()),
		ServiceAccount: m.GetServiceAccount(),
		Node:           m.GetNode(),
		Enrolled:       m.GetEnrolled(),
		Ready:          m.GetReady(),
		NetNS:          m.GetNetworkNamespace(),
		UID:            m.GetUid(),
		Zone:           m.GetZone(),
	}
	var err error
	if w.Identity, err = spiffeid.FromString(m.GetIdentity()); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if w.Addresses, err = addressesOf(m.GetAddresses()); err != nil {
		return nil, err
	}
	if w.Labels, err = labelsOf(m.GetLabels()); err != nil {
		return nil, err
	}
	if w.Mode, err = modeOf(m.GetMode()); err != nil {
		return nil, err
	}
	if w.PortModes, err = portModesOf(m.GetPortModes()); err != nil {
		return nil, err
	}
	if w.ProbePorts, err = portsOf(m.GetProbePorts()); err != nil {
		return nil, fmt.Errorf("probe ports: %w", err)
	}
	return w, nil
}

func decodeService(body []byte) (*mesh.Service, error) {
	m := &meshpb.Service{}
	if err := unmarshal(body, m); err != nil {
		return nil, err
	}
	s := &mesh.Service{Key: keyOf(m.GetKey()), Sticky: m.GetSticky()}
	// A nearness that this program does not know is no preference.
	if near := mesh.Nearness(m.GetPrefer()); m.GetPrefer() >= 0 && near <= mesh.SameNode {
		s.Prefer = near
	}
	var err error
	if s.Addresses, err = addressesOf(m.GetAddresses()); err != nil {
		return nil, err
	}
	for _, p := range m.GetPorts() {
		port, err := portOf(p.GetPort())
		if err != nil {
			return nil, err
		}
		target, err := portOf(p.GetTargetPort())
		if err != nil {
			return nil, fmt.Errorf("target: %w", err)
		}
		s.Ports = append(s.Ports, mesh.ServicePort{Name: p.GetName(), Port: port, TargetPort: target})
	}
	for _, e := range m.GetEndpoints() {
		s.Endpoints = append(s.Endpoints, keyOf(e))
	}
	return s, nil
}

func decodePolicy(body []byte) (*mesh.Policy, error) {
	m := &meshpb.Policy{}
	if err := unmarshalKnown(body, m); err != nil {
		return nil, err
	}
	p := &mesh.Policy{Key: keyOf(m.GetKey())}
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
	if p.Selector, err = labelsOf(m.GetSelector()); err != nil {
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
			Identities:    patternsOf(from.GetIdentities()),
			NotIdentities: patternsOf(from.GetNotIdentities()),
			Namespaces:    from.GetNamespaces(),
			NotNamespaces: from.GetNotNamespaces(),
		}
		var err error
		if source.IPBlocks, err = blocksOf(from.GetIpBlocks()); err != nil {
			return rule, err
		}
		if source.NotIPBlocks, err = blocksOf(from.GetNotIpBlocks()); err != nil {
			return rule, err
		}
		rule.From = append(rule.From, source)
	}
	for _, to := range m.GetTo() {
		ports, err := portsOf(to.GetPorts())
		if err != nil {
			return rule, err
		}
		notPorts, err := portsOf(to.GetNotPorts())
		if err != nil {
			return rule, err
		}
		rule.To = append(rule.To, mesh.Destination{Ports: ports, NotPorts: notPorts})
	}
	return rule, nil
}

func commitOf(m *meshpb.Commit) (*Commit, error) {
	if len(m.GetSetHash()) != 32 || len(m.GetNode()) > MaxName || len(m.GetRevision()) > MaxName {
		return nil, errors.New("decode commit: malformed")
	}
	return &Commit{Node: m.GetNode(), Revision: m.GetRevision(), Epoch: m.GetEpoch(), Hash: m.GetSetHash(), signature: m.GetSignature()}, nil
}

// DecodeCommit decodes the body of a Commit resource. It verifies nothing.
func DecodeCommit(body []byte) (*Commit, error) {
	m := &meshpb.Commit{}
	if err := unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("decode commit: %w", err)
	}
	return commitOf(m)
}

func unmarshal(body []byte, m proto.Message) error {
	return proto.UnmarshalOptions{RecursionLimit: 16}.Unmarshal(body, m)
}

// unmarshalKnown refuses fields that this program does not know, at any depth:
// a condition that a newer operator can add to a rule must not get lost. A
// field that is not used is not encoded, so a newer operator is understood
// until somebody uses what is new.
func unmarshalKnown(body []byte, m proto.Message) error {
	if err := unmarshal(body, m); err != nil {
		return err
	}
	return checkKnown(m.ProtoReflect())
}

func checkKnown(m protoreflect.Message) (err error) {
	if len(m.GetUnknown()) > 0 {
		return fmt.Errorf("%s has fields that this agent does not know: upgrade the agent", m.Descriptor().Name())
	}
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.Message() == nil:
		case field.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = checkKnown(v.List().Get(i).Message())
			}
		default:
			err = checkKnown(v.Message())
		}
		return err == nil
	})
	return err
}

func keyOf(k *meshpb.ObjectKey) mesh.Key {
	return mesh.Key{Namespace: k.GetNamespace(), Name: k.GetName()}
}

func modeOf(m meshpb.Mode) (mesh.Mode, error) {
	switch m {
	case meshpb.Mode_MODE_STRICT:
		return mesh.ModeStrict, nil
	case meshpb.Mode_MODE_PERMISSIVE:
		return mesh.ModePermissive, nil
	default:
		return mesh.ModeStrict, fmt.Errorf("mode %v is unknown", m)
	}
}

func egressOf(e meshpb.Egress) (mesh.EgressMode, error) {
	switch e {
	case meshpb.Egress_EGRESS_ALLOW:
		return mesh.EgressAllow, nil
	case meshpb.Egress_EGRESS_DENY:
		return mesh.EgressDeny, nil
	default:
		return mesh.EgressDeny, fmt.Errorf("egress %v is unknown", e)
	}
}

func addressOf(raw []byte) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(raw)
	if !ok || addr.Is4In6() {
		return netip.Addr{}, fmt.Errorf("address %x: want 4 or 16 bytes, IPv4 not mapped", raw)
	}
	return addr, nil
}

func addressesOf(raw [][]byte) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, r := range raw {
		addr, err := addressOf(r)
		if err != nil {
			return nil, err
		}
		all = append(all, addr)
	}
	return all, nil
}

func blocksOf(raw []*meshpb.AddressBlock) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, b := range raw {
		addr, err := addressOf(b.GetAddress())
		if err != nil {
			return nil, err
		}
		if b.GetBits() > uint32(addr.BitLen()) {
			return nil, fmt.Errorf("address block %v/%d: too many bits", addr, b.GetBits())
		}
		all = append(all, netip.PrefixFrom(addr, int(b.GetBits())))
	}
	return all, nil
}

func labelsOf(raw []*meshpb.Label) (map[string]string, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	all := make(map[string]string, len(raw))
	for _, l := range raw {
		if _, twice := all[l.GetKey()]; twice {
			return nil, fmt.Errorf("label %q: given twice", l.GetKey())
		}
		all[l.GetKey()] = l.GetValue()
	}
	return all, nil
}

func portModesOf(raw []*meshpb.PortMode) (map[uint16]mesh.Mode, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	all := make(map[uint16]mesh.Mode, len(raw))
	for _, p := range raw {
		port, err := portOf(p.GetPort())
		if err != nil {
			return nil, err
		}
		if _, twice := all[port]; twice {
			return nil, fmt.Errorf("mode of port %d: given twice", port)
		}
		if all[port], err = modeOf(p.GetMode()); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func patternsOf(raw []string) []mesh.IdentityPattern {
	var all []mesh.IdentityPattern
	for _, p := range raw {
		all = append(all, mesh.IdentityPattern(p))
	}
	return all
}

func portOf(raw uint32) (uint16, error) {
	if raw == 0 || raw > math.MaxUint16 {
		return 0, fmt.Errorf("port %d is not between 1 and %d", raw, math.MaxUint16)
	}
	return uint16(raw), nil
}

func portsOf(raw []uint32) ([]uint16, error) {
	var all []uint16
	for _, r := range raw {
		port, err := portOf(r)
		if err != nil {
			return nil, err
		}
		all = append(all, port)
	}
	return all, nil
}
