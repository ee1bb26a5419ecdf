package hbone

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Peers keeps account of the connections of one Serve call by the identity that
// their peers have proved, so that none takes all the places. It is not safe for
// concurrent use.
type Peers struct {
	limit, total int
	of           map[spiffeid.ID]int
}

// NewPeers lets so many connections of one identity in.
func NewPeers(limit int) *Peers { return &Peers{limit: limit, of: map[spiffeid.ID]int{}} }

// Enter counts a connection, or refuses it with ErrLimit.
func (p *Peers) Enter(peer spiffeid.ID) error {
	if n := p.of[peer]; n >= p.limit {
		return fmt.Errorf("%w: %d connections of %s", ErrLimit, n, peer)
	}
	p.Keep(peer)
	return nil
}

// Keep counts a connection that was let in before, by another process.
func (p *Peers) Keep(peer spiffeid.ID) {
	p.of[peer]++
	p.total++
}

// Leave is the end of what Enter or Keep has counted.
func (p *Peers) Leave(peer spiffeid.ID) {
	p.total--
	if p.of[peer]--; p.of[peer] == 0 {
		delete(p.of, peer)
	}
}

// Len is the number of connections.
func (p *Peers) Len() int { return p.total }
