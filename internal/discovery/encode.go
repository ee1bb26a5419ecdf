package discovery

import (
	"maps"
	"reflect"
	"slices"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/discovery/share"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// difference returns what turns the objects of one View into those of another, but for
// their settings and networks.
func difference(was, is *mesh.View) (c mesh.Change) {
	c.Workloads, c.GoneWorkloads = keyed.Difference(was.Workloads(), is.Workloads(), equalWhole)
	c.Services, c.GoneServices = keyed.Difference(was.Services(), is.Services(), equalServices)
	c.Policies, c.GonePolicies = keyed.Difference(was.Policies(), is.Policies(), func(a, b *mesh.Policy) bool { return reflect.DeepEqual(a, b) })
	return c
}

// changes are those of one Shared.
type changes struct {
	put  []*resources.Resource
	gone []resources.Ref
}

func (c *changes) add(r *resources.Resource, err error) error {
	if err == nil {
		c.put = append(c.put, r)
	}
	return err
}

func (c *changes) remove(k resources.Kind, key mesh.Key) {
	c.gone = append(c.gone, resources.Ref{Kind: k, Name: key.String()})
}

// encode encodes what changed between two Views.
func encode(was, is *mesh.View, c *share.Changes) (shared, rest changes, err error) {
	if c.Settings {
		if err := shared.add(resources.EncodeSettings(is.Settings())); err != nil {
			return shared, rest, err
		}
	}
	for _, s := range c.Services {
		if err := shared.add(resources.EncodeService(s)); err != nil {
			return shared, rest, err
		}
	}
	for _, w := range c.Workloads {
		if err := encodeWorkload(w, &shared, &rest); err != nil {
			return shared, rest, err
		}
	}
	for _, p := range c.Policies {
		if err := rest.add(resources.EncodePolicy(p)); err != nil {
			return shared, rest, err
		}
	}
	for _, key := range c.GoneServices {
		shared.remove(resources.KindService, key)
	}
	for _, key := range c.GoneWorkloads {
		shared.remove(resources.KindWorkload, key)
		rest.remove(resources.KindWorkload, key)
	}
	for _, key := range c.GonePolicies {
		rest.remove(resources.KindPolicy, key)
	}
	return shared, rest, encodeNetwork(was.Network(), is.Network(), &rest)
}

// encodeWorkload encodes what all are told, and what its own node is told where that is
// more.
func encodeWorkload(w *mesh.Workload, shared, rest *changes) error {
	told, err := encodeTold(w)
	if err != nil {
		return err
	}
	whole, err := resources.EncodeWorkload(w)
	if err != nil {
		return err
	}
	if told == nil {
		shared.remove(resources.KindWorkload, w.Key)
	} else {
		shared.put = append(shared.put, told)
		if whole.Version == told.Version {
			rest.remove(resources.KindWorkload, w.Key)
			return nil
		}
		whole.Name = told.Name // kept once
	}
	rest.put = append(rest.put, whole)
	return nil
}

// encodeNetwork encodes what changed of NetworkPolicies.
func encodeNetwork(was, is *netpolicy.Index, rest *changes) error {
	if was == is {
		return nil
	}
	err := encodeEach(rest, resources.KindNetworkPolicy, was.Policies(), is.Policies(), resources.EncodeNetworkPolicy,
		func(p *netpolicy.Policy) mesh.Key { return mesh.Key(p.Name) }, func(a, b *netpolicy.Policy) bool { return reflect.DeepEqual(a, b) })
	if err != nil {
		return err
	}
	return encodeEach(rest, resources.KindAddressSet, was.Shards(), is.Shards(), resources.EncodeAddressSet, resources.ShardKey,
		func(a, b *netpolicy.Shard) bool { return a.Count == b.Count && slices.Equal(a.Members, b.Members) })
}

// encodeEach encodes what is different between two lists.
func encodeEach[T any](rest *changes, k resources.Kind, was, is []*T, encode func(*T) (*resources.Resource, error), key func(*T) mesh.Key, equal func(a, b *T) bool) error {
	before := map[mesh.Key]*T{}
	for _, object := range was {
		before[key(object)] = object
	}
	for _, object := range is {
		same := before[key(object)] != nil && equal(before[key(object)], object)
		delete(before, key(object))
		if same {
			continue
		}
		if err := rest.add(encode(object)); err != nil {
			return err
		}
	}
	for gone := range before {
		rest.remove(k, gone)
	}
	return nil
}

// encodeTold encodes what other nodes are told of a workload: how it is reached
// and who it is, not what is enforced where it runs. Nothing is told of one that
// has no address yet, with which they could not do anything.
func encodeTold(w *mesh.Workload) (*resources.Resource, error) {
	if len(w.Addresses) == 0 {
		return nil, nil
	}
	return resources.EncodeWorkload(&mesh.Workload{Key: w.Key, ServiceAccount: w.ServiceAccount, Node: w.Node, Identity: w.Identity,
		Addresses: w.Addresses, Enrolled: w.Enrolled, Ready: w.Ready, Leaving: w.Leaving, Zone: w.Zone, Datagrams: w.Datagrams, Gated: w.Gated})
}

// equalTold reports whether other nodes are told the same of two workloads.
func equalTold(a, b *mesh.Workload) bool {
	return a.Key == b.Key && a.ServiceAccount == b.ServiceAccount && a.Node == b.Node && a.Identity == b.Identity &&
		a.Enrolled == b.Enrolled && a.Ready == b.Ready && a.Leaving == b.Leaving && a.Gated == b.Gated && a.Zone == b.Zone && slices.Equal(a.Addresses, b.Addresses) &&
		slices.EqualFunc(a.Datagrams, b.Datagrams, func(a, b *mesh.Policy) bool { return a == b || reflect.DeepEqual(a, b) })
}

// equalWhole reports whether a workload's own node is told the same of two.
func equalWhole(a, b *mesh.Workload) bool {
	return equalTold(a, b) && a.NetNS == b.NetNS && a.UID == b.UID && a.Mode == b.Mode && a.DNS == b.DNS &&
		slices.Equal(a.ProbePorts, b.ProbePorts) && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.PortModes, b.PortModes)
}

func equalServices(a, b *mesh.Service) bool {
	return a.Key == b.Key && a.Prefer == b.Prefer && a.Sticky == b.Sticky && a.StickyFor == b.StickyFor && a.Unready == b.Unready &&
		a.Waypoint == b.Waypoint && a.Bypass == b.Bypass &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.External, b.External) && slices.EqualFunc(a.Ports, b.Ports, equalPorts) && slices.EqualFunc(a.UDPPorts, b.UDPPorts, equalPorts) && slices.Equal(a.Endpoints, b.Endpoints)
}

func equalPorts(a, b mesh.ServicePort) bool {
	return a.Name == b.Name && a.AppProtocol == b.AppProtocol && a.Port == b.Port && a.TargetPort == b.TargetPort && slices.Equal(a.Only, b.Only) &&
		slices.EqualFunc(a.Elsewhere, b.Elsewhere, func(a, b mesh.PortElsewhere) bool {
			return a.TargetPort == b.TargetPort && slices.Equal(a.Endpoints, b.Endpoints)
		})
}
