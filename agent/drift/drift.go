// Package drift sees to it that the kernel's maps hold what the agent has written. The maps
// are pinned, and root on the node can write to them: what was changed behind the agent's
// back is found within a second, written anew, and reported in log, metric and check; of
// rules of datagrams within two where a node has 131,072, and one more for each 65,536 beyond.
// What cannot be written anew is tried again each second.
//
// It looks at what policy is compiled to: each pod's configuration, its ports, and the
// sockets that connections are led to. What comes and goes with connections is not its
// concern. Programs and rules it looks at by podnet.Pod.Check, some pods at a time; it mends
// none of these, and reports them.
package drift

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/bpf"
)

const (
	// every is how often the maps are read: for each pod about ten lookups, and a look at
	// rules of datagrams. Twice that leaves the time to repair something within two seconds.
	every = 900 * time.Millisecond
	// rules is at how many rules of datagrams is looked then, of all pods together, on
	// average: 7 ms of a processor. Where there are more, it takes as many looks as their number
	// makes it.
	rules = 65536
	// gates is of how many pods' programs and rules it looks at then: a look is 1.1 ms of a
	// processor, mostly netlink's.
	gates = 6
	// shown is for how long `heddle check` fails because of what was repaired.
	shown = 10 * time.Minute
	// settled is for how long a pod's maps must have held until they count as what
	// policy says: who changes them again and again is not to be missed in between, nor
	// once by who looks at a policy's status.
	settled = 10 * time.Second
	// passing is how long a failure lasts that is not met anew.
	passing = 3 * every
)

// Watch looks after the maps of a node's pods. It is safe for concurrent use.
type Watch struct {
	node    *podnet.Node
	log     *slog.Logger
	repairs prometheus.Counter
	failing prometheus.GaugeFunc
	next    turn   // of Run, which alone knows
	gate    string // the pod whose gate is next; Run's, too

	mu     sync.Mutex
	last   map[string]repair  // by pod
	failed map[string]failure // by pod: when its maps could last not be read, or mended
	amiss  map[string]gate    // by pod, of those whose gate was not in place at the last look
	found  chan struct{}      // closed, and made anew, at each repair
}

// turn is with which pod a look at the rules of datagrams begins, and at how many more than
// its share the ones before have looked.
type turn struct {
	pod  string
	owed int
}

// repair is what was found of a pod last.
type repair struct {
	at    time.Time
	found string
}

// failure is what kept a pod's maps from being read or mended last.
type failure struct {
	at  time.Time
	err error
}

// gate is one that is not in place: what the first look saw may be a pod that goes.
type gate struct {
	seen bool // the look after has seen it, too
}

// lasts reports whether it was a moment ago.
func (f failure) lasts() bool { return time.Since(f.at) < passing }

// New returns a Watch of a node's pods that does not look yet.
func New(node *podnet.Node, log *slog.Logger) *Watch {
	w := &Watch{
		node: node, log: log, last: map[string]repair{}, failed: map[string]failure{}, amiss: map[string]gate{}, found: make(chan struct{}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "heddle_gate_drift_total", Help: "Entries of the kernel's maps that somebody else had changed, found and repaired.",
		}),
	}
	w.failing = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "heddle_gate_unmended", Help: "Pods whose maps of the kernel cannot be read back, or not be repaired, which is tried each second, or whose gate or rules are not in place.",
	}, w.unmended)
	return w
}

// Describe implements prometheus.Collector, of the metrics of repairs.
func (w *Watch) Describe(all chan<- *prometheus.Desc) {
	w.repairs.Describe(all)
	w.failing.Describe(all)
}

// Collect implements prometheus.Collector.
func (w *Watch) Collect(all chan<- prometheus.Metric) {
	w.repairs.Collect(all)
	w.failing.Collect(all)
}

// unmended is for how many pods reading or repairing failed a moment ago, or whose gate is
// not in place.
func (w *Watch) unmended() float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	pods := map[string]bool{}
	for pod, f := range w.failed {
		if f.lasts() {
			pods[pod] = true
		}
	}
	for pod, g := range w.amiss {
		if g.seen {
			pods[pod] = true
		}
	}
	return float64(len(pods))
}

// Run looks again and again until ctx is done.
func (w *Watch) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		pods := w.node.Pods()
		names := slices.Sorted(maps.Keys(pods))
		w.next = inTurn(names, w.next, func(name string, rules bool) bpf.Looked { return w.look(name, pods[name], rules) })
		w.lookAtGates(names, func(name string) error { return pods[name].Check() })
		w.forget(pods)
	}
}

// inTurn looks at pods, beginning with first or the next of the sorted names: at the rules
// of one after the other, all of each, until that were as many as rules is. It returns with
// which to begin the next time. Of twice as many in all, any two looks in a row are at each.
func inTurn(names []string, first turn, look func(name string, rules bool) bpf.Looked) (next turn) {
	at, _ := slices.BinarySearch(names, first.pod)
	left, all := rules-first.owed, true
	next.pod = first.pod
	for _, name := range slices.Concat(names[at:], names[:at]) {
		looked := look(name, left > 0)
		left -= looked.Rules
		if !looked.All && all {
			next.pod, all = name, false
		}
	}
	next.owed = max(0, -left)
	return next
}

