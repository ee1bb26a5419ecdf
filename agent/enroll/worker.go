package enroll

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// exitTimeout bounds what unenrolling at exit may take for one pod.
const exitTimeout = 10 * time.Second

// target is what a pod should be.
type target struct {
	workload *mesh.Workload
	revoked  bool // its identity is
	// conflict is another workload that has the same network namespace.
	conflict mesh.Key
}

// worker realizes the target of one pod, one step after the other.
type worker struct {
	r    *Reconciler
	key  mesh.Key
	wake chan struct{} // capacity 1

	state struct {
		sync.Mutex
		target *target
		lost   error // why what was realized is gone
		// doubted means that somebody else may have changed what was realized.
		doubted bool
		status  Status
		// serving is what carries the pod; nil when nothing does. A pod that is
		// realized and not served is closed.
		serving *serving
	}

	// Of the worker's own goroutine:

	// realized is what is enrolled; nil when nothing is.
	realized *mesh.Workload
	revoked  bool // it was enrolled as one whose identity is
	// tried is the network namespace that the last step was about.
	tried    string
	failures int
}

// serving is one call of Server.Serve.
type serving struct {
	cancel context.CancelCauseFunc
	ended  chan error // receives Serve's result once
}

// newWorker has its target already: to be told of it again would make it try
// what fails twice at once.
func newWorker(r *Reconciler, key mesh.Key, t *target) *worker {
	w := &worker{r: r, key: key, wake: make(chan struct{}, 1)}
	w.state.target = t
	w.state.status = Status{Key: key, State: Enrolling, Since: time.Now(), Workload: t.workload}
	return w
}

func (w *worker) aim(t *target) {
	w.state.Lock()
	w.state.target = t
	w.state.status.Stays = time.Time{}
	if t != nil {
		w.state.status.Workload = t.workload
	}
	w.state.Unlock()
	w.poke()
}

// keep notes until when the pod keeps its target, though it is to leave.
func (w *worker) keep(until time.Time) {
	w.state.Lock()
	defer w.state.Unlock()
	w.state.status.Stays = until
}

func (w *worker) lose(why error) {
	w.state.Lock()
	w.state.lost = why
	w.state.Unlock()
	w.poke()
}

// doubt makes the next step enroll the pod as it should be, whatever is known of
// it.
func (w *worker) doubt() {
	w.setDoubted(true)
	w.poke()
}

func (w *worker) setDoubted(doubted bool) {
	w.state.Lock()
	defer w.state.Unlock()
	w.state.doubted = doubted
}

// setGated notes what the pod is behind its gate as, and says so when it is news.
func (w *worker) setGated(as *mesh.Workload) {
	w.state.Lock()
	was, looked := w.state.status.Gated, w.state.status.looked
	w.state.status.Gated, w.state.status.looked = as, true
	w.state.Unlock()
	if !looked || (was == nil) != (as == nil) || was != nil && (was.UID != as.UID || !samePlace(was, as)) {
		w.r.announce()
	}
}

func (w *worker) doubted() bool {
	w.state.Lock()
	defer w.state.Unlock()
	return w.state.doubted
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default: // it is told already
	}
}

func (w *worker) target() *target {
	w.state.Lock()
	defer w.state.Unlock()
	return w.state.target
}

// takeLoss returns why what was realized is gone, once.
func (w *worker) takeLoss() error {
	w.state.Lock()
	defer w.state.Unlock()
	why := w.state.lost
	w.state.lost = nil
	return why
}

func (w *worker) serving() *serving {
	w.state.Lock()
	defer w.state.Unlock()
	return w.state.serving
}

// takeServing returns what carries the pod, and makes it nobody's.
func (w *worker) takeServing() *serving {
	w.state.Lock()
	defer w.state.Unlock()
	s := w.state.serving
	w.state.serving = nil
	return s
}

func (w *worker) status() Status {
	w.state.Lock()
	defer w.state.Unlock()
	return w.state.status
}

func (w *worker) show(s State, err error) {
	w.state.Lock()
	if w.state.status.State != s {
		w.state.status.State, w.state.status.Since = s, time.Now()
	}
	w.state.status.Err, w.state.status.NetNS = err, w.tried
	w.state.Unlock()
	w.r.announce()
}

// run reconciles the pod until it has left the mesh or ctx is done.
func (w *worker) run(ctx context.Context) {
	defer func() { w.exit(ctx) }()
	for w.r.pause.enter(ctx) {
		err := w.step(ctx)
		w.r.pause.leave()
		var retry <-chan time.Time
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			pause := min(w.r.cfg.MinRetry<<min(w.failures, 10), w.r.cfg.MaxRetry)
			w.failures++
			w.show(Failed, err)
			w.r.cfg.Log.Error("pod is not as configured: trying again", "workload", w.key, "error", err, "retry", pause)
			retry = time.After(pause)
		case w.realized == nil:
			// Not enrolled, whatever is to be by now: nobody may be told otherwise.
			if w.r.retireWorker(w) {
				return
			}
			continue
		default:
			w.failures = 0
			w.show(Enrolled, nil)
		}
		var ended chan error
		s := w.serving()
		if s != nil {
			ended = s.ended
		}
		select {
		case <-w.wake:
		case <-retry:
		case err := <-ended:
			if w.serving() == s {
				w.takeServing()
				w.lose(fmt.Errorf("serving ended: %w", cmpErr(err)))
			}
		case <-ctx.Done():
		}
	}
}

func cmpErr(err error) error {
	if err == nil {
		return errors.New("listeners were closed")
	}
	return err
}

