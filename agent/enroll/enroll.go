// Package enroll makes the pods of a node be what the configuration says: it
// enrolls the workloads that belong in the mesh, has them served, keeps their
// modes up to date, and takes out those that no longer belong.
//
// It is level-triggered: each pod's worker looks at what is desired now and at
// what it has realized, never at what changed. Errors stay with the pod that
// has them: they are retried with growing pauses and shown in its status. It
// knows nothing of how a pod is enrolled (Datapath) or carried (Server).
//
// A Reconciler is safe for concurrent use; Run blocks and waits for every
// goroutine it started.
package enroll

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Datapath is the kernel's part of enrolling. It is safe for concurrent use.
type Datapath interface {
	// Enroll puts the mesh around a workload and returns what to serve, or
	// brings the modes of one that is enrolled up to date, or moves it to its new
	// namespace or addresses, whose gate is not detached for it. An error leaves
	// nothing half done: what was enrolled stays behind its gate.
	// Of one whose identity is revoked no connection goes on that was open before
	// it was enrolled, and no query leaves unread.
	Enroll(ctx context.Context, w *mesh.Workload, revoked bool) (proxy.Pod, error)
	// Unenroll takes everything back. It works for pods of earlier agents and
	// for those whose network namespace is gone, and may be repeated.
	Unenroll(ctx context.Context, key mesh.Key) error
	// Prune unenrolls whatever an earlier agent left that is not in keep.
	Prune(ctx context.Context, keep []mesh.Key) error
}

// Server carries an enrolled pod's connections until ctx is done.
type Server interface {
	Serve(ctx context.Context, pod proxy.Pod) error
}

// Identities is told which SVIDs the node needs.
type Identities interface {
	Want(ids []spiffeid.ID) error
	Certificate(id spiffeid.ID) (*tls.Certificate, error)
	Changed() <-chan struct{}
}

// Places knows where the node's pods run that the configuration names no
// network namespace of. It is safe for concurrent use.
type Places interface {
	// Find returns the path of the pod's network namespace, and its addresses,
	// which may not be known. A pod of the same name that is another one is not
	// found.
	Find(w *mesh.Workload) (netNS string, addrs []netip.Addr, ok bool)
	// Synced reports whether a pod that Find does not know does not run.
	Synced() bool
	// Changed returns a channel that the next change closes.
	Changed() <-chan struct{}
}

// Config is what a Reconciler works with. Everything but the times and Places
// must be set.
type Config struct {
	Node  string
	Store *mesh.Store
	// Places is nil where every workload is named by a path.
	Places     Places
	Datapath   Datapath
	Server     Server
	Identities Identities
	Log        *slog.Logger
	// Confirmed reports whether the operator itself has said that the Store's
	// configuration is the newest. Until then nothing is pruned: one from disk
	// may be older than what an earlier agent enrolled. nil means always.
	Confirmed func() bool
	// UnenrollOnExit takes every pod out of the mesh when Run ends; otherwise
	// they stay behind their gates, closed until the next agent.
	UnenrollOnExit bool
	// AwaitCertificate is how long enrolling waits for the pod's first SVID,
	// so that a pod is not cut off before the agent can carry it; 5 s when zero.
	AwaitCertificate time.Duration
	// MinRetry and MaxRetry bound the pause after a failure; 500 ms and 30 s.
	MinRetry, MaxRetry time.Duration
	// Settle bounds how long a pod stays in the mesh that is taken out of it
	// again and again, in case it is put back; 30 s when zero. One that refuses
	// plaintext stays for a second at most.
	Settle time.Duration
}

// State says how far a pod's enrolment has come.
type State string

// The states.
const (
	Enrolling   State = "enrolling"
	Enrolled    State = "enrolled"
	Unenrolling State = "unenrolling"
	Failed      State = "failed"
)

// Status is one pod's enrolment.
type Status struct {
	Key   mesh.Key
	State State
	// Err is why State is Failed, or why the last change could not be made.
	Err error
	// Since is when State became what it is.
	Since time.Time
	// Workload is what was desired last.
	Workload *mesh.Workload
	// NetNS is the network namespace that an Enrolled or Failed State is about.
	NetNS string
	// Stays is until when a pod stays that is to leave, and has left again and again
	// before, in case it is put back; zero for all others.
	Stays time.Time
	// Gated is what the pod is behind its gate as: what leaves it has these addresses,
	// whether it is served or not. nil when that is not so, or not known to this agent.
	Gated *mesh.Workload
	// looked is set once it is known whether the pod is behind its gate.
	looked bool
}

// Reconciler enrolls the workloads of one node.
type Reconciler struct {
	cfg      Config
	failures atomic.Uint64
	pause    pause
	settling settling // of Run's goroutine
	pods     struct {
		sync.Mutex
		workers map[mesh.Key]*worker
		gating  gating
		missing map[mesh.Key]Status
		// changed is closed, and replaced, when a pod's Status changes.
		changed chan struct{}
	}
}

