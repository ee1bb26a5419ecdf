package resources

import (
	"math/bits"
	"slices"
)

// Held is what one agent is known to have: what it said when it connected, or
// the set that it applied. It costs little where that is much of a Shared. It
// belongs to one goroutine.
type Held struct {
	shared *Shared
	// lacks has a bit for each of shared's byLeaf that is not held as it is;
	// nil when all are.
	lacks []uint64
	// other is held besides, or in place of what is shared; sorted by Seal.
	other []Ref
}

// HeldOf returns what an agent has that applied a set.
func HeldOf(o *Own) *Held { return &Held{shared: o.Shared, other: RefsOf(o.own)} }

// NewHeld returns what an agent has that has nothing. What it says next that it
// has is compared with newest, which most agents have; nil when there is none.
func NewHeld(newest *Shared) *Held {
	if newest == nil {
		newest = NewShared(nil, nil)
	}
	h := &Held{shared: newest, lacks: make([]uint64, (len(newest.all)+63)/64)}
	for i := range newest.all {
		h.lacks[i/64] |= 1 << (i % 64)
	}
	return h
}

// Add notes one more that the agent has. Seal follows the last.
func (h *Held) Add(ref Ref) {
	i, ok := h.shared.index(ref.Kind, ref.Name)
	if ok && h.shared.byLeaf[i].Version == ref.Version {
		h.lacks[i/64] &^= 1 << (i % 64)
		return
	}
	h.other = append(h.other, ref)
}

// Seal ends what the agent says that it has.
func (h *Held) Seal() { slices.SortFunc(h.other, CompareRefs) }

// version returns which one of a name is held; "" for none.
func (h *Held) version(k Kind, name string) string {
	if i, ok := slices.BinarySearchFunc(h.other, Ref{Kind: k, Name: name}, CompareRefs); ok {
		return h.other[i].Version
	}
	i, ok := h.shared.index(k, name)
	if !ok || h.lacks != nil && h.lacks[i/64]&(1<<(i%64)) != 0 {
		return ""
	}
	return h.shared.byLeaf[i].Version
}

// nothing reports whether the agent has nothing.
func (h *Held) nothing() bool {
	lacking := 0
	for _, word := range h.lacks {
		lacking += bits.OnesCount64(word)
	}
	return len(h.other) == 0 && lacking == len(h.shared.all)
}

// Changes is the difference between two sets, each list in order.
type Changes struct {
	Upserts []*Resource
	Removed []Ref
}

// Empty reports whether the two sets are equal.
func (c Changes) Empty() bool { return len(c.Upserts) == 0 && len(c.Removed) == 0 }

// Difference returns what turns what is held into want. It costs what may differ,
// not the size of the sets, unless nothing is held.
func Difference(held *Held, want *Own) Changes {
	if held.nothing() {
		return Changes{Upserts: want.All()}
	}
	var c Changes
	for _, ref := range held.doubtful(want) {
		have, wanted := held.version(ref.Kind, ref.Name), want.find(ref.Kind, ref.Name)
		switch {
		case wanted == nil && have != "":
			c.Removed = append(c.Removed, ref)
		case wanted != nil && wanted.Version != have:
			c.Upserts = append(c.Upserts, wanted)
		}
	}
	return c
}

// doubtful returns the names that may differ in want, in order.
func (h *Held) doubtful(want *Own) []Ref {
	refs := slices.Concat(h.other, RefsOf(want.own))
	if h.shared != want.Shared {
		refs = append(refs, want.Shared.since(h.shared)...)
	}
	for at, word := range h.lacks {
		for ; word != 0; word &= word - 1 {
			refs = append(refs, h.shared.byLeaf[at*64+bits.TrailingZeros64(word)].Ref)
		}
	}
	slices.SortFunc(refs, CompareRefs)
	return slices.CompactFunc(refs, func(a, b Ref) bool { return CompareRefs(a, b) == 0 })
}
