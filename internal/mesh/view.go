package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

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

	workloadByKey map[Key]*Workload
	serviceByKey  map[Key]*serviceEntry
	addresses     map[netip.Addr]*addressOwner
	nodes         map[string][]*Workload
	revoked       map[spiffeid.ID]struct{}
	compiled      map[string][]*compiledPolicy // by namespace, sorted by key
	policySets    map[*Workload]*lazyPolicySet
	network       *netpolicy.Index
}

// addressOwner is who answers at an address: a workload or a service.
type addressOwner struct {
	workload *Workload
	self     [1]*Workload // the workload again, as a list of candidates
	service  *serviceEntry
}

func (o *addressOwner) String() string {
	if o.workload != nil {
		return "workload " + o.workload.Key.String()
	}
	return "service " + o.service.service.Key.String()
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
	b := viewBuilder{view: &View{
		revision:      revision,
		synced:        true,
		settings:      settings,
		workloadByKey: make(map[Key]*Workload, len(workloads)),
		serviceByKey:  make(map[Key]*serviceEntry, len(services)),
		addresses:     make(map[netip.Addr]*addressOwner, len(workloads)+len(services)),
		nodes:         map[string][]*Workload{},
		revoked:       make(map[spiffeid.ID]struct{}, len(settings.RevokedIdentities)),
		compiled:      map[string][]*compiledPolicy{},
		policySets:    make(map[*Workload]*lazyPolicySet, len(workloads)),
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
	if err := errors.Join(b.errs...); err != nil {
		return nil, fmt.Errorf("build view: %w", err)
	}
	return b.view, nil
}

// sortedByKey copies the objects and returns pointers to the copies in order.
func sortedByKey[T any](objects []T, key func(*T) Key) []*T {
	copies := slices.Clone(objects)
	sorted := make([]*T, len(copies))
	for i := range copies {
		sorted[i] = &copies[i]
	}
	slices.SortStableFunc(sorted, func(a, b *T) int { return key(a).Compare(key(b)) })
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
	w, ok := v.workloadByKey[key]
	return w, ok
}

// WorkloadAt returns the workload that has an address, mapped or not.
func (v *View) WorkloadAt(addr netip.Addr) (*Workload, bool) {
	if owner, ok := v.addresses[addr.Unmap()]; ok && owner.workload != nil {
		return owner.workload, true
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
	if owner, ok := v.addresses[addr.Unmap()]; ok && owner.service != nil {
		return owner.service.service, true
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
