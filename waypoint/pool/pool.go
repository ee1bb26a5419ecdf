// Package pool has a waypoint's connections to workloads: those in use, and those that are
// kept for the next request, which are watched all the while, as http1 asks for: what can be
// read from one that idles, its end included, ends it. It chooses among workloads, too, by
// what each has to do and whether it could be reached lately.
//
// It knows no protocol. A Pool belongs to one event loop: nothing here is safe for use by
// another goroutine, and nothing waits.
package pool

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Config bounds a Pool.
type Config struct {
	// Idle is how many connections are kept, IdlePerWorkload how many to one port of one
	// workload, and IdleFor how long.
	Idle, IdlePerWorkload int
	IdleFor               time.Duration
	// Connect bounds the time until a connection is there.
	Connect time.Duration
	// Reach says where a port of a workload is connected to; nil is there.
	Reach func(netip.AddrPort) netip.AddrPort
}

const (
	// A workload that could not be reached, or broke off, is avoided for minEject, twice as
	// long after each further failure, and never longer than maxEject.
	minEject, maxEject = time.Second, time.Minute
	maxFailures        = 16 // that are counted
	// lostAfter is how many failures, with no answer between them, are taken for a workload that cannot
	// be reached: one alone may be about one request.
	lostAfter = 3
	// draws is how often two are drawn before all are looked at.
	draws = 2
)

// Pool is the connections of one loop to workloads.
type Pool struct {
	loop *eventloop.Loop
	cfg  Config
	view *mesh.View
	// places are kept over Views, near are those of this View's workloads.
	places map[placeKey]*Place
	near   map[nearKey]*Place
	idle   list
	open   int
	spare  []*Conn // closed, to be used again
}

type placeKey struct {
	workload mesh.Key
	at       netip.AddrPort
}

// nearKey tells the families apart: a server of both may listen at one of them only.
type nearKey struct {
	workload *mesh.Workload
	port     uint16
	v4       bool
}

// Place is a port of a workload.
type Place struct {
	// At is its address, Workload its name.
	At       netip.AddrPort
	Workload mesh.Key
	// Name is Workload as a text.
	Name string

	active   int
	failures int
	until    time.Time // avoided until then
	idle     list
}

// New makes an empty Pool on a loop, whose goroutine alone may use it.
func New(loop *eventloop.Loop, cfg Config) *Pool {
	return &Pool{loop: loop, cfg: cfg, places: map[placeKey]*Place{}, near: map[nearKey]*Place{}, idle: list{pool: true}}
}

// Use says which View the workloads are of from now on. What is kept for workloads that are
// gone ends.
func (p *Pool) Use(view *mesh.View) {
	if p.view == view {
		return
	}
	p.view = view
	clear(p.near)
	for key, place := range p.places {
		w, ok := view.Workload(key.workload)
		if ok && w.HasAddress(key.at.Addr()) {
			continue
		}
		for c := place.idle.last; c != nil; c = place.idle.last {
			c.Close(false)
		}
		if place.active == 0 {
			delete(p.places, key)
		}
	}
}

// Place returns a port of a workload of the View, at its address of the family of like.
func (p *Pool) Place(w *mesh.Workload, port uint16, like netip.Addr) *Place {
	near := nearKey{w, port, like.Unmap().Is4()}
	if place := p.near[near]; place != nil {
		return place
	}
	addr, ok := w.AddressFor(like, nil)
	if !ok {
		return nil
	}
	key := placeKey{w.Key, netip.AddrPortFrom(addr, port)}
	place := p.places[key]
	if place == nil {
		place = &Place{At: key.at, Workload: key.workload, Name: key.workload.String()}
		p.places[key] = place
	}
	p.near[near] = place
	return place
}

// Pick chooses one of a route's candidates: of two that are drawn, the one with less to do,
// leaving out those that are in tried, and, while there are others, those that failed lately.
// With is the one that is chosen before all others, nil for none: it is left out when it is in
// tried, or has failed lostAfter times in a row, the last time lately. It returns nil when none is left.
func (p *Pool) Pick(r *mesh.Route, like netip.Addr, tried []mesh.Key, with *mesh.Workload) (*mesh.Workload, *Place) {
	if with != nil && !has(tried, with.Key) {
		place := p.Place(with, r.PortOf(with), like)
		if place != nil && (place.failures < lostAfter || !p.loop.Now().Before(place.until)) {
			return with, place
		}
	}
	n := len(r.Candidates)
	if n == 0 {
		return nil, nil
	}
	for range draws {
		i := rand.IntN(n)
		w, a := p.candidate(r, i, like, tried)
		if n > 1 {
			j := (i + 1 + rand.IntN(n-1)) % n
			if other, b := p.candidate(r, j, like, tried); b != nil && (a == nil || b.active < a.active) {
				w, a = other, b
			}
		}
		if a != nil {
			return w, a
		}
	}
	return p.search(r, like, tried)
}

// candidate is one of the candidates; nil when it is not to be taken.
func (p *Pool) candidate(r *mesh.Route, i int, like netip.Addr, tried []mesh.Key) (*mesh.Workload, *Place) {
	w := r.Candidates[i]
	place := p.Place(w, r.PortOf(w), like)
	if place == nil || place.failures > 0 && p.loop.Now().Before(place.until) || has(tried, w.Key) {
		return nil, nil
	}
	return w, place
}

// search looks at all candidates, from a random one on; one that failed lately is better than none.
func (p *Pool) search(r *mesh.Route, like netip.Addr, tried []mesh.Key) (last *mesh.Workload, at *Place) {
	n := len(r.Candidates)
	from := rand.IntN(n)
	for i := range n {
		if w, place := p.candidate(r, (from+i)%n, like, tried); place != nil {
			return w, place
		}
		if w := r.Candidates[(from+i)%n]; !has(tried, w.Key) {
			if place := p.Place(w, r.PortOf(w), like); place != nil && (at == nil || place.until.Before(at.until)) {
				last, at = w, place
			}
		}
	}
	return last, at
}

func has(keys []mesh.Key, key mesh.Key) bool {
	for i := range keys {
		if keys[i] == key {
			return true
		}
	}
	return false
}

// Failed notes that a workload could not be reached, or broke off: it is avoided for a while.
func (p *Pool) Failed(at *Place) {
	at.failures = min(at.failures+1, maxFailures)
	eject := min(minEject<<(at.failures-1), maxEject)
	// Up to a quarter earlier, so that loops and replicas do not come back all at once.
	eject -= rand.N(eject/4 + 1)
	at.until = p.loop.Now().Add(eject)
}

// Answered notes that a workload has answered.
func (at *Place) Answered() { at.failures = 0 }

// Carry notes that so many requests more, or less, share a connection there: Pick counts them.
func (at *Place) Carry(n int) { at.active += n }

// Active is how many connections are in use there.
func (at *Place) Active() int { return at.active }

// Open is how many connections there are, Idle how many of them are kept for later.
func (p *Pool) Open() int { return p.open }

// Idle is how many connections are kept for later.
func (p *Pool) Idle() int { return p.idle.n }

// Close ends what idles. Connections in use are their owners'.
func (p *Pool) Close() {
	for c := p.idle.last; c != nil; c = p.idle.last {
		c.Close(false)
	}
}
