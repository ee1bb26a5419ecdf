package bpf

import "sync"

// olds knows when a pod has no grandfathered connection, so that nobody looks for one in a
// table that may be large. It is safe for concurrent use; the zero value knows nothing.
type olds struct {
	mu     sync.Mutex
	made   uint64 // passes that may have made some
	absent uint64 // one more than the passes after which none were found; 0 before
}

// pass says that a pass which may have made some has ended.
func (o *olds) pass() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.made++
}

// passes counts them, for none.
func (o *olds) passes() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.made
}

// none says that none were found in a walk that began after so many passes. One that went on
// meanwhile ends after it, and is counted then.
func (o *olds) none(passes uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.absent = passes + 1
}

// known reports whether it is known that there are none.
func (o *olds) known() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.absent == o.made+1
}
