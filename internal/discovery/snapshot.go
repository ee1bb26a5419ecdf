package discovery

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
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

	// told, whole, services and rules run parallel to the View's lists. Other
	// nodes are told less of a workload than its own, or, where told is nil,
	// nothing.
	told, whole, services, rules []*resources.Resource
	network                      encodedNetwork
	// shared is what every node is told but for its own workloads; own are
	// those, and policies what else its own node is told, sorted, by node.
	shared   *resources.Shared
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
	*resources.Own
	commit resources.Commit
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
	h.Write(s.shared.Hash())
	for _, list := range [][]*resources.Resource{s.rules, s.whole, s.network.policies, s.network.shards} {
		for _, r := range list {
			io.WriteString(h, r.Version) // of one length each; a hash returns no error
		}
		h.Write([]byte("\n"))
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func (s *Snapshot) encode(last *Snapshot) error {
	settings, err := resources.EncodeSettings(s.view.Settings())
	if err != nil {
		return err
	}
	s.services, err = encodeAll(s.view.Services(), last.view.Services(), last.services,
		func(v *mesh.Service) mesh.Key { return v.Key }, equalServices, alone(resources.EncodeService))
	if err != nil {
		return err
	}
	s.told, err = encodeAll(s.view.Workloads(), last.view.Workloads(), last.told,
		func(v *mesh.Workload) mesh.Key { return v.Key }, equalTold, alone(encodeTold))
	if err != nil {
		return err
	}
	s.whole, err = encodeAll(s.view.Workloads(), last.view.Workloads(), last.whole,
		func(v *mesh.Workload) mesh.Key { return v.Key }, equalWhole, func(i int, w *mesh.Workload) (*resources.Resource, error) {
			r, err := resources.EncodeWorkload(w)
			if err == nil && s.told[i] != nil {
				r.Name = s.told[i].Name // kept once
			}
			return r, err
		})
	if err != nil {
		return err
	}
	s.rules, err = encodeAll(s.view.Policies(), last.view.Policies(), last.rules,
		func(v *mesh.Policy) mesh.Key { return v.Key }, func(a, b *mesh.Policy) bool { return reflect.DeepEqual(a, b) }, alone(resources.EncodePolicy))
	if err != nil {
		return err
	}
	if err := s.encodeNetwork(last); err != nil {
		return err
	}
	all := append(make([]*resources.Resource, 0, 1+len(s.services)+len(s.told)), settings)
	all = append(all, s.services...)
	for i, r := range s.told {
		if r != nil {
			all = append(all, r)
		}
		if r == nil || r.Version != s.whole[i].Version {
			node := s.view.Workloads()[i].Node
			s.own[node] = append(s.own[node], s.whole[i])
		}
	}
	resources.Sort(all)
	s.shared = resources.NewShared(all, last.shared)
	s.spreadPolicies()
	s.spreadNetwork()
	return nil
}

// encodeAll encodes objects, or takes over what is known of equal ones: last
// and known run parallel, and like objects are sorted by key. What is taken over is
// part of a snapshot that others read, so it stays as it is. Encode is told the
// object's index.
func encodeAll[T any](objects, last []*T, known []*resources.Resource, key func(*T) mesh.Key, equal func(a, b *T) bool,
	encode func(int, *T) (*resources.Resource, error)) ([]*resources.Resource, error) {
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
		r, err := encode(i, object)
		if err != nil {
			return nil, err
		}
		encoded[i] = r
	}
	return encoded, nil
}

// alone is an encoding that does not depend on the index.
func alone[T any](encode func(*T) (*resources.Resource, error)) func(int, *T) (*resources.Resource, error) {
	return func(_ int, object *T) (*resources.Resource, error) { return encode(object) }
}

// encodeTold encodes what other nodes are told of a workload: how it is reached
// and who it is, not what is enforced where it runs. Nothing is told of one that
// has no address yet, with which they could not do anything.
func encodeTold(w *mesh.Workload) (*resources.Resource, error) {
	if len(w.Addresses) == 0 {
		return nil, nil
	}
	return resources.EncodeWorkload(&mesh.Workload{Key: w.Key, ServiceAccount: w.ServiceAccount, Node: w.Node, Identity: w.Identity,
		Addresses: w.Addresses, Enrolled: w.Enrolled, Ready: w.Ready, Zone: w.Zone})
}

// equalTold reports whether other nodes are told the same of two workloads.
func equalTold(a, b *mesh.Workload) bool {
	return a.Key == b.Key && a.ServiceAccount == b.ServiceAccount && a.Node == b.Node && a.Identity == b.Identity &&
		a.Enrolled == b.Enrolled && a.Ready == b.Ready && a.Zone == b.Zone && slices.Equal(a.Addresses, b.Addresses)
}

// equalWhole reports whether a workload's own node is told the same of two.
func equalWhole(a, b *mesh.Workload) bool {
	return equalTold(a, b) && a.NetNS == b.NetNS && a.UID == b.UID && a.Mode == b.Mode &&
		slices.Equal(a.ProbePorts, b.ProbePorts) && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.PortModes, b.PortModes)
}

func equalServices(a, b *mesh.Service) bool {
	return a.Key == b.Key && a.Prefer == b.Prefer && a.Sticky == b.Sticky && slices.Equal(a.Addresses, b.Addresses) &&
		slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Endpoints, b.Endpoints)
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

// forNode returns what a node is told, and its signed commit.
func (s *Snapshot) forNode(to told) *nodeSet {
	s.sets.Lock()
	defer s.sets.Unlock()
	if set, ok := s.sets.byNode[to]; ok {
		return set
	}
	own := slices.Concat(s.own[to.node], s.policies[to.node])
	if to.newer {
		own = append(own, s.network.of(s.view, to.node)...)
	}
	resources.Sort(own)
	set := s.newNodeSet(resources.NewOwn(s.shared, own), to.node)
	s.sets.byNode[to] = set
	return set
}

// newNodeSet signs a set for a node.
func (s *Snapshot) newNodeSet(own *resources.Own, node string) *nodeSet {
	c := resources.Commit{Node: node, Revision: s.view.Revision(), Epoch: s.epoch, Hash: own.Hash()}
	c.Sign(s.key)
	return &nodeSet{Own: own, commit: c}
}

// Save writes the whole View, network namespaces of all nodes included, to a
// file that LoadView reads: the operator's own last good configuration.
func (s *Snapshot) Save(path string) error {
	// Also policies that select nobody.
	all := slices.Concat(s.whole, s.rules, s.network.policies, s.network.shards)
	resources.Sort(all)
	// No node has the empty name: no agent takes this file for its own.
	set := s.newNodeSet(resources.NewOwn(s.shared, all), "")
	return resources.SaveFile(path, resources.Listed(set.All()), &set.commit)
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
