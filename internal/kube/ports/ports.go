// Package ports finds what a service's port leads to where its number is not the same
// at all endpoints. It is pure.
package ports

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// external is the namespace of endpoints that are neither pods nor Workloads.
const external = "EXTERNAL"

// ByNumber has endpoints by the number of one port, each once, the first number first.
type ByNumber struct {
	numbers []uint16
	of      map[uint16][]mesh.Key
	seen    map[mesh.Key]bool // of those that Add has added
	count   int               // of the endpoints
}

// Numbers returns them, as they came.
func (b *ByNumber) Numbers() []uint16 { return b.numbers }

// Of returns the endpoints that have a number.
func (b *ByNumber) Of(number uint16) []mesh.Key { return b.of[number] }

// Add adds endpoints that have a number; one that was added before keeps its first.
func (b *ByNumber) Add(number uint16, keys ...mesh.Key) {
	if b.of == nil {
		b.of, b.seen = map[uint16][]mesh.Key{}, map[mesh.Key]bool{}
	}
	if !slices.Contains(b.numbers, number) {
		b.numbers = append(b.numbers, number)
	}
	for _, key := range keys {
		if !b.seen[key] { // an address of a node, which several pods may have
			b.of[number], b.seen[key] = append(b.of[number], key), true
			b.count++
		}
	}
}

// Target is the number that most have, the lower one of two equally frequent; 0 when
// there is none. Agents that do not know of the others connect to these only.
func (b *ByNumber) Target() (target uint16) {
	for _, number := range b.numbers {
		if n, most := len(b.of[number]), len(b.of[target]); target == 0 || n > most || n == most && number < target {
			target = number
		}
	}
	return target
}

// Place puts the endpoints into a port that has the target; all are the service's.
func (b *ByNumber) Place(p *mesh.ServicePort, all []mesh.Key) {
	if only := b.of[p.TargetPort]; len(only) < len(all) || len(only) < b.count {
		p.Only = Some(sorted(only))
	}
	for _, number := range slices.Sorted(slices.Values(b.numbers)) {
		if number != p.TargetPort && len(b.of[number]) > 0 {
			p.Elsewhere = append(p.Elsewhere, mesh.PortElsewhere{TargetPort: number, Endpoints: sorted(b.of[number])})
		}
	}
}

// sorted returns keys sorted, each once: themselves, where they are. Nobody changes them.
func sorted(keys []mesh.Key) []mesh.Key {
	for i := 1; i < len(keys); i++ {
		if keys[i-1].Compare(keys[i]) >= 0 {
			return mesh.SortedKeys(slices.Clone(keys))
		}
	}
	return keys
}

// Some returns endpoints that alone have a port. When there are none, the port is
// nobody's, who is no workload: an empty list would be told to agents as all.
func Some(only []mesh.Key) []mesh.Key {
	if len(only) == 0 {
		return []mesh.Key{{Namespace: external, Name: "nobody"}}
	}
	return only
}
