package enroll

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrLeave is the cause to cancel Run's context with when the pods are another
// agent's: they stay enrolled, whatever Config.UnenrollOnExit says.
var ErrLeave = errors.New("the pods are another agent's")

// pause keeps workers from beginning a step. The zero pause keeps nobody.
type pause struct {
	mu     sync.Mutex
	paused bool
	busy   int
	// changed is closed, and replaced, at every change that somebody may wait for.
	changed chan struct{}
}

// signal wakes whoever waits; mu is held.
func (p *pause) signal() {
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// wait returns a channel that the next change closes; mu is held.
func (p *pause) wait() <-chan struct{} {
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return p.changed
}

// enter begins a step, for which it waits while paused; false means that ctx is
// done.
func (p *pause) enter(ctx context.Context) bool {
	for ctx.Err() == nil {
		if p.tryEnter() {
			return true
		}
		p.mu.Lock()
		changed := p.wait()
		still := p.paused
		p.mu.Unlock()
		if !still {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return false
}

func (p *pause) tryEnter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused {
		return false
	}
	p.busy++
	return true
}

func (p *pause) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	p.signal()
}

// Pause leaves the pods as they are until Resume: steps that have begun are
// waited for, and none begins. Serving goes on. After an error nothing is paused.
func (r *Reconciler) Pause(ctx context.Context) error {
	p := &r.pause
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = true
	for p.busy > 0 {
		changed := p.wait()
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		p.mu.Lock()
		if ctx.Err() != nil && p.busy > 0 {
			p.paused = false
			p.signal()
			return fmt.Errorf("pause: a pod is being enrolled or taken out: %w", ctx.Err())
		}
	}
	return nil
}

// Resume ends Pause: every pod is enrolled as is desired by now, since another
// agent may have enrolled it otherwise meanwhile, and those that are no longer
// served are served again.
func (r *Reconciler) Resume() {
	r.pause.mu.Lock()
	r.pause.paused = false
	r.pause.signal()
	r.pause.mu.Unlock()
	r.pods.Lock()
	defer r.pods.Unlock()
	for _, w := range r.pods.workers {
		w.doubt()
	}
}

// Detach ends the serving of every pod for a cause, and does not wait: Serve
// returns when what it carries is gone. Call it while paused; the pods are not
// served again before Resume.
func (r *Reconciler) Detach(cause error) {
	r.pods.Lock()
	defer r.pods.Unlock()
	for _, w := range r.pods.workers {
		if s := w.takeServing(); s != nil {
			s.cancel(cause)
		}
	}
}

// Served reports whether every pod is served that is, or is to be, and has not
// failed.
func (r *Reconciler) Served() bool {
	r.pods.Lock()
	defer r.pods.Unlock()
	for _, w := range r.pods.workers {
		if state := w.status().State; (state == Enrolled || state == Enrolling) && w.serving() == nil {
			return false
		}
	}
	return true
}
