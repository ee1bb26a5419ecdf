package split

import "math"

// Sticky returns the index of the backend that everybody with a session key goes to,
// or None: the same at every replica and after every restart. Each backend gets its share of the
// keys on average, not exactly. Names[i] tells backend i from the others whatever its
// place in the list. When weights change, only as many keys move as have to: to those
// that have more, from those that have less (weighted rendezvous hashing: Schindelhauer
// and Schomaker, "Weighted distributed hash tables", 2005). It does not allocate.
func Sticky(weights []uint32, names []uint64, key string) int {
	hash := Hash(key)
	best, least := None, math.Inf(1)
	for i, w := range weights {
		if w == 0 {
			continue
		}
		// The time of the first event of a process of rate w: shorter the larger w is, for each key anew.
		u := (float64(mix(hash^names[i])>>11) + 0.5) / (1 << 53)
		if first := -math.Log(u) / float64(w); first < least {
			best, least = i, first
		}
	}
	return best
}

// Hash returns a hash of a text: no secret, and the same everywhere.
func Hash(text string) uint64 {
	hash := uint64(14695981039346656037) // FNV-1a; mix makes up for its high bits
	for i := range len(text) {
		hash = (hash ^ uint64(text[i])) * 1099511628211
	}
	return mix(hash)
}

// mix spreads every bit over all: the finalizer of MurmurHash3.
func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
