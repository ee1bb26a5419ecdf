package mesh

import (
	"net/netip"

	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

func networkIndex(n Network) (*netpolicy.Index, error) {
	if len(n.Policies) == 0 && len(n.Sets) == 0 {
		return nil, nil
	}
	return netpolicy.New(n.Policies, n.Sets)
}

// admits asks the destination's NetworkPolicies about a connection. Nothing keeps
// a workload from itself, nor its node from it.
func (v *View) admits(w *Workload, set *policySet, c *Connection) (netpolicy.Name, bool) {
	if v.network.Empty() || c.Node {
		return netpolicy.Name{}, true
	}
	source := c.Source.Unmap().WithZone("")
	if w.HasAddress(source) {
		return netpolicy.Name{}, true
	}
	server := netip.AddrPortFrom(netip.Addr{}, c.Port)
	if len(w.Addresses) > 0 { // sets of ports have all of a workload's
		server = netip.AddrPortFrom(w.Addresses[0], c.Port)
	}
	return set.network.Ingress(source, v.isHolder(source, c), server)
}

// isHolder reports whether a client may be whoever has its address. One that has
// proved another identity is somebody newer, of whom nothing else is known yet.
func (v *View) isHolder(source netip.Addr, c *Connection) bool {
	holder, known := v.WorkloadAt(source)
	return c.Peer.IsZero() || !known || holder.Identity == c.Peer
}

// Leaves decides whether the NetworkPolicies of a workload let a connection of it
// leave for an address and a port at which somebody listens: a workload's, not a
// service's. The decision says why not. The workload is looked up by its key; one
// that is not in the View is let go, as nothing says otherwise. Leaves allocates
// nothing.
func (v *View) Leaves(src *Workload, dst netip.AddrPort) (Decision, bool) {
	if v.network.Empty() || src == nil {
		return Decision{}, true
	}
	w, set := v.current(src)
	addr := dst.Addr().Unmap().WithZone("")
	if w == nil || w.HasAddress(addr) {
		return Decision{}, true
	}
	by, ok := set.network.Egress(netip.AddrPortFrom(addr, dst.Port()))
	if ok {
		return Decision{}, true
	}
	return Decision{Verdict: VerdictDeny, Reason: ReasonNetworkPolicyEgress, Policy: Key(by), Rule: -1}, false
}
