package fast

import (
	"sync/atomic"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/tunnel"
)

// worker is one loop, and the part of the pool that lives on it.
type worker struct {
	*tunnel.Loop
	eng     *Engine
	entries map[hbone.Key]*entry
	load    atomic.Int64  // requests that were placed here; others look at it
	held    []*serverSide // by a Freeze
}

func newWorker(e *Engine) (*worker, error) {
	l, err := tunnel.NewLoop()
	return &worker{Loop: l, eng: e, entries: map[hbone.Key]*entry{}}, err
}

func (w *worker) run() {
	if err := w.Run(); err != nil {
		w.eng.log.Error("event loop ended", "error", err)
	}
}

// drain ends the connections that match once their streams have ended, or now
// when there is a cause. A dial that is under way is not used by anybody new.
func (w *worker) drain(match hbone.Match, cause error) {
	for c := range w.Conns {
		if id := c.Identity(); !match.Matches(id.Source, id.Leaf, id.Peer) {
			continue
		}
		side, ours := c.Role().(*clientSide)
		switch {
		case cause != nil:
			c.Cut(cause)
		case !ours || side.dial == nil: // else its dial is told below
			c.Drain()
		}
	}
	for k, ent := range w.entries {
		if ent.dialing != nil && match.Matches(k.Source, k.Leaf, k.Peer) {
			ent.dialing.drained, ent.dialing.cause = true, cause
		}
	}
}

// cutAll ends everything for the engine's end.
func (w *worker) cutAll() {
	for c := range w.Conns {
		c.Cut(hbone.ErrDraining)
	}
	for _, ent := range w.entries {
		waiting := ent.waiting
		ent.waiting = nil
		for _, o := range waiting {
			o.fail(hbone.ErrDraining)
		}
	}
}