// step makes what is realized equal to the target, or says why it cannot.
func (w *worker) step(ctx context.Context) error {
	t, lost := w.target(), w.takeLoss()
	if w.tried = ""; t != nil {
		w.tried = t.workload.NetNS
	}
	if lost != nil && w.realized != nil {
		// Its gate stays: a namespace without a path may still have processes in
		// it, and nobody has taken them out of the mesh.
		w.r.cfg.Log.Warn("pod is gone or broken: closed until it can be enrolled anew", "workload", w.key, "error", lost)
		w.setGated(nil)
		w.stopServing(proxy.ErrUnenrolled)
	}
	switch {
	case t == nil:
		return w.leave(ctx)
	case t.conflict != (mesh.Key{}):
		// Not out of the mesh either: a mistake must not open the pod.
		w.setGated(nil)
		w.stopServing(proxy.ErrUnenrolled)
		return fmt.Errorf("network namespace %s belongs to %s already; remedy: give each workload its own", t.workload.NetNS, t.conflict)
	case w.realized != nil && !samePlace(w.realized, t.workload):
		// Not out of the mesh in between: if it cannot be enrolled where it is
		// now, it stays closed where it was.
		w.stopServing(proxy.ErrUnenrolled)
		return w.enter(ctx, t)
	case w.realized == nil || w.serving() == nil:
		return w.enter(ctx, t)
	case w.doubted() || w.revoked != t.revoked || !sameModes(w.realized, t.workload):
		if _, err := w.enroll(ctx, t); err != nil {
			return err
		}
	}
	now := *t.workload
	now.UID = cmp.Or(now.UID, w.realized.UID) // it is served as that
	w.realized = &now
	w.setGated(&now)
	return nil
}

// samePlace reports whether a pod may stay enrolled as it is: one of another UID is
// another pod, wherever it is. Not everybody says a UID.
func samePlace(a, b *mesh.Workload) bool {
	return a.NetNS == b.NetNS && slices.Equal(a.Addresses, b.Addresses) && (a.UID == "" || b.UID == "" || a.UID == b.UID)
}

func sameModes(a, b *mesh.Workload) bool {
	return a.Mode == b.Mode && a.DNS == b.DNS && maps.Equal(a.PortModes, b.PortModes) && slices.Equal(a.ProbePorts, b.ProbePorts)
}

// enter enrolls the pod and has it served.
func (w *worker) enter(ctx context.Context, t *target) error {
	w.show(Enrolling, w.status().Err)
	w.awaitCertificate(ctx, t.workload)
	if w.realized == nil && w.target() == nil {
		return nil // it has changed its mind
	}
	pod, err := w.enroll(ctx, t)
	if err != nil {
		return err
	}
	w.realized = t.workload
	w.setGated(t.workload)
	serveCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	s := &serving{cancel: cancel, ended: make(chan error, 1)}
	w.state.Lock()
	w.state.serving = s
	w.state.Unlock()
	go func() { s.ended <- w.r.cfg.Server.Serve(serveCtx, pod) }()
	return nil
}

// enroll calls the Datapath, and counts what failed unless the agent stops.
func (w *worker) enroll(ctx context.Context, t *target) (proxy.Pod, error) {
	w.setDoubted(false) // before: it may be doubted anew meanwhile
	if was := w.status().Gated; was != nil && !samePlace(was, t.workload) {
		w.setGated(nil) // before its gate knows it by something else
	}
	pod, err := w.r.cfg.Datapath.Enroll(ctx, t.workload, t.revoked)
	w.revoked = t.revoked
	if err != nil {
		w.setDoubted(true)
		w.setGated(nil)
	}
	if err != nil && ctx.Err() == nil {
		w.r.failures.Add(1)
	}
	return pod, err
}

// awaitCertificate gives the pod's first SVID some time to arrive, unless it is no
// longer to be enrolled: then none does.
func (w *worker) awaitCertificate(ctx context.Context, workload *mesh.Workload) {
	deadline := time.NewTimer(w.r.cfg.AwaitCertificate)
	defer deadline.Stop()
	told := false // what it is told while it waits, the next step is about
	defer func() {
		if told {
			w.poke()
		}
	}()
	for {
		changed := w.r.cfg.Identities.Changed()
		if _, err := w.r.cfg.Identities.Certificate(workload.Identity); err == nil {
			return
		}
		if w.target() == nil {
			return
		}
		select {
		case <-changed:
		case <-w.wake:
			told = true
		case <-deadline.C:
			w.r.cfg.Log.Warn("no certificate yet: enrolling all the same", "workload", w.key, "identity", workload.Identity)
			return
		case <-ctx.Done():
			return
		}
	}
}

// stopServing ends the serving for a cause and waits until it has drained.
func (w *worker) stopServing(cause error) {
	s := w.takeServing()
	if s == nil {
		return
	}
	s.cancel(cause)
	if err := <-s.ended; err != nil {
		w.r.cfg.Log.Error("serving ended with an error", "workload", w.key, "error", err)
	}
}

// leave takes the pod out of the mesh. It does nothing for one that is out.
func (w *worker) leave(ctx context.Context) error {
	if w.realized == nil {
		return nil
	}
	w.show(Unenrolling, nil)
	w.setGated(nil) // before the gate goes
	w.stopServing(proxy.ErrLeaving)
	if err := w.r.cfg.Datapath.Unenroll(ctx, w.key); err != nil {
		return err
	}
	w.realized = nil
	return nil
}

// exit drains the pod when the agent goes.
func (w *worker) exit(ctx context.Context) {
	if !w.r.cfg.UnenrollOnExit || errors.Is(context.Cause(ctx), ErrLeave) {
		w.stopServing(context.Cause(ctx))
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exitTimeout)
	defer cancel()
	if err := w.leave(ctx); err != nil {
		w.r.cfg.Log.Error("pod cannot be taken out of the mesh: its gate stays", "workload", w.key, "error", err)
	}
}
