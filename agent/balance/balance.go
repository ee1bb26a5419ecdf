// Package balance chooses among the workloads that may take a connection, by how
// many connections each has from this node and whether it could be reached
// lately. It knows nothing of how they are reached, and it has no goroutines.
package balance

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// A workload that could not be reached is avoided for minEject, twice as
	// long after each further failure, and never longer than maxEject.
	minEject, maxEject = time.Second, time.Minute
)

// Balancer chooses among the candidates of a service: of two taken at random,
// the one with fewer connections from this node, if it has fewer by more than
// one; leaving out those that could not be reached lately unless all are such. It
// is safe for concurrent use.
type Balancer struct {
	mu      sync.Mutex
	loads   map[mesh.Key]*load
	clients clients
}

// load is what the node knows about one workload. It is forgotten when there
// is nothing to know.
type load struct {
	active   int
	failures int
	until    time.Time // avoided until then
}

// New returns a Balancer that knows of no connections.
func New() *Balancer { return &Balancer{loads: map[mesh.Key]*load{}, clients: newClients()} }

// Pick chooses one of the candidates that was not tried yet; nil when there is
// none.
func (b *Balancer) Pick(candidates []*mesh.Workload, tried []mesh.Key) *mesh.Workload {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pick(candidates, tried)
}

func (b *Balancer) pick(candidates []*mesh.Workload, tried []mesh.Key) *mesh.Workload {
	now := time.Now()
	fresh := func(w *mesh.Workload) bool { return !contains(tried, w.Key) }
	reachable := func(w *mesh.Workload) bool { return fresh(w) && !b.avoided(w.Key, now) }
	for _, usable := range []func(*mesh.Workload) bool{reachable, fresh} {
		n := 0
		for _, w := range candidates {
			if usable(w) {
				n++
			}
		}
		if n > 0 {
			return b.lighter(candidates, usable, n)
		}
	}
	return nil
}

// slack is by how many connections a workload has to have more to count as the busier
// one. With none, a single connection that stays keeps all that come one by one away for
// good; so it was with a server that calls its own service while it answers who made it
// call, and never reached itself.
const slack = 1

// lighter takes two different ones of the n usable candidates at random and
// returns the one with fewer connections, or either when they have about as many.
func (b *Balancer) lighter(candidates []*mesh.Workload, usable func(*mesh.Workload) bool, n int) *mesh.Workload {
	first := rand.IntN(n)
	second := first
	if n > 1 {
		second = (first + 1 + rand.IntN(n-1)) % n
	}
	var one, two *mesh.Workload
	i := 0
	for _, w := range candidates {
		if !usable(w) {
			continue
		}
		if i == first {
			one = w
		}
		if i == second {
			two = w
		}
		i++
	}
	if b.active(two.Key)+slack < b.active(one.Key) {
		return two
	}
	return one
}

func (b *Balancer) active(key mesh.Key) int {
	if l, ok := b.loads[key]; ok {
		return l.active
	}
	return 0
}

func (b *Balancer) avoided(key mesh.Key, now time.Time) bool {
	l, ok := b.loads[key]
	return ok && now.Before(l.until)
}

// Begin counts a connection to a workload, until End.
func (b *Balancer) Begin(key mesh.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.load(key).active++
}

// End is the end of what one Begin counted.
func (b *Balancer) End(key mesh.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.load(key)
	l.active = max(0, l.active-1)
	b.forget(key, l)
}

// Active is the number of connections to a workload that are counted.
func (b *Balancer) Active(key mesh.Key) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.active(key)
}

// Reached notes that a workload answered.
func (b *Balancer) Reached(key mesh.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l, ok := b.loads[key]; ok {
		l.failures, l.until = 0, time.Time{}
		b.forget(key, l)
	}
}

// Unreachable notes that a workload could not be reached.
func (b *Balancer) Unreachable(key mesh.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.load(key)
	l.failures = min(l.failures+1, 16)
	eject := min(minEject<<(l.failures-1), maxEject)
	// Up to a quarter earlier, so that nodes do not come back all at once.
	eject -= rand.N(eject/4 + 1)
	l.until = time.Now().Add(eject)
}

func (b *Balancer) load(key mesh.Key) *load {
	l, ok := b.loads[key]
	if !ok {
		l = &load{}
		b.loads[key] = l
	}
	return l
}

func (b *Balancer) forget(key mesh.Key, l *load) {
	if l.active == 0 && l.failures == 0 {
		delete(b.loads, key)
	}
}

// Prune forgets workloads and services that are gone.
func (b *Balancer) Prune(view *mesh.View) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, l := range b.loads {
		if _, ok := view.Workload(key); !ok && l.active == 0 {
			delete(b.loads, key)
		}
	}
	b.clients.prune(view)
}

func contains(keys []mesh.Key, key mesh.Key) bool {
	for _, k := range keys {
		if k == key {
			return true
		}
	}
	return false
}
