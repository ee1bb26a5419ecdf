package discovery

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"sync"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/discovery/share"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// Routes are those that a Snapshot has beside its View. They are immutable.
type Routes = share.Routes

// NewRoutes makes Routes of a list, whose routes must not be changed afterwards. Those that
// no message could hold are left out; untold names them.
func NewRoutes(list []route.Route) (routes *Routes, untold []error) {
	all := make([]*route.Route, len(list))
	for i := range list {
		all[i] = &list[i]
	}
	return share.NewRoutes(all)
}

// WaypointName returns the name that a waypoint has as a subscriber: no node's, as those
// have no slash. Key is its Service.
func WaypointName(key mesh.Key) string { return "waypoint/" + key.String() }

// What a waypoint says of itself when it connects, beside its token: the name of its Service,
// NAMESPACE/NAME, and, with a join token, the secret that it goes by from then on.
const (
	WaypointHeader = "heddle-waypoint"
	SessionHeader  = "heddle-session-bin"
)

// Snapshot is one View with routes, encoded: what a Server streams. It is immutable, and shares
// with the one before what did not change; the sets of single nodes and waypoints are derived on
// demand and kept.
type Snapshot struct {
	view   *mesh.View
	routes *Routes
	epoch  uint64
	key    ed25519.PrivateKey

	// shared is what every node is told. Rest is what only some are: workloads, where
	// their own node is told more of them, policies, and what is of networks.
	shared, rest *resources.Shared
	// lists are those of rest that a node is told; a node of which nothing is known
	// has none.
	lists map[string]*resources.List

	sets struct {
		sync.Mutex
		byNode map[told]*nodeSet
	}
	waypoints *share.Waypoints
}

// told is a node, and whether its agent knows the newer kinds of resources, or a waypoint.
type told struct {
	node     string
	newer    bool
	waypoint mesh.Key // zero for a node
}

// nodeSet is all that one node is told: immutable.
type nodeSet struct {
	*resources.Own
	commit resources.Commit
}

// NewSnapshot encodes a View. The epoch must not be smaller than that of any
// other View published before, by this process or an earlier one; key signs the
// commits. An object too large for a message is refused by name. A View without
// a revision gets one that is made of its content, equal on every replica.
func NewSnapshot(view *mesh.View, epoch uint64, key ed25519.PrivateKey) (*Snapshot, error) {
	return NewRoutedSnapshot(view, nil, epoch, key)
}

// NewRoutedSnapshot is NewSnapshot with routes, which may be nil.
func NewRoutedSnapshot(view *mesh.View, routes *Routes, epoch uint64, key ed25519.PrivateKey) (*Snapshot, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("sign configuration: the configuration key is missing")
	}
	nothing := &Snapshot{view: mesh.NewStore().View(), key: key, shared: resources.NewShared(nil), rest: resources.NewShared(nil), waypoints: share.NewWaypoints()}
	return nothing.NextRouted(view, routes, epoch)
}

// Next is NewSnapshot with the same key and routes, for a View that has much in common
// with this one: what did not change is not encoded again.
func (s *Snapshot) Next(view *mesh.View, epoch uint64) (*Snapshot, error) {
	return s.NextRouted(view, s.routes, epoch)
}

// NextRouted is Next with other routes.
func (s *Snapshot) NextRouted(view *mesh.View, routes *Routes, epoch uint64) (*Snapshot, error) {
	return s.next(view, routes, difference(s.view, view), epoch)
}

// With is Next for this snapshot's View with a change. It costs what changed, and
// eight bytes copied for each resource.
func (s *Snapshot) With(change mesh.Change, epoch uint64) (*Snapshot, error) {
	return s.WithRouted(change, s.routes, epoch)
}

// WithRouted is With with other routes.
func (s *Snapshot) WithRouted(change mesh.Change, routes *Routes, epoch uint64) (*Snapshot, error) {
	view, err := s.view.With("", change)
	if err != nil {
		return nil, err
	}
	return s.next(view, routes, change, epoch)
}

