package balance

import (
	"container/list"
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/workload"
)

// maxClients bounds how many clients of sticky services are remembered, at about
// 250 bytes each. Beyond it the one that was away for longest is forgotten.
const maxClients = 1 << 14

// clientKey is who is kept with a workload: an address, at one port of one service, as
// kube-proxy has it.
type clientKey struct {
	Addr    netip.Addr
	Service mesh.Key
	Port    uint16
}

// stay is where a client is.
type stay struct {
	client clientKey
	with   mesh.Key
	last   time.Time // when it last connected
}

// clients are those of sticky services, the last to connect first.
type clients struct {
	byClient map[clientKey]*list.Element
	recent   *list.List // of *stay
}

func newClients() clients { return clients{map[clientKey]*list.Element{}, list.New()} }

// PickFor is Pick for a connection of a client to a service. A sticky service keeps
// the client with its workload for as long as that is a candidate and it connects
// again within the service's time, reachable or not: whoever finds that it is not says
// so by tried, and is kept with the next. A client that was away for longer gets any.
// One that is not known, which may be because this process is new, gets the workload
// that every node and every process gives it.
func (b *Balancer) PickFor(client netip.Addr, port uint16, service *mesh.Service, candidates []*mesh.Workload, tried []mesh.Key) *mesh.Workload {
	b.mu.Lock()
	defer b.mu.Unlock()
	if service == nil || !service.Sticky || len(candidates) == 0 {
		return b.pick(candidates, tried)
	}
	c := clientKey{client.Unmap(), service.Key, port}
	w, known := b.clients.with(c, service, candidates, tried)
	if w == nil && !known && len(tried) == 0 {
		w = workload.ForClient(c.Addr, candidates)
	}
	if w == nil {
		w = b.pick(candidates, tried)
	}
	if w != nil {
		b.clients.keep(c, w.Key)
	}
	return w
}

// with returns the workload that a client stays with; nil when it may go, and
// whether it was ever seen.
func (cs *clients) with(c clientKey, service *mesh.Service, candidates []*mesh.Workload, tried []mesh.Key) (w *mesh.Workload, known bool) {
	at, known := cs.byClient[c]
	if !known {
		return nil, false
	}
	limit := service.StickyFor
	if limit == 0 {
		limit = mesh.DefaultSticky
	}
	s := at.Value.(*stay)
	if time.Since(s.last) > limit || contains(tried, s.with) {
		return nil, true
	}
	for _, w := range candidates {
		if w.Key == s.with {
			return w, true
		}
	}
	return nil, true
}

func (cs *clients) keep(c clientKey, with mesh.Key) {
	if at, ok := cs.byClient[c]; ok {
		s := at.Value.(*stay)
		s.with, s.last = with, time.Now()
		cs.recent.MoveToFront(at)
		return
	}
	if len(cs.byClient) >= maxClients {
		oldest := cs.recent.Back()
		delete(cs.byClient, cs.recent.Remove(oldest).(*stay).client)
	}
	cs.byClient[c] = cs.recent.PushFront(&stay{c, with, time.Now()})
}

// prune forgets clients of services that are gone, or keep nobody any more.
func (cs *clients) prune(view *mesh.View) {
	for c, at := range cs.byClient {
		if s, ok := view.Service(c.Service); !ok || !s.Sticky {
			cs.recent.Remove(at)
			delete(cs.byClient, c)
		}
	}
}
