// Package drain ends the streams of a gRPC server in good order: those that live are
// told, new ones are refused, and whoever drains waits for the last.
package drain

import (
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Err is the status by which a stream ends, and makes an agent connect again.
func Err() error { return status.Error(codes.Unavailable, "operator is draining: connect again") }

// Streams counts the streams that live. It is safe for concurrent use.
type Streams struct {
	begun chan struct{} // closed when they are to end
	live  sync.WaitGroup

	mu    sync.Mutex
	ended bool
}

// New returns Streams without any.
func New() *Streams { return &Streams{begun: make(chan struct{})} }

// Enter counts a stream in, unless draining has begun. Leave is the end of it.
func (s *Streams) Enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.live.Add(1)
	}
	return !s.ended
}

// Beside counts a goroutine in that a stream has started, which is counted still.
// Leave is the end of it.
func (s *Streams) Beside() { s.live.Add(1) }

// Leave counts a stream out, or what Beside counted.
func (s *Streams) Leave() { s.live.Done() }

// Begun returns a channel that is closed when streams are to end.
func (s *Streams) Begun() <-chan struct{} { return s.begun }

// Drain ends the streams, refuses new ones, and waits until the last has left. More
// calls wait as well.
func (s *Streams) Drain() {
	s.mu.Lock()
	if !s.ended {
		s.ended = true
		close(s.begun)
	}
	s.mu.Unlock()
	s.live.Wait()
}
