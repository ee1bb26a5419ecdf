package flow

import (
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
)

// Ring keeps the newest records, in 144 bytes each and what each pair of workloads
// takes once. Adding waits for no reader and costs one allocation; a watcher that
// cannot follow loses records and is told exactly how many.
type Ring struct {
	// slots[id%len] holds record id until record id+len replaces it.
	slots []atomic.Pointer[kept]
	// head is the highest ID that was given out.
	head atomic.Uint64
	// lost sums what all watchers, past and present, did not see.
	lost atomic.Uint64
	// watchers is replaced as a whole, so that Add reads it without a lock.
	watchers atomic.Pointer[[]*watcher]
	join     sync.Mutex // serializes replacements of watchers
}

type watcher struct {
	// wake has room for one token: a send that finds it full is not needed.
	wake chan struct{}
}

// NewRing returns a Ring that keeps the newest size records, at least one.
func NewRing(size int) *Ring {
	r := &Ring{slots: make([]atomic.Pointer[kept], max(size, 1))}
	r.watchers.Store(&[]*watcher{})
	return r
}

// Add implements Sink: it gives the record its ID and keeps it in place of the
// oldest. It never waits, not for watchers and not for other writers.
func (r *Ring) Add(rec Record) {
	rec.ID = r.head.Add(1)
	slot, k := &r.slots[rec.ID%uint64(len(r.slots))], compact(&rec)
	for {
		old := slot.Load()
		// A writer that was overtaken by a whole turn of the ring must not
		// put its old record over a newer one.
		if old != nil && old.id > k.id || slot.CompareAndSwap(old, k) {
			break
		}
	}
	for _, w := range *r.watchers.Load() {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Added returns how many records were ever added.
func (r *Ring) Added() uint64 { return r.head.Load() }

// Overwritten returns how many records are no longer kept.
func (r *Ring) Overwritten() uint64 {
	added, size := r.head.Load(), uint64(len(r.slots))
	if added <= size {
		return 0
	}
	return added - size
}

// Lost returns how many records watchers lost, summed over all watchers.
func (r *Ring) Lost() uint64 { return r.lost.Load() }

// Last returns the newest n records that match, oldest first.
func (r *Ring) Last(n int, f Filter) []*Record {
	return r.last(r.head.Load(), n, f)
}

// last looks at the records up to the one with ID head.
func (r *Ring) last(head uint64, n int, f Filter) []*Record {
	var found []*Record
	size := uint64(len(r.slots))
	for id := head; id > 0 && id+size > head && len(found) < n; id-- {
		k := r.slots[id%size].Load()
		if k == nil || k.id != id {
			continue
		}
		if rec := k.record(); f.Match(&rec) {
			found = append(found, &rec)
		}
	}
	slices.Reverse(found)
	return found
}

// Entry is what a watcher receives: a record, or a gap.
type Entry struct {
	// Record is nil when the entry reports a gap. It is read-only.
	Record *Record
	// Lost is how many records the watcher was too slow to see since the
	// previous entry. They were not looked at, so some may not have matched.
	Lost uint64
}

// Watch yields the newest last matching records, oldest first, and then each
// matching record as it is added, until ctx is done or the consumer stops.
// Every record added after the call of Watch's first turn is either looked at
// or counted in an Entry's Lost.
func (r *Ring) Watch(ctx context.Context, f Filter, last int) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		w := r.enter()
		defer r.leave(w)
		head := r.settled()
		for _, rec := range r.last(head, last, f) {
			if ctx.Err() != nil || !yield(Entry{Record: rec}) {
				return
			}
		}
		r.follow(ctx, w, head+1, f, yield)
	}
}

// settled returns the highest ID up to which no writer is between taking an ID
// and putting its record there; a watcher that began above it would never see
// that record.
func (r *Ring) settled() uint64 {
	head, size := r.head.Load(), uint64(len(r.slots))
	settled := head
	for id := head; id > 0 && id+size > head; id-- {
		if k := r.slots[id%size].Load(); k == nil || k.id < id {
			settled = id - 1
		}
	}
	return settled
}

// follow yields from record ID next on.
func (r *Ring) follow(ctx context.Context, w *watcher, next uint64, f Filter, yield func(Entry) bool) {
	for ctx.Err() == nil {
		rec, lost := r.read(next)
		if lost > 0 {
			r.lost.Add(lost)
			next += lost
			if !yield(Entry{Lost: lost}) {
				return
			}
			continue
		}
		if rec != nil {
			next++
			if f.Match(rec) && !yield(Entry{Record: rec}) {
				return
			}
			continue
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
	}
}

// read returns record id, or how many records from id on are gone, or neither
// when record id is not there yet.
func (r *Ring) read(id uint64) (*Record, uint64) {
	size := uint64(len(r.slots))
	if k := r.slots[id%size].Load(); k != nil && k.id == id {
		rec := k.record()
		return &rec, 0
	}
	if head := r.head.Load(); head >= id+size {
		// IDs up to head-size have a successor in their slot, or are about to.
		return nil, head - size + 1 - id
	}
	return nil, 0
}

func (r *Ring) enter() *watcher {
	w := &watcher{wake: make(chan struct{}, 1)}
	r.join.Lock()
	defer r.join.Unlock()
	list := append(slices.Clone(*r.watchers.Load()), w)
	r.watchers.Store(&list)
	return w
}

func (r *Ring) leave(w *watcher) {
	r.join.Lock()
	defer r.join.Unlock()
	list := slices.DeleteFunc(slices.Clone(*r.watchers.Load()), func(o *watcher) bool { return o == w })
	r.watchers.Store(&list)
}
