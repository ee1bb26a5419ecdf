package cni

import (
	"context"
	"time"
)

// A runtime that does not answer is asked again after so long, and is not asked
// more often than lookPause, whoever wants to know.
const (
	lookRetry = time.Second
	// At first it is looked more often: what another agent has just answered for is
	// shown by the runtime a moment later, and a hand-over waits for it.
	firstLooks  = time.Minute
	lookPause   = 500 * time.Millisecond
	lookTimeout = 20 * time.Second
)

// lookSoon asks for a look at what the runtime runs.
func (s *Server) lookSoon() {
	select {
	case s.look <- struct{}{}:
	default: // it is asked for already
	}
}

// Follow keeps the places equal to what the runtime runs, until ctx is done. It
// looks only, and may run beside another agent's.
func (s *Server) Follow(ctx context.Context) {
	if s.cfg.Runtime == nil {
		return
	}
	failing := false
	began := time.Now()
	for {
		pause := s.cfg.ScanEvery
		if time.Since(began) < firstLooks {
			pause = min(lookRetry, pause)
		}
		look, cancel := context.WithTimeout(ctx, lookTimeout)
		running, err := s.cfg.Runtime.Running(look)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			pause = min(lookRetry, pause)
			if !failing {
				s.cfg.Log.Error("running pods are not known: they stay as they are until the runtime answers", "error", err)
			}
		case failing:
			s.cfg.Log.Info("container runtime answers again", "pods", len(running))
		}
		failing = err != nil
		if err == nil {
			for _, what := range s.cfg.Places.Update(running) {
				s.cfg.Log.Error("runtime's word does not hold: the kernel's does", "contradiction", what)
			}
		}
		select {
		case <-s.look:
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(lookPause):
		case <-ctx.Done():
			return
		}
	}
}
