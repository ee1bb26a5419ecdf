package wire

import (
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Inside reports whether a View has in the mesh, as who the record says, the other end of a
// connection through the tunnel, or both of a splice. Not to have it may mean that the View
// is behind: who has just joined is told of it first.
func Inside(view *mesh.View, r *flow.Record) bool {
	switch client, server := is(clientOf(view, r), r.Source.Identity, true), is(serverOf(view, r), r.Destination.Identity, true); {
	case r.Direction == flow.DirectionInbound:
		return client
	case r.Transport == flow.TransportTunnel:
		return server
	default:
		return client && server
	}
}

// Left reports whether a View has either end of a connection out of the mesh, which was inside.
func Left(view *mesh.View, r *flow.Record) bool {
	client, server := left(view, r)
	return client || server
}

func left(view *mesh.View, r *flow.Record) (client, server bool) {
	return is(clientOf(view, r), r.Source.Identity, false), is(serverOf(view, r), r.Destination.Identity, false)
}

// clientOf returns who has the client's address, or nil: others may have its identity.
func clientOf(view *mesh.View, r *flow.Record) *mesh.Workload {
	if r.Direction == flow.DirectionInbound {
		w, _ := view.WorkloadAt(r.Source.Addr.Addr())
		return w
	}
	w, _ := view.Workload(r.Source.Workload) // this node's own, which may be too new to have one
	return w
}

func serverOf(view *mesh.View, r *flow.Record) *mesh.Workload {
	w, _ := view.Workload(r.Destination.Workload)
	return w
}

// is reports whether a workload is who proved an identity, and enrolled or not.
func is(w *mesh.Workload, proved spiffeid.ID, enrolled bool) bool {
	return w != nil && !proved.IsZero() && w.Identity == proved && w.Enrolled == enrolled
}

// mayGoOn judges a connection that was inside and of which one end has left: it is as one in
// plaintext from now on, of a client without an identity, or to a workload outside. Where
// both have left no agent is asked any more; of the policy of a workload on another node
// nothing is known here, and its agent judges.
func (j *Judge) mayGoOn(view *mesh.View, r *flow.Record) bool {
	switch client, server := left(view, r); {
	case client == server:
		return true
	case server && r.Waypoint != (mesh.Key{}):
		return false // nobody is sent to a waypoint in plaintext
	case server:
		src := clientOf(view, r)
		return src == nil || view.Egress(src) == mesh.ReasonEgressAllowed
	case r.Direction == flow.DirectionOutbound:
		return true
	}
	w := serverOf(view, r)
	if w == nil {
		return true
	}
	connection := asked(r, w)
	connection.Peer = spiffeid.ID{}
	permit, decision, _ := j.Authorize(view, connection)
	return permit.Valid() || decision.Reason == mesh.ReasonNotSynced
}

// Cancelled reports whether a tunnel's stream was ended by the peer's agent.
func Cancelled(err error) bool { return errors.Is(err, hbone.ErrCancelled) }
