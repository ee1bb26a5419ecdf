package budget

import (
	"fmt"
	"hash/maphash"
	"net"
	"net/netip"

	"golang.org/x/time/rate"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// ErrOver is what the errors of Handshakes.Take match. It is an hbone.ErrLimit.
var ErrOver = fmt.Errorf("%w: too many tunnel handshakes per second", hbone.ErrLimit)

// peers is into how many shares peers are sorted. Two that meet in one share
// it; the seed is random, so nobody can choose whom to meet.
const peers = 64

// Handshakes bounds a pod's handshakes per second. A peer, which is an IPv4
// address or an IPv6 /64, has at most half of them, so that there are some left
// for others whatever it does. It is safe for concurrent use.
type Handshakes struct {
	all    *rate.Limiter
	shares [peers]*rate.Limiter
	seed   maphash.Seed
}

// NewHandshakes allows perSecond handshakes, and burst at once.
func NewHandshakes(perSecond, burst int) *Handshakes {
	h := &Handshakes{all: rate.NewLimiter(rate.Limit(perSecond), burst), seed: maphash.MakeSeed()}
	for i := range h.shares {
		h.shares[i] = rate.NewLimiter(rate.Limit(perSecond)/2, max(1, burst/2))
	}
	return h
}

// Take takes one handshake from the budget, or says why there is none.
func (h *Handshakes) Take(peer netip.Addr) error {
	// What the share refuses costs the others nothing.
	if !h.shares[maphash.Comparable(h.seed, prefix(peer))%peers].Allow() {
		return fmt.Errorf("%w with %s", ErrOver, peer)
	}
	if !h.all.Allow() {
		return ErrOver
	}
	return nil
}

// prefix is what one machine commonly has for itself; addresses that are not
// valid count as one.
func prefix(a netip.Addr) netip.Prefix {
	a = a.WithZone("")
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

func source(conn net.Conn) netip.Addr {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
