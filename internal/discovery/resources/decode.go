package resources

import (
	"errors"
	"fmt"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery/resources/decode"
	"github.com/heddle-mesh/heddle/internal/discovery/resources/field"
	"github.com/heddle-mesh/heddle/internal/discovery/resources/routing"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
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
	route    *route.Route
}

// decodeResource checks one resource from outside, against its name and its
// version, and decodes it. It keeps body. Enum values that this program
// does not know are refused, and so are fields of policies, settings and routes:
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
		d.settings, err = decode.Settings(d.Body)
		return settingsName, err
	case KindService:
		if d.service, err = decode.Service(d.Body); err == nil {
			name = d.service.Key.String()
		}
	case KindWorkload:
		if d.workload, err = decode.Workload(d.Body); err == nil {
			name = d.workload.Key.String()
		}
	case KindPolicy:
		if d.policy, err = decode.Policy(d.Body); err == nil {
			name = d.policy.Key.String()
		}
	case KindNetworkPolicy:
		if d.network, err = decode.NetworkPolicy(d.Body); err == nil {
			name = d.network.Name.String()
		}
	case KindAddressSet:
		if d.shard, err = decode.AddressSet(d.Body); err == nil {
			name = shardName(d.shard)
		}
	case KindRoute:
		if d.route, err = routing.Decode(d.Body); err == nil {
			name = routing.Name(d.route.ID)
		}
	default:
		err = errors.New("not a kind of resource that is held")
	}
	return name, err
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
