package dns

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/agent/dns/wire"
)

// question is what answers are kept under: everything that an answer may depend on.
type question struct {
	name        string // in wire form and lower case
	kind, class uint16
	bits        uint16
	server      netip.AddrPort
}

// cache keeps answers, the ones that were used last. It is safe for concurrent use.
type cache struct {
	mu      sync.Mutex
	limits  Limits
	entries map[question]*list.Element // of *entry
	order   list.List                  // the one that was used last is first
	bytes   int
}

// entry is an answer and when it came.
type entry struct {
	of     question
	answer *wire.Response
	at     time.Time
	// again is when its server may be asked anew, after it did not answer.
	again time.Time
}

// entryBytes is what an entry takes beside its answer and name.
const entryBytes = 400

func (e *entry) size() int { return e.answer.Size() + len(e.of.name) + entryBytes }

func newCache(limits Limits) *cache {
	c := &cache{limits: limits, entries: map[question]*list.Element{}}
	c.order.Init()
	return c
}

// kept is what the cache has for a question.
type kept struct {
	answer *wire.Response
	age    uint32 // seconds
	// fresh answers hold still; others may be given when the server does not
	// answer, and should be at once if waiting has been tried of late.
	fresh, atOnce bool
}

// get returns what there is for a question, if it may be given at all.
func (c *cache) get(of question, now time.Time) (kept, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.entries[of]
	if !ok {
		return kept{}, false
	}
	e := at.Value.(*entry)
	age := now.Sub(e.at)
	holds := min(time.Duration(e.answer.TTL)*time.Second, maxHold)
	if e.answer.Negative {
		holds = min(holds, maxHoldNegative)
	}
	k := kept{answer: e.answer, age: uint32(max(age, 0) / time.Second), fresh: age < holds, atOnce: now.Before(e.again)}
	limit := c.limits.Stale
	if e.answer.Negative {
		limit = min(limit, maxStaleNegative)
	}
	if !k.fresh && age >= holds+limit {
		c.remove(at)
		return kept{}, false
	}
	c.order.MoveToFront(at)
	return k, true
}

// put keeps an answer, or forgets the one before it when this one does not last.
func (c *cache) put(of question, answer *wire.Response, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.entries[of]; ok {
		c.remove(old)
	}
	e := &entry{of: of, answer: answer, at: now}
	if !answer.Lasting || e.size() > c.limits.CacheBytes/8 {
		return
	}
	c.entries[of] = c.order.PushFront(e)
	c.bytes += e.size()
	for c.bytes > c.limits.CacheBytes {
		c.remove(c.order.Back())
	}
}

// failed notes that the server did not answer, so that for a while nobody waits
// for it who can have a stale answer.
func (c *cache) failed(of question, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.entries[of]; ok {
		at.Value.(*entry).again = now.Add(askAgain)
	}
}

// remove forgets an entry; mu is held.
func (c *cache) remove(at *list.Element) {
	e := c.order.Remove(at).(*entry)
	delete(c.entries, e.of)
	c.bytes -= e.size()
}
