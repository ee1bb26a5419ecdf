package netns

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxStock bounds the sockets that are made ahead, in one Stock.
	maxStock = 32
	// stockIdle is how long a stock stays that nobody takes from.
	stockIdle = 10 * time.Second
	// maxShelf bounds them for a Shelf: they count against the limit of open
	// descriptors, and no connection is charged for them.
	maxShelf = 512
)

// Shelf counts the sockets that the Stocks of a node have made ahead.
type Shelf struct{ used atomic.Int64 }

// take makes room for up to n sockets, and returns for how many.
func (s *Shelf) take(n int) int {
	over := s.used.Add(int64(n)) - maxShelf
	if over <= 0 {
		return n
	}
	back := min(int(over), n)
	s.give(back)
	return n - back
}

func (s *Shelf) give(n int) { s.used.Add(-int64(n)) }

// Stock is sockets that were made ahead in a namespace, bound to nothing: making
// one takes a trip there on another thread. How many a trip brings follows the
// demand, and what there is room for.
type Stock struct {
	shelf *Shelf
	mu    sync.Mutex
	ready []int
	trip  int // what the next one brings
	last  time.Time
	shut  bool
}

// On makes the sockets count on a Shelf. It must come first.
func (s *Stock) On(shelf *Shelf) { s.shelf = shelf }

// Take returns a socket, by makeSome for several of them when there is none.
func (s *Stock) Take(makeSome func(into []int) error) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ready) == 0 {
		if time.Since(s.last) > time.Second {
			s.trip = 1
		} else {
			s.trip = min(2*max(1, s.trip), maxStock)
		}
		ahead := 0
		if !s.shut {
			ahead = s.shelf.take(s.trip - 1)
		}
		batch := make([]int, 1+ahead)
		if err := makeSome(batch); err != nil {
			s.shelf.give(ahead)
			return -1, err
		}
		s.ready, s.last = batch[:ahead], time.Now()
		return batch[ahead], nil
	}
	fd := s.ready[len(s.ready)-1]
	s.ready = s.ready[:len(s.ready)-1]
	s.shelf.give(1)
	return fd, nil
}

// Tidy gives back what nobody has taken for long.
func (s *Stock) Tidy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.last) < stockIdle {
		return nil
	}
	return s.empty()
}

// Close gives everything back, and keeps nothing from now on.
func (s *Stock) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
	return s.empty()
}

func (s *Stock) empty() error {
	var errs []error
	for _, fd := range s.ready {
		errs = append(errs, CloseFd(fd))
	}
	s.shelf.give(len(s.ready))
	s.ready = nil
	return errors.Join(errs...)
}