// New returns a Reconciler; Run starts it.
func New(cfg Config) *Reconciler {
	cfg.AwaitCertificate = cmp.Or(cfg.AwaitCertificate, 5*time.Second)
	cfg.MinRetry = cmp.Or(cfg.MinRetry, 500*time.Millisecond)
	cfg.MaxRetry = cmp.Or(cfg.MaxRetry, 30*time.Second)
	cfg.Settle = cmp.Or(cfg.Settle, 30*time.Second)
	if cfg.Confirmed == nil {
		cfg.Confirmed = func() bool { return true }
	}
	r := &Reconciler{cfg: cfg, settling: settling{longest: cfg.Settle, pods: map[mesh.Key]*leaving{}}}
	r.pods.workers = map[mesh.Key]*worker{}
	r.pods.changed = make(chan struct{})
	return r
}

// Run reconciles until ctx is done, and returns when every pod's connections
// have been drained. It returns nil. After the cause ErrLeave no pod is taken out
// of the mesh.
func (r *Reconciler) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	var retry <-chan time.Time
	pruned := false // what an earlier agent left is taken back once
	for {
		confirmed := r.cfg.Confirmed() // before: of this configuration, or an older one
		view, changed := r.cfg.Store.Snapshot()
		moved, placed := r.placesChanged()
		retry = nil
		var settled <-chan time.Time
		// Nothing is taken from a configuration that is not there yet: a pod
		// that an earlier agent enrolled keeps its gate.
		if view.Synced() {
			desired := r.desired(view)
			r.want(view)
			// First: a leftover may hold a namespace that has a new owner.
			switch {
			case pruned:
			case !placed || !confirmed || !r.pause.tryEnter():
				retry = time.After(r.cfg.MinRetry)
			default:
				if pruned = r.prune(ctx, view, desired); !pruned {
					retry = time.After(r.cfg.MaxRetry)
				}
				r.pause.leave()
			}
			if hold := r.assign(ctx, view, desired, &workers); hold > 0 {
				settled = time.After(hold)
			}
			r.setMissing(view, desired, placed)
			if placed && confirmed && len(r.unplaced(view, desired)) == 0 {
				r.setAssigned()
			}
			for _, s := range r.settling.news() {
				r.cfg.Log.Warn("pod leaves the mesh again and again, as when two programs fight over its label: it stays in for a moment, in case it is put back",
					"workload", s.key, "times", s.times, "stays", s.lasts)
			}
		}
		select {
		case <-settled:
		case <-changed:
		case <-moved:
		case <-retry:
		case <-ctx.Done():
			return nil
		}
	}
}

// placesChanged returns a channel for the next change of places, and whether all
// of them are known.
func (r *Reconciler) placesChanged() (<-chan struct{}, bool) {
	if r.cfg.Places == nil {
		return nil, true
	}
	changed := r.cfg.Places.Changed()
	return changed, r.cfg.Places.Synced()
}

// placed returns a workload of this node with its network namespace; nil when
// that is not known.
func (r *Reconciler) placed(w *mesh.Workload) *mesh.Workload {
	if w.NetNS != "" || r.cfg.Places == nil {
		return w
	}
	netNS, addrs, ok := r.cfg.Places.Find(w)
	if !ok {
		return nil
	}
	there := *w
	there.NetNS = netNS
	// The node knows them first: what the operator says of them later is no move.
	if len(addrs) > 0 {
		there.Addresses = addrs
	}
	return &there
}

// desired returns the workloads of this node that belong in the mesh. Two that
// name one network namespace cannot both be right: the first by key has it.
func (r *Reconciler) desired(view *mesh.View) map[mesh.Key]*target {
	all := map[mesh.Key]*target{}
	owner := map[string]mesh.Key{}
	for _, w := range view.OnNode(r.cfg.Node) {
		if !w.Enrolled {
			continue
		}
		if w = r.placed(w); w == nil || w.NetNS == "" {
			continue
		}
		t := &target{workload: w, revoked: view.Revoked(w.Identity)}
		if first, taken := owner[w.NetNS]; taken {
			t.conflict = first
		} else {
			owner[w.NetNS] = w.Key
		}
		all[w.Key] = t
	}
	return all
}

// want asks for the SVIDs of the node's workloads, also of those of which it is not
// known yet where they run: what is not asked for is forgotten, and a runtime may
// answer later than a certificate that an earlier agent left is needed.
func (r *Reconciler) want(view *mesh.View) {
	var ids []spiffeid.ID
	for _, w := range view.OnNode(r.cfg.Node) {
		if w.Enrolled && (w.NetNS != "" || r.cfg.Places != nil) && !slices.Contains(ids, w.Identity) {
			ids = append(ids, w.Identity)
		}
	}
	if err := r.cfg.Identities.Want(ids); err != nil {
		r.cfg.Log.Error("certificates of some workloads cannot be had", "error", err)
	}
}

