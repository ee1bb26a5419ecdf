package enroll

import (
	"errors"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// mayBeMissing is for how long a pod may be Ready, and not found on its node, before it is one that
// is not enrolled: the runtime is asked at other times than the operator is told.
const mayBeMissing = 2 * time.Second

var errMissing = errors.New("is Ready, and where it runs is not known, so that it is outside the mesh: the runtime shows no running sandbox of its name and UID, or the cgroup of its process does not prove the UID (the agent's log says so); of runtimes, containerd and CRI-O are known to")

// setMissing notes the pods of the mesh that run, as they are Ready, and that nobody finds: they have
// no gate, or lose it with their worker. One that has not started yet is not Ready, and one that is being deleted may be gone.
func (r *Reconciler) setMissing(view *mesh.View, desired map[mesh.Key]*target, placed bool) {
	missing := map[mesh.Key]Status{}
	r.pods.Lock()
	defer r.pods.Unlock()
	defer func() { r.pods.missing = missing }()
	if !placed {
		return
	}
	for _, key := range r.unplaced(view, desired) {
		w, ok := view.Workload(key)
		if !ok || !w.Ready || w.Leaving {
			continue
		}
		s, was := r.pods.missing[key]
		if !was || s.Workload.UID != w.UID {
			s = Status{Key: key, State: Failed, Err: errMissing, Since: time.Now()}
		}
		s.Workload = w
		missing[key] = s
	}
}

// missingLocked are those that have been missing for too long.
func (r *Reconciler) missingLocked() (all []Status) {
	for key, s := range r.pods.missing {
		if time.Since(s.Since) > mayBeMissing && r.pods.workers[key] == nil {
			all = append(all, s)
		}
	}
	return all
}
