package mesh

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/index"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/mesh/policy"
	"github.com/heddle-mesh/heddle/internal/mesh/workload"
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

	entries   []*serviceEntry            // parallel to services
	compiled  []*policy.Compiled         // parallel to policies
	owners    index.Index[*Workload]     // by address
	virtual   index.Index[*serviceEntry] // by address
	external  index.Index[*serviceEntry] // by each external address, with each port
	nodes     index.Index[*nodeEntry]    // by name
	endpoints index.Index[*Key]          // names of services, by those of their endpoints
	behind    index.Index[behind]        // by the names of waypoints
	ofSettings
	// policySets holds the *policySet of each *Workload that was asked for: an
	// agent asks for those of its node, which are few of all that it knows.
	policySets *sync.Map
	network    *netpolicy.Index
	// receivers are those workloads that Datagrams are said of, sorted by key.
	receivers []*Receiver
	// lineage is that of the View of which this one was made with other objects.
	lineage *byte
}

// ofSettings is what is looked up of the settings.
type ofSettings struct {
	revoked map[spiffeid.ID]struct{}
	foreign map[netip.Addr][]*Workload // each a list of one; see ForeignAt
}

// nodeEntry has a node's workloads, sorted by key.
type nodeEntry struct {
	node      string
	workloads []*Workload
}

type serviceEntry struct {
	service    *Service
	name       *Key        // stays the same as long as the service is there
	ready      []*Workload // endpoints that take connections, sorted by key
	readyPlain []*Workload // those of them that are not enrolled
	// hops are those of ready that connections may be sent to as a waypoint's: in plaintext
	// nobody proves to them what a header says, and others' workloads are nobody's waypoint.
	hops []*Workload
	near *workload.Places // nil unless the service prefers near ones
	// own has an entry for each port that not all endpoints have, in the order of the
	// service's ports; nil when there is none.
	own []*serviceEntry
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
	return ViewOf(revision, settings, keyed.Copies(workloads), keyed.Copies(services), keyed.Copies(policies), network)
}

// ViewOf is NewNetworkView without a copy: the View refers to the objects, which may
// be parts of other Views too. Nobody may change them once they are part of
// one. The slices themselves stay the caller's,
// but for those of network.
func ViewOf(revision string, settings Settings, workloads []*Workload, services []*Service, policies []*Policy, n Network) (*View, error) {
	network, err := networkIndex(n)
	return build(&View{}, revision, settings, Change{Workloads: workloads, Services: services, Policies: policies}, network, err)
}

// SortedKeys returns keys as a View has the endpoints of a service: sorted, each
// once.
func SortedKeys(keys []Key) []Key { return keyed.SortedKeys(keys) }

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
	w := keyed.Find(v.workloads, key)
	return w, w != nil
}

// WorkloadAt returns the workload that has an address, mapped or not.
func (v *View) WorkloadAt(addr netip.Addr) (*Workload, bool) {
	if w := workloadAt(v.owners, addr.Unmap()); w != nil {
		return w[0], true
	}
	return nil, false
}

// Service returns the service of a name.
func (v *View) Service(key Key) (*Service, bool) {
	if entry := v.entry(key); entry != nil {
		return entry.service, true
	}
	return nil, false
}

// ServiceAt returns the service that has an address, mapped or not.
func (v *View) ServiceAt(addr netip.Addr) (*Service, bool) {
	if entry := serviceAt(v.virtual, addr.Unmap()); entry != nil {
		return entry.service, true
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
func (v *View) OnNode(node string) []*Workload {
	for _, e := range v.nodes.Bucket(index.OfTexts(node, "")) {
		if e.node == node {
			return e.workloads
		}
	}
	return nil
}

// Revoked reports whether an identity is on the deny-list of agents.
func (v *View) Revoked(id spiffeid.ID) bool {
	_, ok := v.revoked[id]
	return ok
}

// Barred reports whether nothing may be signed for an identity: it is revoked, whether
// agents are told of it or not.
func (v *View) Barred(id spiffeid.ID) bool {
	return v.Revoked(id) || slices.Contains(v.settings.RevokedUntold, id)
}
