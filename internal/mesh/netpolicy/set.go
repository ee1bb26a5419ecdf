package netpolicy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Member is an address in a set: with a port, where the set is one of ports.
type Member struct {
	Addr netip.Addr
	Port uint16 // 0 in a set of peers
}

func compareMembers(a, b Member) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
}

// Shard is a part of a set of addresses. An address is in the same shard of each
// set that has as many, so that one that comes or goes changes one shard only.
type Shard struct {
	// Set is the set's name, which says what is in it: sets of equal names are
	// equal.
	Set string
	// Index is the shard's, of Count in all: a power of two.
	Index, Count uint32
	// Members are sorted, each once.
	Members []Member
}

// The bounds of shards: about as many members in each, and a set that is larger
// than MaxShards of them has larger ones.
const (
	shardSize = 64
	MaxShards = 1 << 12
)

// Split takes over the members of a set, in any order, and returns its shards in
// order, those without members left out. Equal sets give equal shards.
func Split(set string, members []Member) []Shard {
	slices.SortFunc(members, compareMembers)
	members = slices.Compact(members)
	count := uint32(1)
	for int(count)*shardSize < len(members) && count < MaxShards {
		count *= 2
	}
	if count == 1 {
		if len(members) == 0 {
			return nil
		}
		return []Shard{{Set: set, Count: 1, Members: members}}
	}
	parts := make([][]Member, count)
	for _, m := range members {
		i := shardOf(m.Addr, count)
		parts[i] = append(parts[i], m)
	}
	var shards []Shard
	for i, part := range parts {
		if len(part) > 0 {
			shards = append(shards, Shard{Set: set, Index: uint32(i), Count: count, Members: slices.Clip(part)})
		}
	}
	return shards
}

// shardOf spreads addresses: FNV-1a over their bytes, the high bits folded in.
func shardOf(addr netip.Addr, count uint32) uint32 {
	hash := uint32(2166136261)
	for _, b := range addr.As16() {
		hash = (hash ^ uint32(b)) * 16777619
	}
	return (hash ^ hash>>15) & (count - 1)
}

// Compare orders shards by the name of the set, then by their index.
func (s *Shard) Compare(other *Shard) int {
	return cmp.Or(cmp.Compare(s.Set, other.Set), cmp.Compare(s.Index, other.Index))
}

// place reports what is wrong with the name of a shard, which is all that a
// lookup could fall over.
func (s *Shard) place() error {
	switch {
	case s.Set == "":
		return errors.New("the set has no name")
	case s.Count == 0 || s.Count > MaxShards || s.Count&(s.Count-1) != 0 || s.Index >= s.Count:
		return fmt.Errorf("shard %d of %d is none", s.Index, s.Count)
	}
	return nil
}

// Validate reports what Split would not have made.
func (s *Shard) Validate() error {
	if err := s.place(); err != nil {
		return err
	}
	for i, m := range s.Members {
		if !m.Addr.IsValid() || m.Addr.Is4In6() || shardOf(m.Addr, s.Count) != s.Index {
			return fmt.Errorf("address %v is not one of this shard", m.Addr)
		}
		if i > 0 && compareMembers(s.Members[i-1], m) >= 0 {
			return fmt.Errorf("address %v is out of order", m.Addr)
		}
	}
	return nil
}

// set is all shards of one set; nil where a shard has no members.
type set struct{ shards []*Shard }

func (s *set) has(addr netip.Addr, port uint16) bool {
	if s == nil || len(s.shards) == 0 {
		return false
	}
	shard := s.shards[shardOf(addr, uint32(len(s.shards)))]
	if shard == nil {
		return false
	}
	_, found := slices.BinarySearchFunc(shard.Members, Member{addr, port}, compareMembers)
	return found
}
