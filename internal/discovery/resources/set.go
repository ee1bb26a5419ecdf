package resources

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// Set is a whole set that an agent has verified: immutable. The next one shares with
// it what did not change.
type Set struct {
	rows   [leafCount][]row // by leaf, sorted under each
	leaves leafHashes
	count  int // of rows
	size   int // bytes of their names and contents
	texts  *texts
	view   *mesh.View // nil until it was built
	routes []*route.Route
	// Commit is the one that was verified.
	Commit Commit
}

// put replaces what is under a leaf.
func (h *Set) put(leaf int, rows []row) {
	for i, list := range [2][]row{h.rows[leaf], rows} {
		sign := 2*i - 1
		h.count += sign * len(list)
		for j := range list {
			h.size += sign * (len(list[j].name) + int(list[j].size))
		}
	}
	h.rows[leaf] = rows
	var sum leafSum
	for i := range rows {
		sum.add(rows[i].kind, rows[i].name, rows[i].version.String())
	}
	h.leaves.put(leaf, sum.sum())
}

// fill puts all rows into an empty set.
func (h *Set) fill(rows []row) {
	byLeaf := map[int][]row{}
	for _, r := range rows {
		leaf := leafOf(r.kind, r.name)
		byLeaf[leaf] = append(byLeaf[leaf], r)
	}
	for leaf, list := range byLeaf {
		slices.SortFunc(list, compareRows)
		h.put(leaf, append(make([]row, 0, len(list)), list...))
	}
	h.findRoutes()
}

// sorted returns all rows in the order of a set: read only.
func (h *Set) sorted() []*row {
	all := make([]*row, 0, h.count)
	for leaf := range h.rows {
		for i := range h.rows[leaf] {
			all = append(all, &h.rows[leaf][i])
		}
	}
	slices.SortFunc(all, func(a, b *row) int { return compareRows(*a, *b) })
	return all
}

// Refs returns what is held, in order.
func (h *Set) Refs() []Ref {
	refs := make([]Ref, 0, h.count)
	for _, r := range h.sorted() {
		refs = append(refs, r.ref())
	}
	return refs
}

// Older returns the set without what an operator of the version before does not
// know, to be the base of what that one says; nil of nil.
func (h *Set) Older() *Set {
	if h == nil {
		return nil
	}
	older := *h
	older.view = nil
	for leaf, rows := range h.rows {
		older.put(leaf, slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return r.kind.Newer() }))
	}
	return &older
}

// Len returns the number of resources.
func (h *Set) Len() int { return h.count }

