package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/index"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/mesh/service"
)

// Change is what is different in a View: objects that are new or not as they were,
// and the names of those that are gone. Lists may be in any order.
type Change struct {
	// Settings and Network take the place of the View's; nil leaves them.
	Settings *Settings
	Network  *Network

	Workloads                                 []*Workload
	Services                                  []*Service
	Policies                                  []*Policy
	GoneWorkloads, GoneServices, GonePolicies []Key
}

// Size is the number of objects that a Change is about, those of networks left out.
func (c *Change) Size() int {
	return len(c.Workloads) + len(c.Services) + len(c.Policies) + len(c.GoneWorkloads) + len(c.GoneServices) + len(c.GonePolicies)
}

// With returns the View that ViewOf makes of this one's objects with a change, and of
// which it takes over the objects in the same way. It costs what changed, and eight
// bytes copied for each object; a change of the settings, or of much, costs as much
// as ViewOf. What did not change is shared.
func (v *View) With(revision string, c Change) (*View, error) {
	network, err := v.network, error(nil)
	if c.Network != nil {
		network, err = networkIndex(*c.Network)
	}
	if few := len(v.workloads)/4 + 16; v.synced && c.Settings == nil && c.Size() <= few && !v.crowded() {
		if next, err := build(v, revision, v.settings, c, network, err); err == nil {
			return next, nil
		}
	}
	// What is wrong is told of all of it.
	settings := v.settings
	if c.Settings != nil {
		settings = *c.Settings
	}
	workloads, services, policies := keyed.Sort(c.Workloads), keyed.Sort(c.Services), keyed.Sort(c.Policies)
	all := Change{
		Workloads: keyed.Splice(v.workloads, workloads, keyed.Without(c.GoneWorkloads, workloads)),
		Services:  keyed.Splice(v.services, services, keyed.Without(c.GoneServices, services)),
		Policies:  keyed.Splice(v.policies, policies, keyed.Without(c.GonePolicies, policies)),
	}
	return build(&View{}, revision, settings, all, network, err)
}

// crowded reports whether the indexes have become too small.
func (v *View) crowded() bool {
	return v.owners.Crowded() || v.nodes.Crowded() || v.virtual.Crowded() || v.external.Crowded() || v.endpoints.Crowded() || v.behind.Crowded()
}

// build makes a View of an empty one, or of one with the same settings.
func build(base *View, revision string, settings Settings, c Change, network *netpolicy.Index, wrong error) (*View, error) {
	b := viewBuilder{base: base, view: &View{revision: revision, synced: true, settings: settings, ofSettings: base.ofSettings, network: network, lineage: base.lineage}}
	if whole := !base.synced; whole {
		b.byKey = make(map[Key]*Workload, len(c.Workloads))
		b.owners, b.virtual = index.New[*Workload](len(c.Workloads)).Edit(), index.New[*serviceEntry](len(c.Services)).Edit()
		b.nodes, b.endpoints = index.New[*nodeEntry](len(c.Workloads)/30).Edit(), index.New[*Key](len(c.Workloads)).Edit() // nodes have some 30
		b.external, b.behind = index.New[*serviceEntry](service.CountExternal(c.Services)).Edit(), index.New[behind](0).Edit()
		b.view.revoked = make(map[spiffeid.ID]struct{}, len(settings.RevokedIdentities))
		b.view.lineage = new(byte)
		b.addSettings()
	} else {
		b.owners, b.virtual, b.nodes, b.endpoints = base.owners.Edit(), base.virtual.Edit(), base.nodes.Edit(), base.endpoints.Edit()
		b.external, b.behind = base.external.Edit(), base.behind.Edit()
	}
	workloads, services, policies := acceptable(&b, "workload", c.Workloads), acceptable(&b, "service", c.Services), acceptable(&b, "policy", c.Policies)
	goneWorkloads, goneServices, gonePolicies := keyed.Without(c.GoneWorkloads, workloads), keyed.Without(c.GoneServices, services), keyed.Without(c.GonePolicies, policies)
	b.changeWorkloads(workloads, goneWorkloads)
	b.changeReceivers(workloads, goneWorkloads)
	changed := map[Key]bool{}
	if base.synced {
		for _, w := range workloads {
			changed[w.Key] = true
		}
		for _, key := range goneWorkloads {
			changed[key] = true
		}
	}
	b.claimAll(workloads, b.changeServices(services, goneServices, changed))
	b.changePolicies(policies, gonePolicies)
	if err := errors.Join(append(b.errs, wrong)...); err != nil {
		return nil, fmt.Errorf("build view: %w", err)
	}
	v := b.view
	v.owners, v.virtual, v.nodes, v.endpoints = b.owners.Index, b.virtual.Index, b.nodes.Index, b.endpoints.Index
	v.external, v.behind = b.external.Index, b.behind.Index
	v.policySets = &sync.Map{}
	if base.synced && len(policies)+len(gonePolicies) == 0 && base.network == network {
		v.keepPolicySets(base)
	}
	return v, nil
}

// keepPolicySets takes over what the policies say of workloads that are as they were.
func (v *View) keepPolicySets(base *View) {
	base.policySets.Range(func(key, set any) bool {
		if was := key.(*Workload); keyed.Find(v.workloads, was.Key) == was {
			v.policySets.Store(was, set)
		}
		return true
	})
}

// Self returns the service's name.
func (s *serviceEntry) Self() Key { return s.service.Key }

func (v *View) entry(key Key) *serviceEntry { return keyed.Find(v.entries, key) }

// workloadAt returns a list of the one workload that has an address; nil when none
// has.
func workloadAt(owners index.Index[*Workload], addr netip.Addr) []*Workload {
	bucket := owners.Bucket(index.OfAddress(addr))
	for i, w := range bucket {
		for _, own := range w.Addresses {
			if own == addr {
				return bucket[i : i+1 : i+1]
			}
		}
	}
	return nil
}

// externalAt returns the service that has a port at one of its external addresses; nil
// when none has. That costs the same however many services share the address.
func externalAt(external index.Index[*serviceEntry], addr netip.Addr, port uint16) (at *serviceEntry) {
	for _, e := range external.Bucket(index.OfAddressPort(addr, port)) {
		if !slices.Contains(e.service.External, addr) || at != nil && e.service.Key.Compare(at.service.Key) >= 0 {
			continue
		}
		if _, has := e.portIndex(port); has {
			at = e
		}
	}
	return at
}

func serviceAt(virtual index.Index[*serviceEntry], addr netip.Addr) *serviceEntry {
	for _, e := range virtual.Bucket(index.OfAddress(addr)) {
		if slices.Contains(e.service.Addresses, addr) {
			return e
		}
	}
	return nil
}