// Problem says what cannot be repaired of a pod, or was in the last minutes; nil when it is
// neither.
func (w *Watch) Problem(pod string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.failed[pod]; f.lasts() {
		return fmt.Errorf("the kernel's maps cannot be read back, or not be repaired, which the agent tries each second: %w", f.err)
	}
	r, ok := w.last[pod]
	if !ok || time.Since(r.at) > shown {
		return nil
	}
	return fmt.Errorf("the kernel's maps were changed behind the agent's back, and repaired at %s UTC (%s): find out which program writes to the maps under /sys/fs/bpf",
		r.at.UTC().Format(time.TimeOnly), r.found)
}

// Repaired returns of how many pods the maps were other than written in the last ten
// seconds, and a channel that is closed when that is found of one.
func (w *Watch) Repaired() (pods int, found <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.last {
		if time.Since(r.at) < settled {
			pods++
		}
	}
	return pods, w.found
}

// Drifting reports whether a pod's maps were other than written in the last ten seconds, or
// could not be read back a moment ago, or its gate was not in place at the last two looks.
func (w *Watch) Drifting(pod string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.last[pod].at) < settled || w.failed[pod].lasts() || w.amiss[pod].seen
}

// lookAtGates looks at the gates of some of the pods: first once more at those that were not
// in place for the first time, then at the next ones in turn.
func (w *Watch) lookAtGates(names []string, check func(pod string) error) {
	at, _ := slices.BinarySearch(names, w.gate)
	turn := slices.Concat(names[at:], names[:at])
	again := slices.DeleteFunc(slices.Clone(names), func(name string) bool { g, amiss := w.amissOf(name); return !amiss || g.seen })
	again = again[:min(len(again), gates)]
	turn = slices.DeleteFunc(turn, func(name string) bool { return slices.Contains(again, name) })
	if left := gates - len(again); len(turn) > left {
		w.gate, turn = turn[left], turn[:left]
	}
	for _, name := range append(again, turn...) {
		w.note(name, check(name))
	}
}

func (w *Watch) amissOf(pod string) (gate, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, amiss := w.amiss[pod]
	return g, amiss
}

// note takes what a look at a pod's gate has seen, and says it when it is sure, and news.
func (w *Watch) note(pod string, err error) {
	before, amiss := w.amissOf(pod)
	ok := err == nil || errors.Is(err, podnet.ErrClosed)
	switch {
	case ok && before.seen:
		w.log.Info("the gate of a pod is in place again", "workload", pod)
	case !ok && amiss && !before.seen:
		w.log.Error("the gate of a pod is not in place, or its rules are not: nobody mends that", "workload", pod, "error", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok {
		delete(w.amiss, pod)
		return
	}
	w.amiss[pod] = gate{seen: amiss}
}

func (w *Watch) look(name string, pod *podnet.Pod, rules bool) bpf.Looked {
	found, looked, err := reconcile(pod, rules)
	if err != nil && !errors.Is(err, podnet.ErrClosed) {
		w.log.Error("the kernel's maps of a pod cannot be read back, or not be repaired: trying again", "workload", name, "error", err)
		w.mu.Lock()
		w.failed[name] = failure{time.Now(), err}
		w.mu.Unlock()
	}
	looked.All = looked.All || err != nil // the next in turn
	if len(found) == 0 {
		return looked
	}
	slices.Sort(found)
	r := repair{time.Now(), strings.Join(found, ", ")}
	w.log.Error("the kernel's maps of a pod were changed behind the agent's back, and are repaired", "workload", name, "found", r.found)
	w.repairs.Add(float64(len(found)))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last[name] = r
	close(w.found)
	w.found = make(chan struct{})
	return looked
}

// reconcile repairs a pod's maps, and names what was not as it should be and is again.
func reconcile(pod *podnet.Pod, rules bool) (found []string, looked bpf.Looked, err error) {
	listeners := pod.Listeners() // before Kernel, which holds the same lock
	err = pod.Kernel(func(k *bpf.Pod) error {
		var failed error
		found, looked, failed = k.Reconcile(rules)
		return errors.Join(failed, listeners.Lead(func(slot bpf.Slot, fd uintptr) error {
			led, err := k.LeadsTo(slot, fd)
			if err != nil || led {
				return err
			}
			if err := k.SetListener(slot, fd); err != nil {
				return fmt.Errorf("slot %d led elsewhere: %w", slot, err)
			}
			found = append(found, fmt.Sprintf("slot %d led elsewhere", slot))
			return nil
		}))
	})
	if errors.Is(err, net.ErrClosed) { // a pod that is leaving has closed them
		err = nil
	}
	return found, looked, err
}

// forget drops what is known of pods that are gone.
func (w *Watch) forget(pods map[string]*podnet.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gone := func(name string) bool { return pods[name] == nil }
	maps.DeleteFunc(w.last, func(name string, _ repair) bool { return gone(name) })
	maps.DeleteFunc(w.failed, func(name string, _ failure) bool { return gone(name) })
	maps.DeleteFunc(w.amiss, func(name string, _ gate) bool { return gone(name) })
}
