package wire

import (
	"net/http"
	"net/netip"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Arrival is what a View says of a stream that a peer opened.
type Arrival struct {
	// Workload is the pod that is asked, Target what for; nil and zero when that is unknown.
	Workload *mesh.Workload
	Target   Target
	// Client is its address, as far as that is proved.
	Client Client
	// Permit is for Target, and valid when No is nil. By is what allows it, as of
	// Judge.Authorize; nil when policy was not asked.
	Permit   mesh.Permit
	Decision mesh.Decision
	By       *mesh.View
	No       *No
}

// No is the refusal of a stream: the status for the peer, the reason and the cause for the
// record. It is early when the peer may have been told what this node is not yet.
type No struct {
	Status int
	Reason mesh.Reason
	Cause  error
	Early  bool
}

// Arrive decides about a stream to a pod, by the View of this moment. Addresses are those
// that the node has of the pod, as of a new one the View may have none yet.
func (j *Judge) Arrive(from Identities, pod mesh.Key, addresses []netip.Addr, req *hbone.StreamRequest) (a Arrival) {
	view := j.store.View()
	w, ok := view.Workload(pod)
	switch {
	case !view.Synced():
		a.No = &No{Status: http.StatusServiceUnavailable, Reason: mesh.ReasonNotSynced}
		return a
	case !ok:
		a.No = &No{Status: http.StatusServiceUnavailable, Reason: mesh.ReasonUnenrolled}
		return a
	}
	w = Placed(w, addresses)
	to, status, reason, err := TargetOf(view, w, addresses, req)
	if err != nil {
		a.No = &No{status, reason, err, Foretold(view, pod, addresses, req.Authority)}
		return a
	}
	if _, reason, err = Certificate(from, view, w); err != nil {
		a.No = &No{Status: http.StatusServiceUnavailable, Reason: reason, Cause: err}
		return a
	}
	a.Workload, a.Target = w, to
	if a.Client, err = j.TrustedClient(view, req, to.App.Addr()); err != nil {
		a.No = &No{Status: http.StatusBadRequest, Reason: mesh.ReasonForwardedUntrusted, Cause: err}
		return a
	}
	asked := mesh.Connection{Peer: req.Peer, Source: a.Client.Addr(), Destination: w, Port: to.App.Port(), Behind: to.Behind}
	if a.Permit, a.Decision, a.By = j.Authorize(view, asked); !a.Permit.Valid() {
		a.No = &No{Status: http.StatusUnauthorized, Reason: a.Decision.Reason, Early: Early(view, &asked, a.Decision)}
	}
	return a
}

// Describe puts what was found into the record.
func (a *Arrival) Describe(r *flow.Record) {
	if a.Workload != nil {
		r.Destination.Identity = a.Workload.Identity
		if s := a.Target.Service; s != nil {
			r.Service, r.Waypoint = s.Key, s.Waypoint
		}
	}
	if a.Client.IsValid() {
		r.Source.Addr = a.Client.AddrPort
	}
	if a.By != nil {
		r.Decide(a.Decision)
	}
}
