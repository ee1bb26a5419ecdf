package resources

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
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

// hashRoot hashes the leaves: the hash of a set.
func hashRoot(leaves *[leafCount]leafHash) []byte {
	h := sha256.New()
	h.Write([]byte("heddle set 2\n"))
	for i := range leaves {
		h.Write(leaves[i][:])
	}
	return h.Sum(nil)
}

// Shared is what many nodes are told: sorted resources and their hash tree, of
// which a node's own set costs only what is different in it. It is immutable and
// safe for concurrent use.
type Shared struct {
	all []*Resource
	// byLeaf has them by leaf, and sorted under each, which begins at start.
	byLeaf []*Resource
	start  [leafCount + 1]int32
	leaves [leafCount]leafHash
	root   leafHash

	// changes are what differs from others, by their roots: most agents hold
	// the one before.
	changes struct {
		sync.Mutex
		since map[leafHash][]Ref
	}
}

// NewShared makes a Shared of resources, which must be sorted and which it
// keeps. What is the same in last, nil or one from before, is not hashed again.
func NewShared(all []*Resource, last *Shared) *Shared {
	c := &Shared{all: all, byLeaf: make([]*Resource, len(all))}
	c.changes.since = map[leafHash][]Ref{}
	at := make([]uint16, len(all))
	for i, r := range all {
		at[i] = uint16(leafOf(r.Kind, r.Name))
		c.start[at[i]+1]++
	}
	for leaf := range leafCount {
		c.start[leaf+1] += c.start[leaf]
	}
	next := c.start
	for i, r := range all {
		c.byLeaf[next[at[i]]] = r
		next[at[i]]++
	}
	for leaf := range leafCount {
		list := c.under(leaf)
		if last != nil && slices.Equal(list, last.under(leaf)) {
			c.leaves[leaf] = last.leaves[leaf]
			continue
		}
		c.leaves[leaf] = hashLeaf(list)
	}
	copy(c.root[:], hashRoot(&c.leaves))
	return c
}

func (c *Shared) under(leaf int) []*Resource { return c.byLeaf[c.start[leaf]:c.start[leaf+1]] }

// All returns the resources, sorted: read only.
func (c *Shared) All() []*Resource { return c.all }

// Hash returns the hash of the set that has nothing else.
func (c *Shared) Hash() []byte { return c.root[:] }

// index returns the place of a resource in byLeaf.
func (c *Shared) index(k Kind, name string) (int, bool) {
	leaf := leafOf(k, name)
	i, ok := search(c.under(leaf), k, name)
	return int(c.start[leaf]) + i, ok
}

func search(sorted []*Resource, k Kind, name string) (int, bool) {
	return slices.BinarySearchFunc(sorted, Ref{Kind: k, Name: name}, func(r *Resource, want Ref) int { return CompareRefs(r.Ref, want) })
}

// since returns what is different in from, in order: read only.
func (c *Shared) since(from *Shared) []Ref {
	c.changes.Lock()
	defer c.changes.Unlock()
	if known, ok := c.changes.since[from.root]; ok {
		return known
	}
	var changed []Ref
	was, is := from.all, c.all
	for len(was) > 0 || len(is) > 0 {
		if len(was) > 0 && len(is) > 0 && was[0] == is[0] {
			was, is = was[1:], is[1:]
			continue
		}
		order := 1
		switch {
		case len(is) == 0:
			order = -1
		case len(was) > 0:
			order = CompareRefs(was[0].Ref, is[0].Ref)
		}
		if order <= 0 {
			changed, was = append(changed, was[0].Ref), was[1:]
		} else {
			changed = append(changed, is[0].Ref)
		}
		if order >= 0 {
			is = is[1:]
		}
	}
	c.changes.since[from.root] = changed
	return changed
}

// Own is a node's set: what is common, with the node's own in place of the same
// names, and beside them. It is immutable.
type Own struct {
	Shared *Shared
	own    []*Resource
	hash   []byte
}

// NewOwn makes a set of what is common and a node's own, which must be sorted.
func NewOwn(c *Shared, own []*Resource) *Own {
	o := &Own{Shared: c, own: own, hash: c.Hash()}
	if len(own) == 0 {
		return o
	}
	touched := map[int][]*Resource{}
	for _, r := range own {
		leaf := leafOf(r.Kind, r.Name)
		touched[leaf] = append(touched[leaf], r)
	}
	leaves := c.leaves
	for leaf, list := range touched {
		leaves[leaf] = hashLeaf(merge(c.under(leaf), list))
	}
	o.hash = hashRoot(&leaves)
	return o
}

// merge returns both lists as one; where names are equal, the second's.
func merge(common, own []*Resource) []*Resource {
	all := make([]*Resource, 0, len(common)+len(own))
	for len(common) > 0 || len(own) > 0 {
		order := 1
		switch {
		case len(own) == 0:
			order = -1
		case len(common) > 0:
			order = CompareRefs(common[0].Ref, own[0].Ref)
		}
		if order < 0 {
			all, common = append(all, common[0]), common[1:]
			continue
		}
		if order == 0 {
			common = common[1:]
		}
		all, own = append(all, own[0]), own[1:]
	}
	return all
}

// All returns the whole set, sorted.
func (o *Own) All() []*Resource { return merge(o.Shared.all, o.own) }

// Hash returns the hash of the set.
func (o *Own) Hash() []byte { return o.hash }

// find returns the resource of a name, or nil.
func (o *Own) find(k Kind, name string) *Resource {
	if i, ok := search(o.own, k, name); ok {
		return o.own[i]
	}
	if i, ok := o.Shared.index(k, name); ok {
		return o.Shared.byLeaf[i]
	}
	return nil
}
