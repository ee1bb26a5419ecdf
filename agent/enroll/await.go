package enroll

import (
	"context"
	"fmt"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Await returns when the pod is enrolled in this network namespace: its gate is
// attached and proven, and it is being served. An error is why the last try did
// not work, which is repeated whoever waits, or ctx's.
func (r *Reconciler) Await(ctx context.Context, key mesh.Key, netNS string) error {
	for {
		s, changed := r.look(key)
		if s.NetNS == netNS {
			switch s.State {
			case Enrolled:
				return nil
			case Failed:
				return s.Err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait until %s is enrolled: %w", key, ctx.Err())
		}
	}
}

// look returns a pod's status, the zero Status when there is none, and a channel
// for the next change of any.
func (r *Reconciler) look(key mesh.Key) (Status, <-chan struct{}) {
	r.pods.Lock()
	defer r.pods.Unlock()
	if w, ok := r.pods.workers[key]; ok {
		return w.status(), r.pods.changed
	}
	return Status{}, r.pods.changed
}

// announce wakes whoever waits for a pod's status.
func (r *Reconciler) announce() {
	r.pods.Lock()
	defer r.pods.Unlock()
	close(r.pods.changed)
	r.pods.changed = make(chan struct{})
}
