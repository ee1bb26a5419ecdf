package kernel

import (
	"fmt"
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/bpf"
)

// Room knows for how many rules of datagrams the gates of pods have had no room. It is safe
// for concurrent use.
type Room struct {
	mu    sync.Mutex
	left  map[string]int // by pod; none that is 0
	gauge prometheus.Gauge
}

func newRoom() *Room {
	return &Room{left: map[string]int{}, gauge: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "heddle_gate_datagram_rules_left", Help: "Rules of datagrams that policies come to and the node's gates have no room for: what they would let pass is dropped.",
	})}
}

// Collector is the metric.
func (r *Room) Collector() prometheus.Collector { return r.gauge }

// Problem says how many rules of a pod, by its name in the kernel, found no room; nil when
// all did.
func (r *Room) Problem(pod string) error {
	if n := r.of(pod); n > 0 {
		return fmt.Errorf("policies let more addresses exchange datagrams with the pod than its gate has room for (%d): %d are left out, and their datagrams dropped; let in fewer workloads or ports over UDP", bpf.MaxDatagramRules, n)
	}
	return nil
}

func (r *Room) of(pod string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left[pod]
}

// set notes how many of a pod's are left out now.
func (r *Room) set(pod string, left int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left[pod] = left; left == 0 {
		delete(r.left, pod)
	}
	r.total()
}

// keep forgets pods that are gone.
func (r *Room) keep(there func(pod string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.left, func(pod string, _ int) bool { return !there(pod) })
	r.total()
}

func (r *Room) total() {
	all := 0
	for _, n := range r.left {
		all += n
	}
	r.gauge.Set(float64(all))
}