// Resources returns what is held as it came, in order. An error is its last.
func (h *Set) Resources() iter.Seq2[*Resource, error] {
	return func(yield func(*Resource, error) bool) {
		for _, row := range h.sorted() {
			r, err := row.resource()
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// View builds the model from what is held.
func (h *Set) View() (*mesh.View, error) {
	var c mesh.Change
	var network mesh.Network
	for _, r := range h.sorted() {
		r.changes(&c, &network)
	}
	if c.Settings == nil {
		return nil, errors.New("build view: the set has no Settings")
	}
	var err error
	h.view, err = mesh.ViewOf(h.Commit.Revision, *c.Settings, c.Workloads, c.Services, c.Policies, network)
	return h.view, err
}

// network returns what is held of NetworkPolicies.
func (h *Set) network() *mesh.Network {
	var c mesh.Change
	var n mesh.Network
	for leaf := range h.rows {
		for i := range h.rows[leaf] {
			if h.rows[leaf][i].kind.Newer() {
				h.rows[leaf][i].changes(&c, &n)
			}
		}
	}
	return &n
}

// Routes returns what is held of routes, sorted by name: read only. It is the same list for
// as long as none is different.
func (h *Set) Routes() []*route.Route { return h.routes }

// findRoutes lists the routes that are held.
func (h *Set) findRoutes() {
	h.routes = nil
	for leaf := range h.rows {
		for i := range h.rows[leaf] {
			if r, ok := h.rows[leaf][i].object.(*route.Route); ok {
				h.routes = append(h.routes, r)
			}
		}
	}
	slices.SortFunc(h.routes, func(a, b *route.Route) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.Key.Compare(b.Key)) })
}

// find returns the row of a name, or nil.
func (h *Set) find(k Kind, name string) *row {
	rows := h.rows[leafOf(k, name)]
	i, ok := slices.BinarySearchFunc(rows, row{kind: k, name: name}, compareRows)
	if !ok {
		return nil
	}
	return &rows[i]
}

func (h *Set) services() []*mesh.Service {
	var all []*mesh.Service
	for leaf := range h.rows {
		for i := range h.rows[leaf] {
			if s, ok := h.rows[leaf][i].object.(*mesh.Service); ok {
				all = append(all, s)
			}
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

// check verifies that the rows are what the commit was made over.
func (h *Set) check() error {
	if h.count > MaxSetSize || h.size > MaxSetBytes {
		return fmt.Errorf("the set has %d resources in %d bytes, more than %d or %d", h.count, h.size, MaxSetSize, MaxSetBytes)
	}
	if !bytes.Equal(hashRoot(&h.leaves, nil), h.Commit.Hash) {
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
	if err := h.check(); err != nil {
		return nil, nil, &Refusal{Reason: err, Resync: true}
	}
	h.shareNames(s.services())
	view, err := s.view(h)
	if err != nil {
		return nil, nil, &Refusal{Reason: err, Resync: false}
	}
	return h, view, nil
}

// view builds the model of the base with the changes, from the base's where there
// is one.
func (s *Staging) view(h *Set) (*mesh.View, error) {
	if s.base == nil || s.base.view == nil || s.removed[slot{KindSettings, settingsName}] {
		return h.View()
	}
	var c mesh.Change
	var n mesh.Network
	newer := false
	for at, r := range s.upserts {
		r.changes(&c, &n)
		newer = newer || at.kind.Newer()
	}
	for at := range s.removed {
		namespace, name, _ := strings.Cut(at.name, "/")
		key := mesh.Key{Namespace: namespace, Name: name}
		switch at.kind {
		case KindService:
			c.GoneServices = append(c.GoneServices, key)
		case KindWorkload:
			c.GoneWorkloads = append(c.GoneWorkloads, key)
		case KindPolicy:
			c.GonePolicies = append(c.GonePolicies, key)
		case KindRoute: // no part of a View
		default:
			newer = true
		}
	}
	if newer {
		c.Network = h.network()
	}
	var err error
	h.view, err = s.base.view.With(h.Commit.Revision, c)
	return h.view, err
}

// merge returns the base with the changes.
func (s *Staging) merge() *Set {
	h := &Set{}
	if s.base != nil {
		*h = *s.base
	}
	h.texts, h.view = s.texts, nil
	touched := map[int][]row{} // and what is put there
	for at, r := range s.upserts {
		leaf := leafOf(at.kind, at.name)
		touched[leaf] = append(touched[leaf], r)
	}
	for at := range s.removed {
		leaf := leafOf(at.kind, at.name)
		touched[leaf] = slices.Clip(touched[leaf])
	}
	for leaf, put := range touched {
		rows := make([]row, 0, len(h.rows[leaf])+len(put))
		for _, was := range h.rows[leaf] {
			at := slot{was.kind, was.name}
			if _, changed := s.upserts[at]; !changed && !s.removed[at] {
				rows = append(rows, was)
			}
		}
		rows = append(rows, put...)
		slices.SortFunc(rows, compareRows)
		h.put(leaf, rows)
	}
	if s.reroutes() {
		h.findRoutes()
	}
	return h
}

// reroutes reports whether a route is among the changes.
func (s *Staging) reroutes() bool {
	for at := range s.upserts {
		if at.kind == KindRoute {
			return true
		}
	}
	for at := range s.removed {
		if at.kind == KindRoute {
			return true
		}
	}
	return false
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
