package kernel

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/agent/podnet"
)

const (
	// finishAfter is how long no pod is enrolled before one is finished: each part of that
	// keeps the kernel's lock of all network devices for some 10 ms, for which enrolling others
	// would wait, and the cluster's CNI. It is put off for finishWithin at most.
	finishAfter  = 20 * time.Millisecond
	finishWithin = 2 * time.Second
	// finishAgain is the pause after a failure.
	finishAgain = 10 * time.Second
)

// finishing is what Finish is told.
type finishing struct {
	enrolling atomic.Int32  // how many pods are, right now
	due       chan struct{} // of one: pods are unfinished
}

// enrollPrompt enrolls a pod in the time that its gate takes to be closed and proven. Finish
// does the rest.
func (d *Datapath) enrollPrompt(ctx context.Context, spec podnet.Spec) (*podnet.Pod, error) {
	spec.Prompt = true
	d.finishing.enrolling.Add(1)
	defer d.finishing.enrolling.Add(-1)
	pod, err := d.node.Enroll(ctx, spec)
	if err == nil && pod.Unfinished() {
		select {
		case d.finishing.due <- struct{}{}:
		default: // it is told already
		}
	}
	return pod, err
}

// Finish puts the gates of new pods where they stay, after these were enrolled, until ctx is
// done. Pods that it has not come to are as closed; an agent that adopts them does it.
func (d *Datapath) Finish(ctx context.Context) error {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.finishing.due:
		case <-again:
		}
		again = nil
		if sleep(ctx, finishAfter) && !d.finishAll(ctx) {
			again = time.After(finishAgain)
		}
	}
}

// finishAll returns false if a pod could not be finished.
func (d *Datapath) finishAll(ctx context.Context) bool {
	finished := true
	for name, pod := range d.node.Pods() {
		for pod.Unfinished() && d.awaitPause(ctx) {
			if err := pod.Finish(); err != nil {
				d.log.Warn("pod's gate is not yet where it stays: it is closed, by filters that other programs of the node may take away", "workload", name, "error", err)
				finished = false
				break
			}
		}
	}
	return finished
}

// awaitPause returns when no pod is being enrolled, or when that has lasted for long enough; false
// when ctx is done.
func (d *Datapath) awaitPause(ctx context.Context) bool {
	for until := time.Now().Add(finishWithin); d.finishing.enrolling.Load() > 0 && time.Now().Before(until); {
		if !sleep(ctx, finishAfter) {
			return false
		}
	}
	return ctx.Err() == nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
