package hbone

import (
	"fmt"
	"net/netip"
	"slices"
)

// handshakeShares is the inverse of what one source may have of the handshakes
// under way.
const handshakeShares = 4

// Handshakes keeps account of the handshakes under way at one Serve call, so
// that whoever connects and says nothing keeps out nobody but itself. A source
// is an IPv4 address or an IPv6 /64, which is what one machine commonly has for
// itself. It has at most a quarter of the places; a newcomer that finds none
// free gets that of the oldest handshake of the source that has the most. It is
// not safe for concurrent use.
type Handshakes struct {
	limit, share int
	total        int
	begun        uint64
	sources      map[netip.Prefix][]*Handshake // oldest first, never empty
}

// Handshake is one that is under way.
type Handshake struct {
	source netip.Prefix
	number uint64 // the order of Begin
	cut    func()
	lost   error
}

// NewHandshakes has the given number of places.
func NewHandshakes(limit int) *Handshakes {
	return &Handshakes{limit: limit, share: max(1, limit/handshakeShares), sources: map[netip.Prefix][]*Handshake{}}
}

// Begin takes a place for a peer, or refuses it with ErrLimit. Begin and Cut
// call cut, which must not block, when the handshake must end early.
func (h *Handshakes) Begin(peer netip.Addr, cut func()) (*Handshake, error) {
	source := handshakeSource(peer)
	own := len(h.sources[source])
	if own >= h.share {
		return nil, fmt.Errorf("%w: %d handshakes at once from %s", ErrLimit, own, source)
	}
	if h.total >= h.limit && !h.evict(own) {
		return nil, fmt.Errorf("%w: %d handshakes at once", ErrLimit, h.total)
	}
	h.begun++
	hs := &Handshake{source: source, number: h.begun, cut: cut}
	h.sources[source] = append(h.sources[source], hs)
	h.total++
	return hs, nil
}

// BeginIn is Begin for a connection that needs a place of a pod's as well, which is the
// caller's to give back when it has ended.
func (h *Handshakes) BeginIn(m *Memory, peer netip.Addr, cut func()) (hs *Handshake, err error) {
	err = m.Within(func() (err error) { hs, err = h.Begin(peer, cut); return err })
	return hs, err
}

// End gives the place back. It returns an error that matches ErrLimit if the
// handshake had lost it to a newcomer, whatever came of it.
func (h *Handshakes) End(hs *Handshake) error {
	if hs.lost == nil {
		h.remove(hs)
	}
	return hs.lost
}

// Len is the number of handshakes under way.
func (h *Handshakes) Len() int { return h.total }

// Cut cuts all of them; they keep their places until End.
func (h *Handshakes) Cut() {
	for _, pending := range h.sources {
		for _, hs := range pending {
			hs.cut()
		}
	}
}

// evict makes room at the cost of the source with the most handshakes, if that
// leaves it no fewer than a newcomer that has own would then have. Otherwise
// everybody has about as much: taking turns would let none of them finish.
func (h *Handshakes) evict(own int) bool {
	var most []*Handshake
	for _, pending := range h.sources {
		if len(pending) > len(most) || len(pending) == len(most) && pending[0].number < most[0].number {
			most = pending
		}
	}
	if len(most) < own+2 {
		return false
	}
	victim := most[0]
	victim.lost = fmt.Errorf("%w: the oldest of %d handshakes at once from %s made room for another source's", ErrLimit, len(most), victim.source)
	h.remove(victim)
	victim.cut()
	return true
}

func (h *Handshakes) remove(hs *Handshake) {
	pending := h.sources[hs.source]
	i := slices.Index(pending, hs)
	if i < 0 {
		return // ended before
	}
	h.total--
	if len(pending) == 1 {
		delete(h.sources, hs.source)
		return
	}
	h.sources[hs.source] = slices.Delete(pending, i, i+1)
}

// handshakeSource is whom a handshake counts for. Addresses that are not valid
// count as one source.
func handshakeSource(peer netip.Addr) netip.Prefix {
	peer = peer.Unmap().WithZone("")
	bits := 32
	if peer.Is6() {
		bits = 64
	}
	source, err := peer.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return source
}
