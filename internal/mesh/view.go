package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// View is an immutable snapshot of the mesh with the indexes that decisions
// need. It is safe for concurrent use; everything it returns is shared and read
// only.
type View struct {
	revision string
	synced   bool
	settings Settings

	workloads []*Workload // sorted by key, as are services and policies
	services  []*Service
	policies  []*Policy

	serviceByKey map[Key]*serviceEntry
	entries      []*serviceEntry // parallel to services
	addresses    map[netip.Addr]addressOwner
	nodes        map[string][]*Workload
	revoked      map[spiffeid.ID]struct{}
	compiled     map[string][]*compiledPolicy // by namespace, sorted by key
	// policySets holds the *policySet of each *Workload that was asked for: an
	// agent asks for those of its node, which are few of all that it knows.
	policySets *sync.Map
	network    *netpolicy.Index
}

// addressOwner is who answers at an address: the index of a workload, or the
// complement (^) of that of a service. There is one for every address of the
// mesh, so it is small.
type addressOwner int32

// describe names an owner.
func (v *View) describe(o addressOwner) string {
	if o >= 0 {
		return "workload " + v.workloads[o].Key.String()
	}
	return "service " + v.services[^o].Key.String()
}

type serviceEntry struct {
	service    *Service
	ready      []*Workload // ready endpoints, sorted by key
	readyPlain []*Workload // those of them that are not enrolled
	near       *nearEntry  // nil unless the service prefers near ones
}

func emptyView() *View { return &View{} }

// NewView builds a View. It takes over its arguments, including what their
// maps and slices hold: the caller must not change them afterwards. Addresses
// are unmapped and sorted, objects sorted by key.
//
// It returns every error it finds, joined; each names the objects concerned. An
// endpoint that is not among the workloads is no error: it gets no connections
// until it is.
func NewView(revision string, settings Settings, workloads []Workload, services []Service, policies []Policy) (*View, error) {
	return NewNetworkView(revision, settings, workloads, services, policies, Network{})
}

// Network is what NetworkPolicies say, and the addresses that they refer to.
type Network struct {
	Policies []netpolicy.Policy
	Sets     []netpolicy.Shard
}

// NewNetworkView is NewView with NetworkPolicies, which it takes over too.
func NewNetworkView(revision string, settings Settings, workloads []Workload, services []Service, policies []Policy, network Network) (*View, error) {
	return ViewOf(revision, settings, copies(workloads), copies(services), copies(policies), network)
}

// ViewOf is NewNetworkView without a copy: the View refers to the objects, which may
// be parts of other Views too. Nobody may change them once they are part of
// one. The slices themselves stay the caller's,
// but for those of network.
func ViewOf(revision string, settings Settings, workloads []*Workload, services []*Service, policies []*Policy, network Network) (*View, error) {
	b := viewBuilder{byKey: make(map[Key]*Workload, len(workloads)), view: &View{
		revision:     revision,
		synced:       true,
		settings:     settings,
		workloads:    make([]*Workload, 0, len(workloads)),
		services:     make([]*Service, 0, len(services)),
		serviceByKey: make(map[Key]*serviceEntry, len(services)),
		entries:      make([]*serviceEntry, 0, len(services)),
		addresses:    make(map[netip.Addr]addressOwner, len(workloads)+len(services)),
		nodes:        map[string][]*Workload{},
		revoked:      make(map[spiffeid.ID]struct{}, len(settings.RevokedIdentities)),
		compiled:     map[string][]*compiledPolicy{},
		policySets:   &sync.Map{},
	}}
	b.addSettings()
	for _, w := range sortedByKey(workloads, func(w *Workload) Key { return w.Key }) {
		b.addWorkload(w)
	}
	for _, s := range sortedByKey(services, func(s *Service) Key { return s.Key }) {
		b.addService(s)
	}
	for _, p := range sortedByKey(policies, func(p *Policy) Key { return p.Key }) {
		b.addPolicy(p)
	}
	b.addNetwork(network)
	for node, list := range b.view.nodes {
		b.view.nodes[node] = slices.Clip(list)
	}
	if err := errors.Join(b.errs...); err != nil {
		return nil, fmt.Errorf("build view: %w", err)
	}
	return b.view, nil
}

// copies returns pointers to copies of the objects.
func copies[T any](objects []T) []*T {
	cloned := slices.Clone(objects)
	all := make([]*T, len(cloned))
	for i := range cloned {
		all[i] = &cloned[i]
	}
	return all
}

// sortedByKey returns the objects in order.
func sortedByKey[T any](objects []*T, key func(*T) Key) []*T {
	compare := func(a, b *T) int { return key(a).Compare(key(b)) }
	if slices.IsSortedFunc(objects, compare) {
		return objects
	}
	sorted := slices.Clone(objects)
	slices.SortStableFunc(sorted, compare)
	return sorted
}

// Compare orders keys by namespace, then by name: -1, 0 or +1.
func (k Key) Compare(other Key) int {
	return cmp.Or(cmp.Compare(k.Namespace, other.Namespace), cmp.Compare(k.Name, other.Name))
}

// Revision names the version of the configuration that the View was made from.
func (v *View) Revision() string { return v.revision }

// Named returns the same View under another revision.
func (v *View) Named(revision string) *View {
	named := *v
	named.revision = revision
	return &named
}

// Synced reports whether the View was made from a configuration. It is false
// for a Store's first View only.
func (v *View) Synced() bool { return v.synced }

// Settings returns what holds for the whole mesh.
func (v *View) Settings() *Settings { return &v.settings }

// Workload returns the workload of a name.
func (v *View) Workload(key Key) (*Workload, bool) {
	i, ok := slices.BinarySearchFunc(v.workloads, key, func(w *Workload, key Key) int { return w.Key.Compare(key) })
	if !ok {
		return nil, false
	}
	return v.workloads[i], true
}

// WorkloadAt returns the workload that has an address, mapped or not.
func (v *View) WorkloadAt(addr netip.Addr) (*Workload, bool) {
	if owner, ok := v.addresses[addr.Unmap()]; ok && owner >= 0 {
		return v.workloads[owner], true
	}
	return nil, false
}

// Service returns the service of a name.
func (v *View) Service(key Key) (*Service, bool) {
	if entry, ok := v.serviceByKey[key]; ok {
		return entry.service, true
	}
	return nil, false
}

// ServiceAt returns the service that has an address, mapped or not.
func (v *View) ServiceAt(addr netip.Addr) (*Service, bool) {
	if owner, ok := v.addresses[addr.Unmap()]; ok && owner < 0 {
		return v.services[^owner], true
	}
	return nil, false
}

// Workloads returns all workloads, sorted by key.
func (v *View) Workloads() []*Workload { return v.workloads }

// Services returns all services, sorted by key.
func (v *View) Services() []*Service { return v.services }

// Policies returns all policies, sorted by key.
func (v *View) Policies() []*Policy { return v.policies }

// Network returns the NetworkPolicies with what they refer to; nil when there are
// none.
func (v *View) Network() *netpolicy.Index { return v.network }

// OnNode returns a node's workloads, sorted by key.
func (v *View) OnNode(node string) []*Workload { return v.nodes[node] }

// Revoked reports whether an identity is on the deny-list.
func (v *View) Revoked(id spiffeid.ID) bool {
	_, ok := v.revoked[id]
	return ok
}
