package resources

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// Set is a whole set that an agent has verified: immutable.
type Set struct {
	rows   []row // sorted
	leaves [leafCount]leafHash
	texts  *texts
	// Commit is the one that was verified.
	Commit Commit
}

// size is how many bytes the names and contents of a set have.
func (h *Set) size() int {
	total := 0
	for i := range h.rows {
		total += len(h.rows[i].name) + int(h.rows[i].size)
	}
	return total
}

// Refs returns what is held, in order.
func (h *Set) Refs() []Ref {
	refs := make([]Ref, len(h.rows))
	for i := range h.rows {
		refs[i] = h.rows[i].ref()
	}
	return refs
}

// Older returns the set without what an operator of the version before does not
// know, to be the base of what that one says; nil of nil.
func (h *Set) Older() *Set {
	if h == nil {
		return nil
	}
	rows := slices.DeleteFunc(slices.Clone(h.rows), func(r row) bool { return r.kind.Newer() })
	older := &Set{rows: rows, texts: h.texts, Commit: h.Commit}
	older.hash(nil) // its leaves: a round touches only some
	return older
}

// Len returns the number of resources.
func (h *Set) Len() int { return len(h.rows) }

// Resources returns what is held as it came, in order. An error is its last.
func (h *Set) Resources() iter.Seq2[*Resource, error] {
	return func(yield func(*Resource, error) bool) {
		for i := range h.rows {
			r, err := h.rows[i].resource()
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// View builds the model from what is held.
func (h *Set) View() (*mesh.View, error) {
	var settings *mesh.Settings
	workloads := make([]*mesh.Workload, 0, len(h.rows))
	var services []*mesh.Service
	var policies []*mesh.Policy
	var network mesh.Network
	for i := range h.rows {
		switch object := h.rows[i].object.(type) {
		case *mesh.Settings:
			settings = object
		case *mesh.Service:
			services = append(services, object)
		case *mesh.Workload:
			workloads = append(workloads, object)
		case *mesh.Policy:
			policies = append(policies, object)
		case *netpolicy.Policy:
			network.Policies = append(network.Policies, *object)
		case *netpolicy.Shard:
			network.Sets = append(network.Sets, *object)
		}
	}
	if settings == nil {
		return nil, errors.New("build view: the set has no Settings")
	}
	return mesh.ViewOf(h.Commit.Revision, *settings, workloads, services, policies, network)
}

// find returns the row of a name, or nil.
func (h *Set) find(k Kind, name string) *row {
	i, ok := slices.BinarySearchFunc(h.rows, row{kind: k, name: name}, compareRows)
	if !ok {
		return nil
	}
	return &h.rows[i]
}

func (h *Set) services() []*mesh.Service {
	var all []*mesh.Service
	for i := range h.rows {
		if s, ok := h.rows[i].object.(*mesh.Service); ok {
			all = append(all, s)
		}
	}
	return all
}

// shareNames makes the endpoints of services refer to the workloads' names. The
// services must not be part of a View yet.
func (h *Set) shareNames(services []*mesh.Service) {
	for _, s := range services {
		for i, key := range s.Endpoints {
			if r := h.find(KindWorkload, key.String()); r != nil {
				s.Endpoints[i] = r.object.(*mesh.Workload).Key
			}
		}
	}
}

// hash fills in the leaves that were touched, nil for all, and returns the hash
// of the set.
func (h *Set) hash(touched *[leafCount]bool) []byte {
	var sums [leafCount]leafSum
	for i := range h.rows {
		r := &h.rows[i]
		if leaf := leafOf(r.kind, r.name); touched == nil || touched[leaf] {
			sums[leaf].add(r.kind, r.name, r.version.String())
		}
	}
	for leaf := range sums {
		if touched == nil || touched[leaf] {
			h.leaves[leaf] = sums[leaf].sum()
		}
	}
	return hashRoot(&h.leaves)
}

// Refusal is why a commit was not applied.
type Refusal struct {
	// Reason says what was wrong.
	Reason error
	// Resync is set when what the two ends believe to be held differs, so that
	// the whole set is asked for again on a new stream.
	Resync bool
}

// checkCommit verifies who made a commit, for whom, and that it is not older
// than the one that is applied (nil: none is).
func checkCommit(c *Commit, node string, keys []ed25519.PublicKey, applied *Commit) error {
	switch {
	case !c.verify(keys):
		return errors.New("signature is not by a configuration key of the operator that this node joined: join it again if the operator was made anew")
	case c.Node != node:
		return fmt.Errorf("configuration is for node %.100q, this is %q", c.Node, node)
	case applied != nil && c.Epoch < applied.Epoch && !bytes.Equal(c.Hash, applied.Hash):
		return fmt.Errorf("epoch %d is older than the applied %d: the operator's state went back", c.Epoch, applied.Epoch)
	}
	return nil
}

// check verifies that the rows are what the commit was made over. Touched are the
// leaves that are not known yet; nil for all.
func (h *Set) check(touched *[leafCount]bool) error {
	if size := h.size(); len(h.rows) > MaxSetSize || size > MaxSetBytes {
		return fmt.Errorf("the set has %d resources in %d bytes, more than %d or %d", len(h.rows), size, MaxSetSize, MaxSetBytes)
	}
	if !bytes.Equal(h.hash(touched), h.Commit.Hash) {
		return errors.New("hash of the set is not the committed one")
	}
	return nil
}

// slot names a resource regardless of its version.
type slot struct {
	kind Kind
	name string
}

// Staging collects the changes of one round over a base, until its commit.
type Staging struct {
	base    *Set // nil: nothing is held
	texts   *texts
	upserts map[slot]row
	removed map[slot]bool
	bytes   int
	// broken is the first thing that was wrong; the round cannot be applied.
	broken error
}

// NewStaging begins a round over what is held; nil is nothing.
func NewStaging(base *Set) *Staging {
	s := &Staging{base: base, upserts: map[slot]row{}, removed: map[slot]bool{}}
	if base != nil {
		s.texts = base.texts
	}
	s.texts = cmp.Or(s.texts, newTexts())
	return s
}

// Changes returns how many resources the round changes so far.
func (s *Staging) Changes() int { return len(s.upserts) + len(s.removed) }

// Break makes sure that the round is not applied. The first reason counts.
func (s *Staging) Break(reason error) { s.broken = cmp.Or(s.broken, reason) }

// Empty reports whether nothing is staged, over a base, and nothing was wrong.
func (s *Staging) Empty() bool { return s.Changes() == 0 && s.broken == nil && s.base != nil }

// Restart returns a new round over the same base.
func (s *Staging) Restart() *Staging { return NewStaging(s.base) }

// Add stages a resource. An error breaks the round.
func (s *Staging) Add(k Kind, name, version string, body []byte) error {
	d, err := decodeResource(k, name, version, body)
	if err == nil {
		if s.bytes += len(name) + len(body); s.bytes > MaxSetBytes || len(s.upserts) >= MaxSetSize {
			err = errors.New("stage changes: more than a set may hold")
		}
	}
	if err != nil {
		s.Break(err)
		return err
	}
	delete(s.removed, slot{k, name})
	s.upserts[slot{k, name}] = newRow(d, s.texts)
	return nil
}

// Remove stages a removal.
func (s *Staging) Remove(k Kind, name string) error {
	if len(s.removed) >= MaxSetSize || len(name) > MaxName {
		err := errors.New("stage removals: more than a set may hold")
		s.Break(err)
		return err
	}
	delete(s.upserts, slot{k, name})
	s.removed[slot{k, name}] = true
	return nil
}

// Close applies the round to the base, all of it or nothing.
func (s *Staging) Close(c *Commit, node string, keys []ed25519.PublicKey, applied *Commit) (*Set, *mesh.View, *Refusal) {
	if s.broken != nil {
		return nil, nil, &Refusal{Reason: s.broken, Resync: true}
	}
	if err := checkCommit(c, node, keys, applied); err != nil {
		return nil, nil, &Refusal{Reason: err, Resync: false}
	}
	if applied != nil && c.Epoch < applied.Epoch {
		// Another replica has the same from an earlier moment: the epoch that
		// was reached stays, so that nothing else may go back behind it.
		c = &Commit{Node: c.Node, Revision: applied.Revision, Epoch: applied.Epoch, Hash: c.Hash, signature: applied.signature}
	}
	h := s.merge()
	h.Commit = *c
	if err := h.check(s.touched()); err != nil {
		return nil, nil, &Refusal{Reason: err, Resync: true}
	}
	h.shareNames(s.services())
	view, err := h.View()
	if err != nil {
		return nil, nil, &Refusal{Reason: err, Resync: false}
	}
	return h, view, nil
}

// merge returns the base with the changes.
func (s *Staging) merge() *Set {
	changed := make([]row, 0, len(s.upserts))
	for _, r := range s.upserts {
		changed = append(changed, r)
	}
	slices.SortFunc(changed, compareRows)
	h := &Set{texts: s.texts}
	if s.base == nil {
		h.rows = changed
		return h
	}
	h.leaves = s.base.leaves
	h.rows = make([]row, 0, len(s.base.rows)+len(changed))
	for i := range s.base.rows {
		was := &s.base.rows[i]
		for len(changed) > 0 && compareRows(changed[0], *was) < 0 {
			h.rows, changed = append(h.rows, changed[0]), changed[1:]
		}
		switch {
		case len(changed) > 0 && compareRows(changed[0], *was) == 0:
			h.rows, changed = append(h.rows, changed[0]), changed[1:]
		case !s.removed[slot{was.kind, was.name}]:
			h.rows = append(h.rows, *was)
		}
	}
	h.rows = slices.Clip(append(h.rows, changed...))
	return h
}

// touched are the leaves that the changes are under; nil means all.
func (s *Staging) touched() *[leafCount]bool {
	if s.base == nil {
		return nil
	}
	var touched [leafCount]bool
	for at := range s.upserts {
		touched[leafOf(at.kind, at.name)] = true
	}
	for at := range s.removed {
		touched[leafOf(at.kind, at.name)] = true
	}
	return &touched
}

// services are those among the changes.
func (s *Staging) services() []*mesh.Service {
	var all []*mesh.Service
	for _, r := range s.upserts {
		if service, ok := r.object.(*mesh.Service); ok {
			all = append(all, service)
		}
	}
	return all
}
