package resources

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
)

// leafCount is the number of leaves of a set's hash tree. It is part of what a
// commit signs: both ends must have the same.
const leafCount = 1 << 10

// leafOf returns the leaf that a resource of a name is under: FNV-1a.
func leafOf(k Kind, name string) int {
	hash := uint32(2166136261)
	hash = (hash ^ uint32(k)) * 16777619
	for i := range len(name) {
		hash = (hash ^ uint32(name[i])) * 16777619
	}
	return int((hash ^ hash>>16) % leafCount)
}

type leafHash = [sha256.Size]byte

// leafHashes are those of all leaves, in one piece so that they are hashed at once.
type leafHashes [leafCount * sha256.Size]byte

func (l *leafHashes) at(leaf int) []byte       { return l[leaf*sha256.Size : (leaf+1)*sha256.Size] }
func (l *leafHashes) put(leaf int, h leafHash) { copy(l.at(leaf), h[:]) }

// leafSum hashes the sorted names and versions under one leaf; that of none is
// zero.
type leafSum struct{ text []byte }

func (l *leafSum) add(k Kind, name, version string) {
	for _, part := range [...]string{k.String(), name, version} {
		l.text = append(binary.BigEndian.AppendUint32(l.text, uint32(len(part))), part...)
	}
}

func (l *leafSum) sum() leafHash {
	if len(l.text) == 0 {
		return leafHash{}
	}
	return sha256.Sum256(l.text)
}

func hashLeaf(list []*Resource) leafHash {
	l := leafSum{make([]byte, 0, 128*len(list))}
	for _, r := range list {
		l.add(r.Kind, r.Name, r.Version)
	}
	return l.sum()
}

// leafHashOf is the hash of one leaf.
type leafHashOf struct {
	leaf int
	hash leafHash
}

// hashRoot hashes the leaves, some of them, in order, replaced: the hash of a set.
func hashRoot(leaves *leafHashes, replaced []leafHashOf) []byte {
	h := sha256.New()
	h.Write([]byte("heddle set 2\n"))
	from := 0
	for i := range replaced {
		at := replaced[i].leaf * sha256.Size
		h.Write(leaves[from:at])
		h.Write(replaced[i].hash[:])
		from = at + sha256.Size
	}
	h.Write(leaves[from:])
	return h.Sum(nil)
}

// Shared is what many nodes are told: sorted resources and their hash tree, of
// which a node's own set costs only what is different in it. It is immutable and
// safe for concurrent use.
type Shared struct {
	all []*Resource
	// byLeaf has them by leaf, and sorted under each.
	byLeaf [leafCount][]*Resource
	leaves leafHashes
	root   leafHash
	// encoded are the leaves' resources as they are sent.
	encoded [leafCount]*encodedLeaf

	// changes are what differs from others, by their roots: most agents hold
	// the one before.
	changes struct {
		sync.Mutex
		since map[leafHash][]Ref
	}
}

// NewShared makes a Shared of resources, which must be sorted and which it keeps.
func NewShared(all []*Resource) *Shared {
	c := &Shared{all: all}
	for leaf, list := range byLeaf(all) {
		c.byLeaf[leaf] = list
		c.leaves.put(leaf, hashLeaf(list))
	}
	return c.rooted()
}

func byLeaf(sorted []*Resource) map[int][]*Resource {
	lists := map[int][]*Resource{}
	for _, r := range sorted {
		leaf := leafOf(r.Kind, r.Name)
		lists[leaf] = append(lists[leaf], r)
	}
	return lists
}

func (c *Shared) rooted() *Shared {
	copy(c.root[:], hashRoot(&c.leaves, nil))
	for leaf := range c.encoded {
		if c.encoded[leaf] == nil && len(c.byLeaf[leaf]) > 0 {
			c.encoded[leaf] = &encodedLeaf{}
		}
	}
	c.changes.since = map[leafHash][]Ref{}
	return c
}

// With returns a Shared with some resources put into it, in place of those of the
// same names, and others taken out. It costs what changed, and eight bytes copied
// for each resource.
func (c *Shared) With(put []*Resource, gone []Ref) *Shared {
	put, gone = slices.Clone(put), slices.Clone(gone)
	Sort(put)
	slices.SortFunc(gone, CompareRefs)
	if len(put) == 0 && len(gone) == 0 {
		return c
	}
	next := &Shared{all: spliced(c.all, put, gone), byLeaf: c.byLeaf, leaves: c.leaves, encoded: c.encoded}
	goneOf := map[int][]Ref{}
	putOf := byLeaf(put)
	for _, ref := range gone {
		leaf := leafOf(ref.Kind, ref.Name)
		goneOf[leaf] = append(goneOf[leaf], ref)
		putOf[leaf] = slices.Clip(putOf[leaf]) // touched, also where nothing is put
	}
	for leaf, list := range putOf {
		next.byLeaf[leaf] = spliced(c.byLeaf[leaf], list, goneOf[leaf])
		next.leaves.put(leaf, hashLeaf(next.byLeaf[leaf]))
		next.encoded[leaf] = nil
	}
	return next.rooted()
}