// assign gives every worker its target, and starts workers that are missing. It
// returns how long those may stay that leave too often; 0 when there are none.
func (r *Reconciler) assign(ctx context.Context, view *mesh.View, desired map[mesh.Key]*target, workers *sync.WaitGroup) (hold time.Duration) {
	r.pods.Lock()
	defer r.pods.Unlock()
	for key, w := range r.pods.workers {
		if desired[key] != nil {
			continue
		}
		if !r.runs(w.target()) {
			r.settling.gone(key)
			w.aim(nil)
			continue
		}
		out := r.saysOut(view, w.target().workload)
		if out == nil {
			continue // deleted, but for its processes: they do not get an open door
		}
		if left := r.settling.leave(key, time.Now(), refusesPlaintext(out)); left > 0 {
			hold = cmp.Or(min(hold, left), left)
			w.keep(time.Now().Add(left))
			continue
		}
		w.aim(nil)
	}
	for key, t := range desired {
		r.settling.back(key)
		w, ok := r.pods.workers[key]
		if !ok {
			w = newWorker(r, key, t)
			w.state.status.looked = r.pods.gating.kept != nil && !r.pods.gating.kept[key]
			r.pods.workers[key] = w
			workers.Go(func() { w.run(ctx) })
			continue
		}
		w.aim(t)
	}
	return hold
}

// runs reports whether a pod is still where it was, whatever the configuration
// says of it.
func (r *Reconciler) runs(t *target) bool {
	if t == nil || r.cfg.Places == nil {
		return false
	}
	_, _, ok := r.cfg.Places.Find(t.workload)
	return ok
}

// saysOut returns this very pod as the configuration has it outside the mesh; nil when
// it has not.
func (r *Reconciler) saysOut(view *mesh.View, was *mesh.Workload) *mesh.Workload {
	if w, ok := view.Workload(was.Key); ok && w.Node == r.cfg.Node && w.UID == was.UID && !w.Enrolled {
		return w
	}
	return nil
}

// retireWorker forgets a worker that has nothing left to do; false means that
// it was given a target meanwhile.
func (r *Reconciler) retireWorker(w *worker) bool {
	r.pods.Lock()
	retired := w.target() == nil
	if retired {
		delete(r.pods.workers, w.key)
		r.pods.gating.leftLocked(w.key)
	}
	r.pods.Unlock()
	if retired {
		r.announce()
	}
	return retired
}

// unplaced returns the node's pods of the mesh of which it is not known where they run.
func (r *Reconciler) unplaced(view *mesh.View, desired map[mesh.Key]*target) (keys []mesh.Key) {
	for _, w := range view.OnNode(r.cfg.Node) {
		if w.Enrolled && w.NetNS == "" && r.cfg.Places != nil && desired[w.Key] == nil {
			keys = append(keys, w.Key)
		}
	}
	return keys
}

// prune takes back what an earlier agent left of pods that are no longer in the
// mesh. False means that it must be tried again: it did not work, or there are
// pods of the mesh of which it is not known where they run. Those keep their
// gates: a runtime shows a pod some time after it was enrolled.
func (r *Reconciler) prune(ctx context.Context, view *mesh.View, desired map[mesh.Key]*target) bool {
	unplaced := r.unplaced(view, desired)
	keep := slices.AppendSeq(unplaced, maps.Keys(desired))
	r.pods.Lock()
	for key := range r.pods.workers {
		keep = append(keep, key)
	}
	r.pods.gating.keepLocked(keep)
	r.pods.Unlock()
	if err := r.cfg.Datapath.Prune(ctx, keep); err != nil {
		r.cfg.Log.Error("what an earlier agent left cannot be taken back: trying again", "error", err)
		return false
	}
	return len(unplaced) == 0
}

// Gone says that a pod's network namespace, or its link, went away: it is no
// longer served, stays closed, and is enrolled again when there is something to
// enroll.
func (r *Reconciler) Gone(key mesh.Key, why error) {
	r.pods.Lock()
	defer r.pods.Unlock()
	if w, ok := r.pods.workers[key]; ok {
		w.lose(why)
	}
}

// Status returns the enrolment of every pod, sorted by key; Failed, too, of one that is Ready and
// that nobody finds on the node.
func (r *Reconciler) Status() []Status {
	r.pods.Lock()
	defer r.pods.Unlock()
	all := append(r.statusLocked(), r.missingLocked()...)
	slices.SortFunc(all, func(a, b Status) int { return a.Key.Compare(b.Key) })
	return all
}

func (r *Reconciler) statusLocked() []Status {
	all := make([]Status, 0, len(r.pods.workers))
	for _, w := range r.pods.workers {
		all = append(all, w.status())
	}
	slices.SortFunc(all, func(a, b Status) int { return a.Key.Compare(b.Key) })
	return all
}

// Failures counts the enrolments, and changes of enrolled pods, that did not
// work; each try that fails is one.
func (r *Reconciler) Failures() uint64 { return r.failures.Load() }

// Settled reports whether every pod of a configuration that was received is
// enrolled: the agent is ready.
func (r *Reconciler) Settled() bool {
	if _, placed := r.placesChanged(); !placed || !r.cfg.Store.View().Synced() {
		return false
	}
	for _, s := range r.Status() {
		if s.State == Enrolling {
			return false
		}
	}
	return true
}
