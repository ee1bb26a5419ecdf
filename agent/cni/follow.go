package cni

import (
	"context"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// A runtime that does not answer is asked again after so long, and is not asked
// more often than lookPause, whoever wants to know.
const (
	lookRetry   = time.Second
	lookPause   = 200 * time.Millisecond
	lookTimeout = 20 * time.Second
	// lookShare is what part of the time that a pod has been looked for passes until
	// it is looked for again.
	lookShare = 10
)

// Look asks for a look at what the runtime runs, now, and for close ones while a pod
// of the mesh is not known to run: pods may just have started without heddle-cni. It
// does not wait.
func (s *Server) Look() {
	select {
	case s.look <- struct{}{}:
	default: // it is asked for already
	}
}

// Follow keeps the places equal to what the runtime runs, until ctx is done. It
// looks only, and may run beside another agent's.
//
// A pod of the mesh that has no place either is about to ask, by heddle-cni, or has
// started without it: it is looked for at once, and ever less often.
func (s *Server) Follow(ctx context.Context) {
	if s.cfg.Runtime == nil {
		return
	}
	failing := false
	began := time.Now()
	sought := search{since: began, of: map[mesh.Key]bool{}}
	for {
		look, cancel := context.WithTimeout(ctx, lookTimeout)
		running, err := s.cfg.Runtime.Running(look)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
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
		often := failing || time.Since(began) < s.cfg.FirstLooks
		if !s.await(ctx, &sought, often) {
			return
		}
		select {
		case <-time.After(lookPause):
		case <-ctx.Done():
			return
		}
	}
}

// search is for pods of the mesh that are not known to run.
type search struct {
	of    map[mesh.Key]bool
	since time.Time // the newest of them is sought, or a look was asked for
}

// renew seeks what is missing now, and reports whether there is one that was not
// sought before.
func (f *search) renew(missing map[mesh.Key]bool) (more bool) {
	for key := range missing {
		more = more || !f.of[key]
	}
	if f.of = missing; more {
		f.since = time.Now()
	}
	return more
}

// await returns when the runtime is to be asked again, and false when ctx is done.
func (s *Server) await(ctx context.Context, sought *search, often bool) bool {
	_, changed := s.cfg.Store.Snapshot()
	sought.renew(s.missing())
	timer := time.NewTimer(s.pause(sought, often))
	defer timer.Stop()
	for {
		select {
		case <-s.look:
			sought.since = time.Now()
			return true
		case <-timer.C:
			return true
		case <-changed:
			_, changed = s.cfg.Store.Snapshot()
			if sought.renew(s.missing()) {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
}

func (s *Server) pause(sought *search, often bool) time.Duration {
	pause := s.cfg.ScanEvery
	if often {
		pause = min(lookRetry, pause)
	}
	if len(sought.of) > 0 {
		pause = min(pause, time.Since(sought.since)/lookShare)
	}
	return pause
}

// missing are the pods of this node that belong in the mesh, and are not known to
// run anywhere.
func (s *Server) missing() map[mesh.Key]bool {
	missing := map[mesh.Key]bool{}
	view, _ := s.cfg.Store.Snapshot()
	for _, w := range view.OnNode(s.cfg.Node) {
		if !w.Enrolled || w.NetNS != "" {
			continue
		}
		if _, _, found := s.cfg.Places.Find(w); !found {
			missing[w.Key] = true
		}
	}
	return missing
}