// spliced returns a sorted list with some resources put into it and others taken
// out, both sorted.
func spliced(base, put []*Resource, gone []Ref) []*Resource {
	next := make([]*Resource, 0, len(base)+len(put))
	for len(put) > 0 || len(gone) > 0 {
		var ref Ref
		if len(put) > 0 && (len(gone) == 0 || CompareRefs(put[0].Ref, gone[0]) <= 0) {
			ref = put[0].Ref
		} else {
			ref = gone[0]
		}
		at, is := search(base, ref.Kind, ref.Name)
		next, base = append(next, base[:at]...), base[at:]
		if is {
			base = base[1:]
		}
		if len(put) > 0 && CompareRefs(put[0].Ref, ref) == 0 {
			next, put = append(next, put[0]), put[1:]
		}
		if len(gone) > 0 && CompareRefs(gone[0], ref) == 0 {
			gone = gone[1:]
		}
	}
	return append(next, base...)
}

// All returns the resources, sorted: read only.
func (c *Shared) All() []*Resource { return c.all }

// Hash returns the hash of the set that has nothing else.
func (c *Shared) Hash() []byte { return c.root[:] }

// Find returns the resource of a name, or nil.
func (c *Shared) Find(k Kind, name string) *Resource {
	list := c.byLeaf[leafOf(k, name)]
	if i, ok := search(list, k, name); ok {
		return list[i]
	}
	return nil
}

func search(sorted []*Resource, k Kind, name string) (int, bool) {
	return slices.BinarySearchFunc(sorted, Ref{Kind: k, Name: name}, func(r *Resource, want Ref) int {
		return cmp.Or(cmp.Compare(r.Kind, want.Kind), strings.Compare(r.Name, want.Name))
	})
}

// since returns what is different in from, in order: read only.
func (c *Shared) since(from *Shared) []Ref {
	c.changes.Lock()
	defer c.changes.Unlock()
	if known, ok := c.changes.since[from.root]; ok {
		return known
	}
	var changed []Ref
	for leaf := range leafCount {
		if bytes.Equal(c.leaves.at(leaf), from.leaves.at(leaf)) {
			continue
		}
		for _, lists := range [][2][]*Resource{{c.byLeaf[leaf], from.byLeaf[leaf]}, {from.byLeaf[leaf], c.byLeaf[leaf]}} {
			for _, r := range lists[0] {
				if i, ok := search(lists[1], r.Kind, r.Name); !ok || lists[1][i].Version != r.Version {
					changed = append(changed, r.Ref)
				}
			}
		}
	}
	changed = sortedRefs(changed)
	c.changes.since[from.root] = changed
	return changed
}

// sortedRefs returns names in order, each once; it may change the list.
func sortedRefs(refs []Ref) []Ref {
	slices.SortFunc(refs, CompareRefs)
	return slices.CompactFunc(refs, func(a, b Ref) bool { return CompareRefs(a, b) == 0 })
}

// List is what one node alone is told; immutable.
type List struct {
	sorted []*Resource
	leaves []leafList // in order
}

type leafList struct {
	leaf int
	list []*Resource
}

// NewList makes a List of resources, which must be sorted and which it keeps.
func NewList(sorted []*Resource) *List {
	l := &List{sorted: sorted}
	for leaf, list := range byLeaf(sorted) {
		l.leaves = append(l.leaves, leafList{leaf, list})
	}
	slices.SortFunc(l.leaves, func(a, b leafList) int { return cmp.Compare(a.leaf, b.leaf) })
	return l
}

// All returns the resources, sorted: read only.
func (l *List) All() []*Resource { return l.sorted }

func (l *List) find(k Kind, name string) *Resource {
	if i, ok := search(l.sorted, k, name); ok {
		return l.sorted[i]
	}
	return nil
}

// Own is a node's set: what is common, with the node's own in place of the same
// names, and beside them. It is immutable.
type Own struct {
	Shared *Shared
	own    *List
	leaves []leafHashOf // those that are not as in Shared, in order
	hash   []byte
}

// NewOwn makes a set of what is common and a node's own. What is the same in last,
// nil or the node's set from before, is not hashed again.
func NewOwn(c *Shared, own *List, last *Own) *Own {
	o := &Own{Shared: c, own: own, hash: c.Hash()}
	if len(own.leaves) == 0 {
		return o
	}
	same := last != nil && last.own == own
	o.leaves = make([]leafHashOf, len(own.leaves))
	for i, l := range own.leaves {
		if same && bytes.Equal(c.leaves.at(l.leaf), last.Shared.leaves.at(l.leaf)) {
			o.leaves[i] = last.leaves[i]
			continue
		}
		o.leaves[i] = leafHashOf{l.leaf, hashLeaf(merge(c.byLeaf[l.leaf], l.list))}
	}
	o.hash = hashRoot(&c.leaves, o.leaves)
	return o
}

// merge returns both lists as one; where names are equal, the second's.
func merge(common, own []*Resource) []*Resource { return spliced(common, own, nil) }

// All returns the whole set, sorted.
func (o *Own) All() []*Resource { return merge(o.Shared.all, o.own.sorted) }

// Alone returns what the node is told besides, or in place of, what is shared.
func (o *Own) Alone() []*Resource { return o.own.sorted }

// Hash returns the hash of the set.
func (o *Own) Hash() []byte { return o.hash }

// find returns the resource of a name, or nil.
func (o *Own) find(k Kind, name string) *Resource {
	if r := o.own.find(k, name); r != nil {
		return r
	}
	return o.Shared.Find(k, name)
}
