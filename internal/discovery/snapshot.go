package discovery

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Snapshot is one View, encoded: what a Server streams. It is immutable; the
// sets of single nodes are derived on demand and kept.
type Snapshot struct {
	view  *mesh.View
	epoch uint64
	key   ed25519.PrivateKey

	// workloads, services and policies run parallel to the View's lists; what
	// only its own node is told of is nil in workloads.
	workloads, services, rules []*resources.Resource
	network                    encodedNetwork
	// shared is what every node is told; own and policies are the rest, by
	// node. Each list is sorted.
	shared   []*resources.Resource
	own      map[string][]*resources.Resource
	policies map[string][]*resources.Resource

	sets struct {
		sync.Mutex
		byNode map[told]*nodeSet
	}
}

// told is a node, and whether its agent knows the newer kinds of resources.
type told struct {
	node  string
	newer bool
}

// nodeSet is all that one node is told: immutable.
type nodeSet struct {
	resources []*resources.Resource
	refs      []resources.Ref
	commit    resources.Commit
}

// NewSnapshot encodes a View. The epoch must not be smaller than that of any
// other View published before, by this process or an earlier one; key signs the
// commits. An object too large for a message is refused by name. A View without
// a revision gets one that is made of its content, equal on every replica.
func NewSnapshot(view *mesh.View, epoch uint64, key ed25519.PrivateKey) (*Snapshot, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("sign configuration: the configuration key is missing")
	}
	return newSnapshot(nil, view, epoch, key)
}

// Next is NewSnapshot with the same key, for a View that has much in common
// with this one: what did not change is not encoded again.
func (s *Snapshot) Next(view *mesh.View, epoch uint64) (*Snapshot, error) {
	return newSnapshot(s, view, epoch, s.key)
}

func newSnapshot(last *Snapshot, view *mesh.View, epoch uint64, key ed25519.PrivateKey) (*Snapshot, error) {
	s := &Snapshot{view: view, epoch: epoch, key: key, own: map[string][]*resources.Resource{}, policies: map[string][]*resources.Resource{}}
	s.sets.byNode = map[told]*nodeSet{}
	if last == nil {
		last = &Snapshot{view: mesh.NewStore().View()}
	}
	if err := s.encode(last); err != nil {
		return nil, err
	}
	if view.Revision() == "" {
		s.view = view.Named(s.contentRevision())
	}
	return s, nil
}

// View returns the encoded View.
func (s *Snapshot) View() *mesh.View { return s.view }

// Epoch returns the snapshot's place in the order of snapshots.
func (s *Snapshot) Epoch() uint64 { return s.epoch }

// HashFor returns the hash of the set that a node is told, over names and
// contents: equal configurations have equal ones, whatever they are read from.
func (s *Snapshot) HashFor(node string) []byte { return s.forNode(told{node, true}).commit.Hash }

