package relay

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// worker is one loop and the pairs that live on it.
type worker struct {
	relay   *Relay
	loop    *eventloop.Loop
	ended   chan struct{} // closed when the loop has ended
	scratch []byte        // what a direction reads into; empty between turns

	pairs []*Carrying
	// What has something to do in this turn, and the list before, to be used
	// again.
	ready, before []*way

	posts struct {
		sync.RWMutex
		over bool
	}
}

// worker returns the loop for the next pair, and starts the loops if they do not
// run. Loops that cannot be had are done without, as long as there is one.
func (r *Relay) worker() (*worker, error) {
	r.loops.Lock()
	defer r.loops.Unlock()
	if r.loops.closed {
		return nil, ErrClosed
	}
	for len(r.loops.workers) < runtime.GOMAXPROCS(0) {
		w := &worker{relay: r, ended: make(chan struct{}), scratch: make([]byte, bufferBytes)}
		var err error
		if w.loop, err = eventloop.New(w.turn); err != nil {
			if len(r.loops.workers) > 0 {
				break
			}
			return nil, fmt.Errorf("start event loop: %w", err)
		}
		r.loops.workers = append(r.loops.workers, w)
		go w.run()
	}
	r.loops.next++
	return r.loops.workers[r.loops.next%len(r.loops.workers)], nil
}

func (r *Relay) workers() []*worker {
	r.loops.Lock()
	defer r.loops.Unlock()
	return slices.Clone(r.loops.workers)
}

// stopLoops ends the loops and what is on them, and waits for both.
func (r *Relay) stopLoops() {
	r.loops.Lock()
	r.loops.closed = true
	workers := r.loops.workers
	r.loops.workers = nil
	r.loops.Unlock()
	for _, w := range workers {
		w.stop()
	}
	for _, w := range workers {
		<-w.ended
	}
}

func (w *worker) run() {
	defer close(w.ended)
	err := w.loop.Run()
	w.posts.Lock()
	w.posts.over = true
	w.posts.Unlock()
	if err == nil {
		err = ErrReset
	}
	for len(w.pairs) > 0 {
		w.pairs[0].fail(err)
	}
}

// post is Loop.Post, which returns false from the moment that the loop is told
// to stop: nothing that was posted is left undone.
func (w *worker) post(fn func()) bool {
	w.posts.RLock()
	defer w.posts.RUnlock()
	return !w.posts.over && w.loop.Post(fn)
}

// call runs fn on the loop and waits for it. It returns false when the loop has
// ended.
func (w *worker) call(fn func()) bool {
	ran := make(chan struct{})
	if !w.post(func() { fn(); close(ran) }) {
		return false
	}
	select {
	case <-ran:
		return true
	case <-w.ended: // by an error of the loop's, or right after fn
		select {
		case <-ran:
			return true
		default:
			return false
		}
	}
}

func (w *worker) stop() {
	w.posts.Lock()
	defer w.posts.Unlock()
	if !w.posts.over {
		w.posts.over = true
		w.loop.Stop()
	}
}

// turn moves what the events of this turn have announced.
func (w *worker) turn() bool {
	ready := w.ready
	w.ready = w.before[:0]
	for i, d := range ready {
		ready[i] = nil
		d.queued = false
		if d.pump() {
			w.queue(d)
		}
	}
	w.before = ready
	return len(w.ready) > 0
}

func (w *worker) queue(d *way) {
	if !d.queued {
		d.queued = true
		w.ready = append(w.ready, d)
	}
}

// watch begins to hear of a pair's sockets.
func (w *worker) watch(c *Carrying) error {
	for i := range c.ways {
		if err := w.loop.Register(c.ways[i].fd, &c.ways[i]); err != nil {
			if i > 0 {
				err = errors.Join(err, w.loop.Remove(c.ways[0].fd))
			}
			return err
		}
	}
	c.index = len(w.pairs)
	w.pairs = append(w.pairs, c)
	return nil
}

// forget is the end of watch for sockets that are about to be closed.
func (w *worker) forget(c *Carrying) {
	for i := range c.ways {
		w.loop.Forget(c.ways[i].fd)
	}
	w.unlist(c)
}

// remove is the end of watch for sockets that another process has: closing them
// here would not take them out of the epoll.
func (w *worker) remove(c *Carrying) {
	for i := range c.ways {
		// Fails on what is not in it, which is what was wanted.
		_ = w.loop.Remove(c.ways[i].fd)
	}
	w.unlist(c)
}

func (w *worker) unlist(c *Carrying) {
	last := len(w.pairs) - 1
	w.pairs[c.index] = w.pairs[last]
	w.pairs[c.index].index = c.index
	w.pairs[last] = nil
	w.pairs = w.pairs[:last]
}
