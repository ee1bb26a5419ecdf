package resources

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Set is a whole set that an agent has verified: immutable.
type Set struct {
	items []*decoded // sorted
	// Commit is the one that was verified.
	Commit Commit
}

// sizeOf is how many bytes the names and contents of a set have.
func sizeOf(items []*decoded) int {
	total := 0
	for _, d := range items {
		total += len(d.Name) + len(d.Body)
	}
	return total
}

// Refs returns what is held, in order.
func (h *Set) Refs() []Ref {
	refs := make([]Ref, len(h.items))
	for i, d := range h.items {
		refs[i] = d.Ref
	}
	return refs
}

// Older returns the set without what an operator of the version before does not
// know, to be the base of what that one says; nil of nil.
func (h *Set) Older() *Set {
	if h == nil {
		return nil
	}
	items := slices.DeleteFunc(slices.Clone(h.items), func(d *decoded) bool { return d.Kind.Newer() })
	return &Set{items: items, Commit: h.Commit}
}

// Len returns the number of resources.
func (h *Set) Len() int { return len(h.items) }

// Resources returns the items without what is in them.
func (h *Set) Resources() []*Resource {
	all := make([]*Resource, len(h.items))
	for i, d := range h.items {
		all[i] = d.Resource
	}
	return all
}

// View builds the model from what is held.
func (h *Set) View() (*mesh.View, error) {
	var o objects
	for _, d := range h.items {
		switch {
		case d.settings != nil:
			o.settings = d.settings
		case d.service != nil:
			o.services = append(o.services, *d.service)
		case d.workload != nil:
			o.workloads = append(o.workloads, *d.workload)
		case d.policy != nil:
			o.policies = append(o.policies, *d.policy)
		case d.network != nil:
			o.network.Policies = append(o.network.Policies, *d.network)
		case d.shard != nil:
			o.network.Sets = append(o.network.Sets, *d.shard)
		}
	}
	if o.settings == nil {
		return nil, errors.New("build view: the set has no Settings")
	}
	return mesh.NewNetworkView(h.Commit.Revision, *o.settings, o.workloads, o.services, o.policies, o.network)
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

// checkSet verifies that the items are what the commit was made over.
func checkSet(items []*decoded, c *Commit) error {
	if len(items) > MaxSetSize || sizeOf(items) > MaxSetBytes {
		return fmt.Errorf("the set has %d resources in %d bytes, more than %d or %d", len(items), sizeOf(items), MaxSetSize, MaxSetBytes)
	}
	refs := (&Set{items: items}).Refs()
	if !bytes.Equal(Hash(refs), c.Hash) {
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
	upserts map[slot]*decoded
	removed map[slot]bool
	bytes   int
	// broken is the first thing that was wrong; the round cannot be applied.
	broken error
}

// NewStaging begins a round over what is held; nil is nothing.
func NewStaging(base *Set) *Staging {
	return &Staging{base: base, upserts: map[slot]*decoded{}, removed: map[slot]bool{}}
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
	s.upserts[slot{k, name}] = d
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
	h := &Set{items: s.merge(), Commit: *c}
	if err := checkSet(h.items, c); err != nil {
		return nil, nil, &Refusal{Reason: err, Resync: true}
	}
	view, err := h.View()
	if err != nil {
		return nil, nil, &Refusal{Reason: err, Resync: false}
	}
	return h, view, nil
}

func (s *Staging) merge() []*decoded {
	var base []*decoded
	if s.base != nil {
		base = s.base.items
	}
	items := make([]*decoded, 0, len(base)+len(s.upserts))
	for _, d := range base {
		at := slot{d.Kind, d.Name}
		if s.removed[at] || s.upserts[at] != nil {
			continue
		}
		items = append(items, d)
	}
	for _, d := range s.upserts {
		items = append(items, d)
	}
	slices.SortFunc(items, func(a, b *decoded) int { return CompareRefs(a.Ref, b.Ref) })
	return items
}
