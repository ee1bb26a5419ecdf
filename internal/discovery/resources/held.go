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
	// lacks has a bit for each of shared's that is not held as it is; nil when all are.
	lacks []uint64
	// own is held besides, or in place of what is shared, and so is other.
	own   *List
	other []Ref // sorted by Seal
}

// HeldOf returns what an agent has that applied a set.
func HeldOf(o *Own) *Held { return &Held{shared: o.Shared, own: o.own} }

// NewHeld returns what an agent has that has nothing. What it says next that it
// has is compared with newest, which most agents have; nil when there is none.
func NewHeld(newest *Shared) *Held {
	if newest == nil {
		newest = NewShared(nil)
	}
	h := &Held{shared: newest, own: NewList(nil), lacks: make([]uint64, (len(newest.all)+63)/64)}
	for i := range newest.all {
		h.lacks[i/64] |= 1 << (i % 64)
	}
	return h
}

// Add notes one more that the agent has. Seal follows the last.
func (h *Held) Add(ref Ref) {
	i, ok := search(h.shared.all, ref.Kind, ref.Name)
	if ok && h.shared.all[i].Version == ref.Version {
		h.lacks[i/64] &^= 1 << (i % 64)
		return
	}
	h.other = append(h.other, ref)
}

// Seal ends what the agent says that it has.
func (h *Held) Seal() { slices.SortFunc(h.other, CompareRefs) }

// version returns which one of a name is held; "" for none.
func (h *Held) version(k Kind, name string) string {
	if r := h.own.find(k, name); r != nil {
		return r.Version
	}
	if i, ok := slices.BinarySearchFunc(h.other, Ref{Kind: k, Name: name}, CompareRefs); ok {
		return h.other[i].Version
	}
	if h.lacks == nil {
		if r := h.shared.Find(k, name); r != nil {
			return r.Version
		}
		return ""
	}
	i, ok := search(h.shared.all, k, name)
	if !ok || h.lacks[i/64]&(1<<(i%64)) != 0 {
		return ""
	}
	return h.shared.all[i].Version
}

// Nothing reports whether the agent has nothing.
func (h *Held) Nothing() bool {
	lacking := 0
	for _, word := range h.lacks {
		lacking += bits.OnesCount64(word)
	}
	return len(h.other) == 0 && len(h.own.sorted) == 0 && lacking == len(h.shared.all)
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
	if held.Nothing() {
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
	refs := slices.Clone(h.other)
	if h.own != want.own {
		refs = append(append(refs, RefsOf(h.own.sorted)...), RefsOf(want.own.sorted)...)
	}
	if h.shared != want.Shared {
		refs = append(refs, want.Shared.since(h.shared)...)
	}
	for at, word := range h.lacks {
		for ; word != 0; word &= word - 1 {
			refs = append(refs, h.shared.all[at*64+bits.TrailingZeros64(word)].Ref)
		}
	}
	return sortedRefs(refs)
}
