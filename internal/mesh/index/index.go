// Package index has a hash index that is persistent: a changed copy shares with
// the one before all that did not change, and costs only what did. It knows
// nothing of what it holds.
//
// An Index is immutable and safe for concurrent use; an Editor belongs to one
// goroutine.
package index

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

const (
	// pageSize is the number of buckets that are copied together.
	pageSize = 64
	// perBucket is how many elements a bucket is meant for; crowded is when finding
	// one has become slow.
	perBucket, crowded = 6, 24
)

// Index finds elements by a hash that whoever asks computes.
type Index[E any] struct {
	pages []*[pageSize][]E // a power of two of them, or none
	count int
}

// New returns an empty Index for about so many elements.
func New[E any](elements int) Index[E] {
	pages := 1
	if n := elements / (perBucket * pageSize); n > 0 {
		pages = 1 << bits.Len(uint(n))
	}
	x := Index[E]{pages: make([]*[pageSize][]E, pages)}
	for i := range x.pages {
		x.pages[i] = new([pageSize][]E)
	}
	return x
}

// Empty reports whether there is no element.
func (x Index[E]) Empty() bool { return x.count == 0 }

// Crowded reports whether there are many more elements than the Index was made for.
func (x Index[E]) Crowded() bool { return x.count > crowded*pageSize*len(x.pages) }

// Bucket returns the elements that may have a hash: read only, and shared.
func (x Index[E]) Bucket(hash uint64) []E {
	if len(x.pages) == 0 {
		return nil
	}
	page, bucket := x.place(hash)
	return x.pages[page][bucket]
}

func (x Index[E]) place(hash uint64) (page, bucket int) {
	return int(hash/pageSize) & (len(x.pages) - 1), int(hash % pageSize)
}

// Edit begins a changed copy.
func (x Index[E]) Edit() *Editor[E] {
	if len(x.pages) == 0 {
		x = New[E](0)
	}
	return &Editor[E]{Index: Index[E]{slices.Clone(x.pages), x.count}, owned: make([]bool, len(x.pages))}
}

// Editor is a copy that is being changed. Its Index is the result.
type Editor[E any] struct {
	Index[E]
	owned []bool // pages that are no other Index's
}

// own returns a bucket that may be replaced.
func (e *Editor[E]) own(hash uint64) *[]E {
	page, bucket := e.place(hash)
	if !e.owned[page] {
		copied := *e.pages[page]
		e.pages[page], e.owned[page] = &copied, true
	}
	return &e.pages[page][bucket]
}

// Add puts an element under a hash.
func (e *Editor[E]) Add(hash uint64, element E) {
	at := e.own(hash)
	e.count++
	*at = append(append(make([]E, 0, len(*at)+1), *at...), element)
}

// Remove takes out the first element that is meant.
func (e *Editor[E]) Remove(hash uint64, meant func(E) bool) {
	i := slices.IndexFunc(e.Bucket(hash), meant)
	if i < 0 {
		return
	}
	at := e.own(hash)
	e.count--
	*at = slices.Concat((*at)[:i], (*at)[i+1:])
}

// OfAddress returns the hash of an address, whose zone does not count.
func OfAddress(addr netip.Addr) uint64 {
	octets := addr.As16()
	return mix(mix(binary.BigEndian.Uint64(octets[:8])) ^ binary.BigEndian.Uint64(octets[8:]))
}

// OfAddressPort returns the hash of an address, whose zone does not count, and a port.
func OfAddressPort(addr netip.Addr, port uint16) uint64 {
	return mix(OfAddress(addr) + uint64(port))
}

// OfTexts returns the hash of two texts.
func OfTexts(a, b string) uint64 {
	hash := uint64(14695981039346656037) // FNV-1a, and a finalizer: its high bits are weak
	for _, text := range [...]string{a, b} {
		for i := range len(text) {
			hash = (hash ^ uint64(text[i])) * 1099511628211
		}
		hash = (hash ^ 0xff) * 1099511628211 // no text has this octet
	}
	return mix(hash)
}

// mix spreads every bit over all: the finalizer of MurmurHash3.
func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
