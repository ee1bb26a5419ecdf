package resources

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// naiveDifference compares two whole sets, sorted: the oracle of Difference.
func naiveDifference(held []Ref, want []*Resource) Changes {
	have := map[slot]string{}
	for _, ref := range held {
		have[slot{ref.Kind, ref.Name}] = ref.Version
	}
	var c Changes
	for _, r := range want {
		if have[slot{r.Kind, r.Name}] != r.Version {
			c.Upserts = append(c.Upserts, r)
		}
		delete(have, slot{r.Kind, r.Name})
	}
	for at, version := range have {
		c.Removed = append(c.Removed, Ref{at.kind, at.name, version})
	}
	slices.SortFunc(c.Removed, CompareRefs)
	return c
}

// genSet draws sorted resources of few names and contents, so that sets have
// much in common.
func genSet(most int) *rapid.Generator[[]*Resource] {
	return rapid.Custom(func(t *rapid.T) []*Resource {
		named := map[slot]*Resource{}
		for range rapid.IntRange(0, most).Draw(t, "resources") {
			k := Kind(rapid.IntRange(0, int(KindCount)-1).Draw(t, "kind"))
			name := fmt.Sprintf("ns/%d", rapid.IntRange(0, 40).Draw(t, "name"))
			named[slot{k, name}] = newResource(k, name, []byte{byte(rapid.IntRange(0, 2).Draw(t, "body"))})
		}
		var all []*Resource
		for _, r := range named {
			all = append(all, r)
		}
		Sort(all)
		return all
	})
}

func drawOwn(t *rapid.T, name string, last *Own) *Own {
	common, own := genSet(60).Draw(t, name+" common"), NewList(genSet(10).Draw(t, name+" own"))
	if last == nil {
		return NewOwn(NewShared(common), own, nil)
	}
	if rapid.Bool().Draw(t, "as before") {
		own = last.own
	}
	d := naiveDifference(RefsOf(last.Shared.All()), common)
	return NewOwn(last.Shared.With(d.Upserts, d.Removed), own, last)
}

func sameRefs(a, b []Ref) bool {
	return slices.EqualFunc(a, b, func(a, b Ref) bool { return CompareRefs(a, b) == 0 })
}

// What a server knows of an agent, in whichever way, gives the same changes as
// comparing all of both sets; and both ends hash a set alike.
func TestDifferenceIsThatOfWholeSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		was := drawOwn(t, "was", nil)
		want := drawOwn(t, "want", was)
		oracle := naiveDifference(RefsOf(was.All()), want.All())
		newest := drawOwn(t, "newest", nil).Shared
		for name, held := range map[string]*Held{
			"applied": HeldOf(was), "told before the first": told(nil, was), "told beside another": told(newest, was), "told beside its own": told(was.Shared, was), "told beside the wanted": told(want.Shared, was),
		} {
			got := Difference(held, want)
			if !slices.Equal(got.Upserts, oracle.Upserts) || !sameRefs(got.Removed, oracle.Removed) {
				t.Fatalf("%s: %d and %d changes, want %d and %d", name, len(got.Upserts), len(got.Removed), len(oracle.Upserts), len(oracle.Removed))
			}
		}
		if !bytes.Equal(want.Hash(), hashOfRows(want.All())) || !bytes.Equal(want.Shared.Hash(), hashOfRows(want.Shared.All())) {
			t.Fatal("the two ends hash a set differently")
		}
		if bytes.Equal(was.Hash(), want.Hash()) != oracle.Empty() {
			t.Fatal("equal hashes of different sets, or the other way round")
		}
	})
}

func told(newest *Shared, set *Own) *Held {
	h := NewHeld(newest)
	for _, ref := range RefsOf(set.All()) {
		h.Add(ref)
	}
	h.Seal()
	return h
}

// rowsOf are the rows of resources whose contents nobody looks at.
func rowsOf(all []*Resource) (rows []row) {
	for _, r := range all {
		rows = append(rows, row{kind: r.Kind, name: r.Name, version: digestOf(r.Kind, r.Name, r.Body), size: uint32(len(r.Body))})
	}
	return rows
}

func hashOfRows(all []*Resource) []byte {
	h := &Set{}
	h.fill(rowsOf(all))
	return hashRoot(&h.leaves, nil)
}

// A round over a base costs what it touches, and comes to the same as all rows.
func TestARoundIsTheSameAsItsSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := &Set{}
		base.fill(rowsOf(genSet(60).Draw(t, "base")))
		s := NewStaging(base)
		for _, r := range rowsOf(genSet(10).Draw(t, "changes")) {
			s.upserts[slot{r.kind, r.name}] = r
		}
		for _, r := range genSet(10).Draw(t, "removals") {
			if s.upserts[slot{r.Kind, r.Name}].name == "" {
				s.removed[slot{r.Kind, r.Name}] = true
			}
		}
		before := base.Refs()
		next, whole := s.merge(), &Set{}
		var rows []row
		for _, r := range next.sorted() {
			rows = append(rows, *r)
		}
		whole.fill(rows)
		if next.leaves != whole.leaves || next.count != whole.count || next.size != whole.size || next.count != len(rows) {
			t.Fatalf("a round has %d rows of %d bytes, want %d of %d, or another hash", next.count, next.size, whole.count, whole.size)
		}
		if !slices.IsSortedFunc(rows, compareRows) || !slices.Equal(before, base.Refs()) {
			t.Fatal("out of order, or the base has changed")
		}
		want := map[slot]string{}
		for _, ref := range before {
			want[slot{ref.Kind, ref.Name}] = ref.Version
		}
		for at, r := range s.upserts {
			want[at] = r.version.String()
		}
		for at := range s.removed {
			delete(want, at)
		}
		for _, ref := range next.Refs() {
			if want[slot{ref.Kind, ref.Name}] != ref.Version {
				t.Fatalf("%v has another version, or should not be there", ref)
			}
		}
		if len(want) != next.count {
			t.Fatalf("%d rows, want %d", next.count, len(want))
		}
	})
}
