package resources

import (
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery/resources/field"
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
	if err := field.Unmarshal(body, m); err != nil {
		return nil, err
	}
	w := &mesh.Workload{
		Key:            field.Key(m.GetKey()),
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
	return w, nil
}

func decodeService(body []byte) (*mesh.Service, error) {
	m := &meshpb.Service{}
	if err := field.Unmarshal(body, m); err != nil {
		return nil, err
	}
	s := &mesh.Service{Key: field.Key(m.GetKey()), Sticky: m.GetSticky()}
	// A nearness that this program does not know is no preference.
	if near := mesh.Nearness(m.GetPrefer()); m.GetPrefer() >= 0 && near <= mesh.SameNode {
		s.Prefer = near
	}
	var err error
	if s.Addresses, err = field.Addresses(m.GetAddresses()); err != nil {
		return nil, err
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
		s.Ports = append(s.Ports, mesh.ServicePort{Name: p.GetName(), Port: port, TargetPort: target})
	}
	for _, e := range m.GetEndpoints() {
		s.Endpoints = append(s.Endpoints, field.Key(e))
	}
	return s, nil
}

func decodePolicy(body []byte) (*mesh.Policy, error) {
	m := &meshpb.Policy{}
	if err := field.UnmarshalKnown(body, m); err != nil {
		return nil, err
	}
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
	if err := field.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("decode commit: %w", err)
	}
	return commitOf(m)
}