// contentRevision hashes all that any node is told. 64 bits tell revisions
// apart; nothing is trusted because of them.
func (s *Snapshot) contentRevision() string {
	h := sha256.New()
	h.Write(resources.Hash(resources.RefsOf(s.shared)))
	h.Write(resources.Hash(resources.RefsOf(s.rules)))
	s.network.hash(h)
	for _, node := range slices.Sorted(maps.Keys(s.own)) {
		h.Write(resources.Hash(resources.RefsOf(s.own[node])))
	}
	for _, w := range s.view.Workloads() {
		h.Write([]byte(w.UID + "\n"))
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func (s *Snapshot) encode(last *Snapshot) error {
	settings, err := resources.EncodeSettings(s.view.Settings())
	if err != nil {
		return err
	}
	s.shared = append(make([]*resources.Resource, 0, 1+len(s.view.Services())+len(s.view.Workloads())), settings)
	s.services, err = encodeAll(s.view.Services(), last.view.Services(), last.services,
		func(v *mesh.Service) mesh.Key { return v.Key }, equalServices, resources.EncodeService)
	if err != nil {
		return err
	}
	s.workloads, err = encodeAll(s.view.Workloads(), last.view.Workloads(), last.workloads,
		func(v *mesh.Workload) mesh.Key { return v.Key }, equalTold, encodeTold)
	if err != nil {
		return err
	}
	s.rules, err = encodeAll(s.view.Policies(), last.view.Policies(), last.rules,
		func(v *mesh.Policy) mesh.Key { return v.Key }, func(a, b *mesh.Policy) bool { return reflect.DeepEqual(a, b) }, resources.EncodePolicy)
	if err != nil {
		return err
	}
	if err := s.encodeNetwork(last); err != nil {
		return err
	}
	for _, r := range slices.Concat(s.services, s.workloads) {
		if r != nil {
			s.shared = append(s.shared, r)
		}
	}
	resources.Sort(s.shared)
	if err := s.encodeOwn(); err != nil {
		return err
	}
	s.spreadPolicies()
	s.spreadNetwork()
	return nil
}

// encodeAll encodes objects, or takes over what is known of equal ones: last
// and known run parallel, and like objects are sorted by key.
func encodeAll[T any](objects, last []*T, known []*resources.Resource, key func(*T) mesh.Key, equal func(a, b *T) bool,
	encode func(*T) (*resources.Resource, error)) ([]*resources.Resource, error) {
	encoded := make([]*resources.Resource, len(objects))
	at := 0
	for i, object := range objects {
		for at < len(last) && key(last[at]).Compare(key(object)) < 0 {
			at++
		}
		if at < len(last) && key(last[at]) == key(object) && equal(last[at], object) {
			encoded[i] = known[at]
			continue
		}
		r, err := encode(object)
		if err != nil {
			return nil, err
		}
		encoded[i] = r
	}
	return encoded, nil
}

// encodeTold encodes what other nodes are told of a workload; nothing about one
// that has no address yet, with which they could not do anything.
func encodeTold(w *mesh.Workload) (*resources.Resource, error) {
	if len(w.Addresses) == 0 {
		return nil, nil
	}
	told := *w
	told.NetNS, told.UID = "", ""
	return resources.EncodeWorkload(&told)
}

// equalTold reports whether other nodes are told the same of two workloads.
func equalTold(a, b *mesh.Workload) bool {
	return a.Key == b.Key && a.ServiceAccount == b.ServiceAccount && a.Node == b.Node && a.Identity == b.Identity &&
		a.Enrolled == b.Enrolled && a.Ready == b.Ready && a.Zone == b.Zone && a.Mode == b.Mode && slices.Equal(a.Addresses, b.Addresses) &&
		slices.Equal(a.ProbePorts, b.ProbePorts) && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.PortModes, b.PortModes)
}

func equalServices(a, b *mesh.Service) bool {
	return a.Key == b.Key && a.Prefer == b.Prefer && a.Sticky == b.Sticky && slices.Equal(a.Addresses, b.Addresses) &&
		slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Endpoints, b.Endpoints)
}

// encodeOwn encodes what only a workload's own node is told of: a workload
// without an address, and network namespaces. UIDs are added in forNode: most
// replicas stream to a part of the nodes only.
func (s *Snapshot) encodeOwn() error {
	for _, w := range s.view.Workloads() {
		if w.NetNS == "" && len(w.Addresses) > 0 {
			continue
		}
		own, err := resources.EncodeWorkload(w)
		if err != nil {
			return err
		}
		s.own[w.Node] = append(s.own[w.Node], own)
	}
	return nil
}

// spreadPolicies gives every policy to the nodes that it selects workloads on.
func (s *Snapshot) spreadPolicies() {
	// By namespace, and by each value of a label that a selector there has: few
	// workloads have to be looked at for each policy.
	type group struct{ namespace, label, value string }
	groups, labels := map[group][]*mesh.Workload{}, map[string]map[string]bool{}
	for _, p := range s.view.Policies() {
		if labels[p.Namespace] == nil {
			labels[p.Namespace] = map[string]bool{}
		}
		labels[p.Namespace][firstLabel(p)] = true
	}
	for _, w := range s.view.Workloads() {
		for label := range labels[w.Namespace] {
			at := group{w.Namespace, label, w.Labels[label]}
			groups[at] = append(groups[at], w)
		}
	}
	for i, p := range s.view.Policies() {
		told := map[string]bool{}
		label := firstLabel(p)
		for _, w := range groups[group{p.Namespace, label, p.Selector[label]}] {
			if !told[w.Node] && p.Selects(w) {
				told[w.Node] = true
				s.policies[w.Node] = append(s.policies[w.Node], s.rules[i])
			}
		}
	}
}

