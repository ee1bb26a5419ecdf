package wire

import (
	"context"
	"sync"
)

// Scope is a context that is made when it is asked for: a connection that is carried
// without waiting has no use for one. Parent must be set. It is safe for concurrent
// use.
type Scope struct {
	Parent context.Context
	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelFunc
	over   bool
}

// Context is a child of Parent that End ends, or has ended.
func (s *Scope) Context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil {
		s.ctx, s.cancel = context.WithCancel(s.Parent)
		if s.over {
			s.cancel()
		}
	}
	return s.ctx
}

// End ends the context, whoever asks for it when.
func (s *Scope) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.cancel != nil {
		s.cancel()
	}
}
