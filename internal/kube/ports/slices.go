package ports

import (
	"encoding/binary"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// MaxWork bounds the endpoints that are looked at for all ports of one service: what says
// more of them would not fit into a message to an agent.
const MaxWork = 64 << 10

// maxLooks bounds the slices that are looked at for all ports of one service: each port is
// compared in each slice, also in those that have no endpoint.
const maxLooks = 16 * MaxWork

// Slices finds the numbers of ports by the slices of a service's endpoints. Ports of which
// all slices say the same, but for the numbers, are found once: as a rule, all of them.
type Slices struct {
	keys    [][]mesh.Key
	numbers []map[string]uint16
	groups  map[string]*groups
	work    int
	looks   int
	refused int
}

// Refused is how many times Numbers has returned false.
func (s *Slices) Refused() int { return s.refused }

// groups are a service's endpoints, told apart by what they say of a port.
type groups struct {
	keys [][]mesh.Key // in the order of the first slice of each
	seen int
}

// Add adds a slice: its endpoints, sorted, and the numbers of its ports by their names.
// Both must not be changed afterwards.
func (s *Slices) Add(keys []mesh.Key, numbers map[string]uint16) {
	s.keys, s.numbers = append(s.keys, keys), append(s.numbers, numbers)
}

// Numbers returns the numbers that a port has, each with those endpoints whose slices say
// so. It returns false when too much is said of the service's ports to look at this one.
func (s *Slices) Numbers(port string) (ByNumber, bool) {
	if s.looks += len(s.numbers); s.looks > maxLooks {
		s.looks = maxLooks
		s.refused++
		return ByNumber{}, false
	}
	var numbers []uint16
	place := map[uint16]uint64{} // of a number, among those of the port, from 1
	var pattern []byte
	for _, slice := range s.numbers {
		number := slice[port] // 0 where it has none
		if number != 0 && place[number] == 0 {
			numbers = append(numbers, number)
			place[number] = uint64(len(numbers))
		}
		pattern = binary.AppendUvarint(pattern, place[number])
	}
	g := s.groups[string(pattern)]
	if g == nil {
		if g = s.group(len(numbers), func(slice int) int { return int(place[s.numbers[slice][port]]) }); g == nil {
			s.refused++
			return ByNumber{}, false
		}
		if s.groups == nil {
			s.groups = map[string]*groups{}
		}
		s.groups[string(pattern)] = g
	}
	b := ByNumber{numbers: numbers, of: make(map[uint16][]mesh.Key, len(numbers)), count: g.seen}
	for i, number := range numbers {
		b.of[number] = g.keys[i]
	}
	return b, true
}

// group tells the endpoints apart by the place of their slice's number, from 1. One that
// several slices have belongs to the first. It returns nil where that is too much work.
func (s *Slices) group(places int, place func(slice int) int) *groups {
	g := &groups{keys: make([][]mesh.Key, places)}
	seen := map[mesh.Key]bool{}
	for i, keys := range s.keys {
		at := place(i)
		if at == 0 {
			continue
		}
		if s.work += len(keys); s.work > MaxWork {
			s.work = MaxWork
			return nil
		}
		for _, key := range keys {
			if !seen[key] {
				g.keys[at-1], seen[key] = append(g.keys[at-1], key), true
			}
		}
	}
	for i := range g.keys {
		g.keys[i] = mesh.SortedKeys(g.keys[i])
	}
	g.seen = len(seen)
	return g
}
