package wire

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/skew"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// OnNode reports whether an address is this node's own, in the node's network: a
// NetworkPolicy keeps a pod and its node apart as little as a pod and itself. Nil
// knows of none. It is asked about what would be refused.
type OnNode func(netip.Addr) bool

func (f OnNode) has(addr netip.Addr) bool { return f != nil && f(addr) }

// Authorize is View.Authorize for a connection that may come from the node. Such
// a one comes in plaintext: whoever proves an identity is a workload.
func Authorize(view *mesh.View, c mesh.Connection, onNode OnNode) (mesh.Permit, mesh.Decision) {
	permit, decision := view.Authorize(c)
	if decision.Reason == mesh.ReasonNetworkPolicyIngress && c.Peer.IsZero() && onNode.has(c.Source) {
		c.Node = true
		return view.Authorize(c)
	}
	return permit, decision
}

// Leaves is View.Leaves for a connection that may go to the node.
func Leaves(view *mesh.View, src *mesh.Workload, to netip.AddrPort, onNode OnNode) (mesh.Decision, bool) {
	decision, ok := view.Leaves(src, to)
	if !ok && onNode.has(to.Addr()) {
		return mesh.Decision{}, true
	}
	return decision, ok
}

// Allowed judges a connection, as its record says it, by a newer View, and gives
// the reason why it must end, or what allows it, as Authorize does. A destination that
// has left the View is not policy's to end, as unenrolling drains it, but the deny-list's.
// Of one that was inside the mesh, and of which an end is no more, what would be refused in
// plaintext is.
func (j *Judge) Allowed(view *mesh.View, r *flow.Record, probe, inside bool) (why mesh.Reason, ok bool, by *mesh.View) {
	why, ok, by = j.allowed(view, r, probe)
	if ok && inside && !j.mayGoOn(view, r) {
		return mesh.ReasonUnenrolled, false, nil
	}
	return why, ok, by
}

func (j *Judge) allowed(view *mesh.View, r *flow.Record, probe bool) (why mesh.Reason, ok bool, by *mesh.View) {
	if r.Direction != flow.DirectionInbound {
		if src, known := view.Workload(r.Source.Workload); known {
			if _, ok := Leaves(view, src, hop(view, r, src), j.onNode); !ok {
				return mesh.ReasonPolicyChanged, false, nil
			}
		}
	}
	switch {
	case r.Direction == flow.DirectionOutbound && r.Transport == flow.TransportTunnel:
		// The destination's agent watches over its policy.
		src, known := view.Workload(r.Source.Workload)
		if revoked(view, r) || known && view.Revoked(src.Identity) {
			return mesh.ReasonIdentityRevoked, false, nil
		}
		if to := r.Destination; view.Synced() && view.Foreign(to.Identity) && !view.Declared(to.Identity, to.Addr.Addr()) {
			return mesh.ReasonPolicyChanged, false, nil
		}
		return mesh.ReasonUnknown, true, view
	case r.Direction == flow.DirectionOutbound:
		why, ok := staysOutside(view, r)
		return why, ok, view
	}
	w, known := view.Workload(r.Destination.Workload)
	switch {
	case !known && revoked(view, r) && r.Reason != mesh.ReasonProbe: // nobody is asked who a prober is
		return mesh.ReasonIdentityRevoked, false, nil
	case !known:
		return mesh.ReasonUnknown, true, view
	}
	connection := asked(r, w)
	connection.Probe = probe
	permit, decision, by := j.Authorize(view, connection)
	switch {
	case decision.Reason == mesh.ReasonIdentityRevoked:
		return mesh.ReasonIdentityRevoked, false, nil
	case decision.Reason == mesh.ReasonAuthorityMismatch:
		// The service has another waypoint now, or none: this one ends by itself. Its own
		// NetworkPolicies hold until then.
		connection.Former = true
		if _, decision = view.Authorize(connection); decision.Reason == mesh.ReasonNetworkPolicyIngress {
			return mesh.ReasonPolicyChanged, false, nil
		}
		return mesh.ReasonUnknown, true, view
	case permit.Valid(), decision.Reason == mesh.ReasonNotSynced:
		return mesh.ReasonUnknown, true, by
	default:
		return mesh.ReasonPolicyChanged, false, nil
	}
}

// revoked reports whether an end of a connection is on the deny-list, as who it was when the
// connection was allowed: a pod that is deleted leaves the View before its processes end.
func revoked(view *mesh.View, r *flow.Record) bool {
	return view.Revoked(r.Source.Identity) || view.Revoked(r.Destination.Identity)
}

// staysOutside judges a connection that left the mesh in plaintext, as Route would a new one. But
// where the destination is enrolled since, it is one from before, which the gate there bounds.
func staysOutside(view *mesh.View, r *flow.Record) (why mesh.Reason, ok bool) {
	src, known := view.Workload(r.Source.Workload)
	if !known { // what its namespace may holds for it until it is gone
		src = &mesh.Workload{Key: r.Source.Workload}
	}
	switch why := view.Egress(src); {
	case why == mesh.ReasonIdentityRevoked, !known && view.Revoked(r.Source.Identity):
		return mesh.ReasonIdentityRevoked, false
	case why != mesh.ReasonEgressAllowed, claimed(view, r.Destination):
		return mesh.ReasonPolicyChanged, false
	}
	return mesh.ReasonUnknown, true
}

// claimed reports whether where a connection went in plaintext is the mesh's by now: a
// declared workload of another trust domain, or, of one that went to no workload, an address
// inside the cluster ranges that nobody has.
func claimed(view *mesh.View, to flow.Endpoint) bool {
	if _, foreign := view.ForeignAt(to.Addr.Addr()); foreign {
		return true
	}
	_, known := view.WorkloadAt(to.Addr.Addr())
	return to.Workload == (mesh.Key{}) && !known && view.InCluster(to.Addr.Addr())
}