// firstLabel is one of those that a policy selects by; "" when it selects all.
func firstLabel(p *mesh.Policy) string {
	first := ""
	for label := range p.Selector {
		if first == "" || label < first {
			first = label
		}
	}
	return first
}

// ownOf returns what a node is told of its own workloads, by name.
func (s *Snapshot) ownOf(node string) map[string]*resources.Resource {
	own := map[string]*resources.Resource{}
	for _, r := range s.own[node] {
		own[r.Name] = r
	}
	for _, w := range s.view.OnNode(node) {
		if w.UID == "" || own[w.Key.String()] != nil {
			continue
		}
		// Without its UID the workload could be encoded; with it, it is at most
		// a few bytes too large, and then its node is told what all are.
		if r, err := resources.EncodeWorkload(w); err == nil {
			own[r.Name] = r
		}
	}
	return own
}

// forNode returns what a node is told, and its signed commit.
func (s *Snapshot) forNode(to told) *nodeSet {
	s.sets.Lock()
	defer s.sets.Unlock()
	if set, ok := s.sets.byNode[to]; ok {
		return set
	}
	all := withOwn(s.shared, s.ownOf(to.node))
	all = append(all, s.policies[to.node]...)
	if to.newer {
		all = append(all, s.network.of(s.view, to.node)...)
	}
	set := newNodeSet(all, resources.Commit{Node: to.node, Revision: s.view.Revision(), Epoch: s.epoch}, s.key)
	s.sets.byNode[to] = set
	return set
}

// withOwn returns what is shared, with a node's own in place of the same
// workloads or, where others are told nothing, beside them.
func withOwn(shared []*resources.Resource, own map[string]*resources.Resource) []*resources.Resource {
	told := make([]*resources.Resource, 0, len(shared)+len(own))
	for _, r := range shared {
		if mine, ok := own[r.Name]; ok && r.Kind == resources.KindWorkload {
			r = mine
			delete(own, r.Name)
		}
		told = append(told, r)
	}
	for _, r := range own {
		told = append(told, r)
	}
	return told
}

// newNodeSet sorts the resources, and completes and signs the commit.
func newNodeSet(told []*resources.Resource, c resources.Commit, key ed25519.PrivateKey) *nodeSet {
	resources.Sort(told)
	refs := resources.RefsOf(told)
	c.Hash = resources.Hash(refs)
	c.Sign(key)
	return &nodeSet{resources: told, refs: refs, commit: c}
}

// Save writes the whole View, network namespaces of all nodes included, to a
// file that LoadView reads: the operator's own last good configuration.
func (s *Snapshot) Save(path string) error {
	own := map[string]*resources.Resource{}
	for _, list := range s.own {
		for _, r := range list {
			own[r.Name] = r
		}
	}
	// Also policies that select nobody.
	all := slices.Concat(withOwn(s.shared, own), s.rules, s.network.policies, s.network.shards)
	// No node has the empty name: no agent takes this file for its own.
	set := newNodeSet(all, resources.Commit{Revision: s.view.Revision(), Epoch: s.epoch}, s.key)
	return resources.SaveFile(path, set.resources, &set.commit)
}

// LoadView reads what Snapshot.Save wrote. A file that is corrupt or signed by
// another key is refused, and kept aside; it returns nil, nil when there is no
// file.
func LoadView(path string, key ed25519.PublicKey) (*mesh.View, error) {
	_, view, err := resources.LoadFile(path, "", []ed25519.PublicKey{key})
	if errors.Is(err, resources.ErrNoFile) {
		return nil, nil
	}
	return view, err
}
