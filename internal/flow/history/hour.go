package history

import (
	"iter"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
)

// maxCopied is how many summaries are copied at once, while connections that end wait
// for the lock: some tens of microseconds.
const maxCopied = 256

// The shares of an hour's room: what one client has in detail, all that nobody knows
// being one, and what is refused has at all.
const (
	maxOfClient    = maxSummaries / 8
	maxOfStrangers = maxSummaries / 4
	maxDenied      = maxSummaries / 2
)

// hour is what is known of one.
type hour struct {
	begin       time.Time
	file        string         // nobody else's
	sums        map[key]*sums  // only grows
	shares      map[client]int // how many kinds each client has
	denied      int
	connections uint64
	dirty       bool
}

// entry is one summary of an hour, copied.
type entry struct {
	key  key
	sums sums
}

func newHour(begin time.Time) *hour {
	return &hour{begin: begin, file: fileName(begin), sums: map[key]*sums{}, shares: map[client]int{}}
}

// add counts a connection, unless it is of a new kind and there is no room for one.
// Whoever tries many addresses or ports does not push others out: beyond its share of
// the room a client's new kinds are told apart by less and less, and those that are
// refused have half of it.
func (o *hour) add(k key, r *flow.Record) bool {
	s, ok := o.sums[k]
	if !ok {
		k = k.within(o.shares[k.client()])
		s, ok = o.sums[k]
	}
	if !ok {
		if len(o.sums) >= maxSummaries || k.denied() && o.denied >= maxDenied {
			return false
		}
		o.shares[k.client()]++
		if k.denied() {
			o.denied++
		}
		s = &sums{first: r.Start}
		o.sums[k] = s
	}
	s.add(r)
	o.connections++
	o.dirty = true
	return true
}

// summaries returns what an hour has come to; kinds that are new meanwhile may be
// among it. It copies a few at a time, and whoever ranges over it does not hold the
// lock: the event loops, which Add as connections end, never wait for more than that.
func (h *History) summaries(o *hour) iter.Seq[*meshpb.FlowSummary] {
	return func(yield func(*meshpb.FlowSummary) bool) {
		copied := make([]entry, 0, maxCopied)
		give := func() bool {
			h.mu.Unlock()
			defer h.mu.Lock()
			for i := range copied {
				if !yield(copied[i].key.summary(o.begin, &copied[i].sums)) {
					return false
				}
			}
			copied = copied[:0]
			return true
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for k, s := range o.sums { // each that is there comes once, though others are added meanwhile (Go specification, For statements)
			if copied = append(copied, entry{k, *s}); len(copied) == maxCopied && !give() {
				return
			}
		}
		give()
	}
}
