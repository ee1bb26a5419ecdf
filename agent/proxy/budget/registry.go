package budget

import "sync"

// Registry numbers what is live. The zero value is ready; it is safe for concurrent
// use.
type Registry[T any] struct {
	mu   sync.Mutex
	next uint64
	byID map[uint64]T
}

// Add returns the number of one more, which is given once. The first is 1.
func (r *Registry[T]) Add(one T) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID == nil {
		r.byID = map[uint64]T{}
	}
	r.next++
	r.byID[r.next] = one
	return r.next
}

// Remove forgets one.
func (r *Registry[T]) Remove(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byID, id)
}

// Len counts them.
func (r *Registry[T]) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byID)
}

// All returns them, in no order.
func (r *Registry[T]) All() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := make([]T, 0, len(r.byID))
	for _, one := range r.byID {
		found = append(found, one)
	}
	return found
}
