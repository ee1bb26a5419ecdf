package kernel

import (
	"context"
	"errors"
	"time"

	"github.com/heddle-mesh/heddle/agent/grandfather"
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

// ended is the record of a connection that a pod's gate ended by itself.
func ended(view *mesh.View, pod mesh.Key, e bpf.FlowEntry) flow.Record {
	r := fromBefore(view, pod, e)
	r.Verdict, r.Reason, r.Detail = mesh.VerdictDeny, mesh.ReasonIdentityRevoked, wasOpen
	if e.Remaining == 0 {
		r.Reason, r.Detail = mesh.ReasonGrandfathered, "the time of connections from before the pod was enrolled is over"
	}
	return r
}

const wasOpen = "was open before the pod was enrolled"

// refusedNow is the record of a connection that was ended since a View refuses it.
func refusedNow(view *mesh.View, pod mesh.Key, e bpf.FlowEntry, why grandfather.Refusal) flow.Record {
	r := fromBefore(view, pod, e)
	r.Decide(why.By)
	r.Verdict, r.Reason, r.Detail = mesh.VerdictDeny, why.Reason, wasOpen
	if why.By.Reason != why.Reason {
		r.Detail += ": " + why.By.Reason.String()
	}
	return r
}

// fromBefore is what is known of a connection from before its pod's enrolment.
func fromBefore(view *mesh.View, pod mesh.Key, e bpf.FlowEntry) flow.Record {
	own, other := flow.Endpoint{Workload: pod, Addr: e.Local}, endpoint(view, e.Remote)
	if w, ok := view.Workload(pod); ok {
		own.Identity = w.Identity
	}
	r := flow.Record{
		Start: time.Now(), Direction: flow.DirectionOutbound, Source: own, Destination: other,
		Wire: flow.Wire{Transport: flow.TransportPlaintext}, Rule: -1,
	}
	if e.Opened == bpf.Inbound {
		r.Direction, r.Source, r.Destination = flow.DirectionInbound, other, own
	}
	return r
}

// judgePause is how long a new configuration waits at least for the one before.
const judgePause = 100 * time.Millisecond

// endRefused ends the connections from before their pod's enrolment that a new configuration
// refuses and the one before did not, and records them, until ctx is done.
func (d *Datapath) endRefused(ctx context.Context, store *mesh.Store, flows *flow.Drops) {
	for {
		view, replaced := store.Snapshot()
		var again <-chan time.Time
		if view.Synced() && view != d.judged {
			if d.judged == nil || d.judge(d.judged, view, flows) {
				d.judged = view
			} else {
				again = time.After(endedEvery)
			}
		}
		pause := time.After(judgePause)
		select {
		case <-replaced:
		case <-again:
		case <-ctx.Done():
			return
		}
		select {
		case <-pause:
		case <-ctx.Done():
			return
		}
	}
}

// judge ends what the View of now refuses; false means that it must be tried again.
func (d *Datapath) judge(before, now *mesh.View, flows *flow.Drops) (all bool) {
	all = true
	for name, pod := range d.node.Pods() {
		key, known := d.key(name)
		if !known {
			continue // it is not enrolled by this agent yet
		}
		err := pod.Kernel(func(k *bpf.Pod) error {
			ended, err := k.EndGrandfathered(func(e bpf.FlowEntry) bool {
				_, no := refusal(before, now, key, e)
				return no
			})
			for _, e := range ended {
				why, _ := refusal(before, now, key, e)
				flows.AddEnded(refusedNow(now, key, e, why))
			}
			return err
		})
		if err != nil && !errors.Is(err, podnet.ErrClosed) {
			all = false
			d.log.Error("connections from before the pod's enrolment that policy refuses go on: trying again", "workload", name, "error", err)
		}
	}
	return all
}

func refusal(before, now *mesh.View, pod mesh.Key, e bpf.FlowEntry) (grandfather.Refusal, bool) {
	c := grandfather.Connection{Pod: pod, Local: e.Local, Remote: e.Remote, Inbound: e.Opened == bpf.Inbound}
	return grandfather.Refused(before, now, c, OnNode)
}