// TrustedClient returns the client's address as far as it is proved. The TLS
// peer's own address is; the forwarded header may add the port, and may name
// another address of the workload that has the peer's address and identity. It is of
// the family of app, where the workload has one of that.
func (j *Judge) TrustedClient(view *mesh.View, req *hbone.StreamRequest, app netip.Addr) (Client, error) {
	remote, said := Unmap(req.Remote), Unmap(req.Forwarded)
	w, known := view.WorkloadAt(remote.Addr())
	if known && w.Identity != req.Peer {
		known = false
	}
	client := netip.AddrPortFrom(remote.Addr(), 0)
	switch {
	case !said.IsValid():
	case said.Addr() == remote.Addr(), known && w.HasAddress(said.Addr()):
		client = said
	default:
		return Client{}, fmt.Errorf("forwarded names %s, but %s may speak for itself only", said.Addr(), remote.Addr())
	}
	if !known {
		w = nil
	}
	return j.InFamily(w, client, app), nil
}

// Placed returns a workload with the addresses that its node has of it, while the
// configuration has none: a new pod connects before they have made the round of the
// control plane. nil stays nil.
func Placed(w *mesh.Workload, addresses []netip.Addr) *mesh.Workload {
	if w == nil || len(w.Addresses) > 0 {
		return w
	}
	placed := *w
	placed.Addresses = addresses
	return &placed
}

// Among reports whether an address, mapped or not, is one of those that a node has
// of its pod.
func Among(addresses []netip.Addr, addr netip.Addr) bool {
	return slices.Contains(addresses, addr.Unmap())
}

// AddressedTo returns the status and the reason with which to refuse a stream that is
// for no address of w, and an error that says so. addresses are those that w's node
// has of it: when the configuration still has those of the pod that had the name
// before, another candidate may be asked.
func AddressedTo(w *mesh.Workload, addresses []netip.Addr, authority netip.AddrPort) (status int, reason mesh.Reason, err error) {
	switch addr := authority.Addr().Unmap(); {
	case w.HasAddress(addr):
		return http.StatusOK, mesh.ReasonUnknown, nil
	case Among(addresses, addr):
		return http.StatusServiceUnavailable, mesh.ReasonNotSynced, fmt.Errorf("%s is not known of %s yet", addr, w.Key)
	default:
		return http.StatusBadRequest, mesh.ReasonAuthorityMismatch, fmt.Errorf("CONNECT to %s, which is not an address of %s", authority, w.Key)
	}
}

// EndpointAt is the end of a flow that has an address, with what the View
// knows of it. Its identity is not proved, so it is left out.
func EndpointAt(view *mesh.View, addr netip.AddrPort) flow.Endpoint {
	e := flow.Endpoint{Addr: addr}
	if w, ok := view.WorkloadAt(addr.Addr()); ok {
		e.Workload = w.Key
	}
	return e
}

// Refused is the record of a tunnel connection or stream to a pod that was refused before
// anything else was known of it.
func Refused(view *mesh.View, pod mesh.Key, refused hbone.Refusal, reason mesh.Reason) flow.Record {
	record := flow.Record{
		Start: time.Now(), Direction: flow.DirectionInbound, Verdict: mesh.VerdictDeny, Reason: reason, Rule: -1,
		Source:      EndpointAt(view, refused.Remote),
		Destination: flow.Endpoint{Workload: pod, Addr: refused.Local},
		Detail:      refused.Err.Error(),
	}
	record.Source.Identity = refused.Peer
	if w, ok := view.Workload(pod); ok {
		record.Destination.Identity = w.Identity
	}
	return record
}

// Certificate returns a workload's valid SVID, or the reason why its
// connections must be refused. One that has not begun by this clock is valid as
// peers judge it, by skew.Moment.
func Certificate(from Identities, view *mesh.View, w *mesh.Workload) (*tls.Certificate, mesh.Reason, error) {
	if view.Revoked(w.Identity) {
		return nil, mesh.ReasonIdentityRevoked, fmt.Errorf("%s is on the deny-list", w.Identity)
	}
	cert, err := from.Certificate(w.Identity)
	if err != nil {
		return nil, mesh.ReasonNoCertificate, err
	}
	if now := time.Now(); cert.Leaf != nil && (now.After(cert.Leaf.NotAfter) || skew.Moment(cert.Leaf, now).Before(cert.Leaf.NotBefore)) {
		return nil, mesh.ReasonNoCertificate, fmt.Errorf("SVID of %s is valid from %s to %s only", w.Identity, cert.Leaf.NotBefore, cert.Leaf.NotAfter)
	}
	return cert, mesh.ReasonUnknown, nil
}

// ErrSelf keeps a splice from carrying a connection in circles.
var ErrSelf = errors.New("the destination is the agent itself")

// Deliverable returns the address of the application that a permit is for, at one
// of the addresses of the pod that it is to be of.
func Deliverable(permit mesh.Permit, to mesh.Key, addr netip.Addr) (netip.AddrPort, error) {
	if permit.Destination().Key != to {
		return netip.AddrPort{}, fmt.Errorf("deliver to %s: permit is for %s", to, permit.Destination().Key)
	}
	if mesh.ReservedPort(permit.Port()) && !permit.Behind().IsValid() {
		return netip.AddrPort{}, ErrSelf
	}
	return netip.AddrPortFrom(addr, permit.Port()), nil
}