func (s *Snapshot) next(view *mesh.View, routes *Routes, change mesh.Change, epoch uint64) (*Snapshot, error) {
	n := &Snapshot{view: view, routes: routes, epoch: epoch, key: s.key}
	n.sets.byNode = map[told]*nodeSet{}
	changes := share.Changes{Change: &change, Was: s.view, Settings: !s.view.Synced() || !reflect.DeepEqual(s.view.Settings(), view.Settings())}
	shared, rest, err := encode(s.view, view, &changes)
	if err != nil {
		return nil, err
	}
	put, gone, about := s.routes.Difference(routes)
	rest.put, rest.gone, changes.Rerouted = append(rest.put, put...), append(rest.gone, gone...), about
	n.shared, n.rest = s.shared.With(shared.put, shared.gone), s.rest.With(rest.put, rest.gone)
	sp := share.New(n.source())
	n.lists = s.spread(n, &change, sp)
	n.waypoints = s.waypoints.Next(sp, &changes)
	if view.Revision() == "" {
		n.view = view.Named(n.contentRevision())
	}
	return n, nil
}

func (s *Snapshot) source() share.Source {
	return share.Source{View: s.view, Routes: s.routes, Shared: s.shared, Rest: s.rest}
}

// View returns the encoded View.
func (s *Snapshot) View() *mesh.View { return s.view }

// Routes returns the encoded routes; nil when there are none.
func (s *Snapshot) Routes() *Routes { return s.routes }

// Epoch returns the snapshot's place in the order of snapshots.
func (s *Snapshot) Epoch() uint64 { return s.epoch }

// HashFor returns the hash of the set that a node is told, over names and
// contents: equal configurations have equal ones, whatever they are read from.
func (s *Snapshot) HashFor(node string) []byte {
	return s.forNode(told{node: node, newer: true}, nil).commit.Hash
}

// contentRevision hashes all that any node is told. 64 bits tell revisions
// apart; nothing is trusted because of them.
func (s *Snapshot) contentRevision() string {
	h := sha256.New()
	h.Write(s.shared.Hash()) // of one length each; a hash returns no error
	h.Write(s.rest.Hash())
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// forNode returns what a node is told, and its signed commit. Last is what it was told
// before, or nil: what is the same is not hashed again.
func (s *Snapshot) forNode(to told, last *nodeSet) *nodeSet {
	s.sets.Lock()
	set, known := s.sets.byNode[to]
	s.sets.Unlock()
	if known {
		return set
	}
	shared, list := s.sharedBy(to), s.lists[to.node]
	if list == nil {
		list = resources.NewList(nil)
	}
	if !to.newer && slices.ContainsFunc(list.All(), newer) {
		list = resources.NewList(slices.DeleteFunc(slices.Clone(list.All()), newer))
	}
	var before *resources.Own
	if last != nil {
		before = last.Own
	}
	set = s.newNodeSet(resources.NewOwn(shared, list, before), to.node)
	s.sets.Lock()
	defer s.sets.Unlock()
	s.sets.byNode[to] = set
	return set
}

// sharedBy is what a node is told as all are, or all that a waypoint is told.
func (s *Snapshot) sharedBy(to told) *resources.Shared {
	if to.waypoint == (mesh.Key{}) {
		return s.shared
	}
	return s.waypoints.Of(s.source(), to.waypoint).Shared
}

func newer(r *resources.Resource) bool { return r.Kind.Newer() }

// newNodeSet signs a set for a node.
func (s *Snapshot) newNodeSet(own *resources.Own, node string) *nodeSet {
	c := resources.Commit{Node: node, Revision: s.view.Revision(), Epoch: s.epoch, Hash: own.Hash()}
	c.Sign(s.key)
	return &nodeSet{Own: own, commit: c}
}

// Save writes the whole View with the routes, network namespaces of all nodes included, to a
// file that LoadView reads: the operator's own last good configuration.
func (s *Snapshot) Save(path string) error {
	// No node has the empty name: no agent takes this file for its own.
	set := s.newNodeSet(resources.NewOwn(s.shared, resources.NewList(s.rest.All()), nil), "")
	return resources.SaveFile(path, resources.Listed(set.All()), &set.commit)
}

// LoadView reads what Snapshot.Save wrote. A file that is corrupt or signed by
// another key is refused, and kept aside; it returns nil, nil, nil when there is no
// file.
func LoadView(path string, key ed25519.PublicKey) (*mesh.View, *Routes, error) {
	set, view, err := resources.LoadFile(path, "", []ed25519.PublicKey{key})
	switch {
	case errors.Is(err, resources.ErrNoFile):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	}
	routes, untold := share.NewRoutes(set.Routes())
	return view, routes, errors.Join(untold...)
}
