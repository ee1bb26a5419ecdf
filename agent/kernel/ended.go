package kernel

import (
	"context"
	"errors"
	"time"

	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// endedEvery is how often gates are asked what they ended; as drops are.
const endedEvery = time.Second

// recordEnded records the connections from before their pod's enrolment that gates end,
// until ctx is done, and once more then.
func (d *Datapath) recordEnded(ctx context.Context, store *mesh.Store, flows *flow.Drops) {
	tick := time.NewTicker(endedEvery)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			running = false
		}
		view := store.View()
		for name, pod := range d.node.Pods() {
			key, _ := d.key(name)
			err := pod.Kernel(func(k *bpf.Pod) error {
				for _, e := range k.TakeEnded() {
					flows.AddEnded(ended(view, key, e))
				}
				return nil
			})
			if err != nil && !errors.Is(err, podnet.ErrClosed) {
				d.log.Warn("connections from before the pod's enrolment that its gate has ended are not recorded", "workload", name, "error", err)
			}
		}
	}
}

// ended is the record of a connection that a pod's gate ended. Who opened it the gate has
// not seen: as in what it counts, the lower port is taken for the server's.
func ended(view *mesh.View, pod mesh.Key, e bpf.FlowEntry) flow.Record {
	own, other := flow.Endpoint{Workload: pod, Addr: e.Local}, endpoint(view, e.Remote)
	if w, ok := view.Workload(pod); ok {
		own.Identity = w.Identity
	}
	r := flow.Record{
		Start: time.Now(), Direction: flow.DirectionOutbound, Source: own, Destination: other, Wire: flow.Wire{Transport: flow.TransportPlaintext},
		Verdict: mesh.VerdictDeny, Reason: mesh.ReasonIdentityRevoked, Rule: -1, Detail: "was open before the pod was enrolled",
	}
	if e.Remaining == 0 {
		r.Reason, r.Detail = mesh.ReasonGrandfathered, "the time of connections from before the pod was enrolled is over"
	}
	if e.Local.Port() < e.Remote.Port() {
		r.Direction, r.Source, r.Destination = flow.DirectionInbound, other, own
	}
	return r
}
