// Package workload has what a mesh knows of one workload. It decides nothing. A
// workload that is part of a View is read only, and safe for concurrent use.
package workload

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/policy"
)

// Mode says how a workload's port treats plaintext from the wire.
type Mode uint8

// The modes. The zero value is Strict, so that a forgotten field refuses.
const (
	Strict Mode = iota
	Permissive
)

// String returns "STRICT" or "PERMISSIVE".
func (m Mode) String() string {
	if m == Permissive {
		return "PERMISSIVE"
	}
	return "STRICT"
}

// Workload is one pod, or one process group in a network namespace of its own.
type Workload struct {
	keyed.Key
	// ServiceAccount and Node are never empty.
	ServiceAccount, Node string
	// Identity is spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT.
	Identity spiffeid.ID
	// Addresses are unique in the mesh, unmapped, sorted. There is none while a
	// pod is being set up: its own node is told of it beforehand.
	Addresses []netip.Addr
	// Labels are what policies select by. Only its own node is told.
	Labels map[string]string
	// Enrolled workloads are reached through the tunnel, others in plaintext.
	Enrolled bool
	// Ready workloads receive new connections through services.
	Ready bool
	// Leaving workloads are being deleted and still serve. Services whose workloads
	// are none of them ready use them.
	Leaving bool
	// Mode is the effective mode of ports that PortModes does not name. Only
	// its own node is told of modes, DNS and ProbePorts.
	Mode Mode
	// DNS says who answers its name queries.
	DNS DNSMode
	// NetNS is the path of the network namespace; "" unless the workload is
	// enrolled by path (no Kubernetes). Only its own node is told.
	NetNS string
	// UID is the pod's; "" outside Kubernetes. Only its own node is told.
	UID string
	// Zone is the topology zone of the workload's node; "" when not known.
	Zone string
	// PortModes overrides Mode per application port.
	PortModes map[uint16]Mode
	// ProbePorts are the ports that declared health probes go to.
	ProbePorts []uint16
	// Datagrams are the rules about UDP of the policies that select the workload, without
	// their selectors, sorted by key; none where no ALLOW policy has one. Every node is
	// told, since what may leave a workload is decided by whoever it goes to.
	Datagrams []*policy.Policy
	// Gated workloads are behind their gates, as their nodes' agents have said: their
	// addresses are nobody else's over UDP. No datagrams pass from or to others. Every node
	// is told.
	Gated bool
}

// ModeOf returns the effective mode of an application port.
func (w *Workload) ModeOf(port uint16) Mode {
	if m, ok := w.PortModes[port]; ok {
		return m
	}
	return w.Mode
}

// DNSMode says who answers a workload's name queries.
type DNSMode uint8

// The DNS modes. The zero value leaves it to what the agent was started with.
const (
	DNSDefault DNSMode = iota
	// DNSCapture: the agent.
	DNSCapture
	// DNSDirect: whoever was asked, unread by the agent.
	DNSDirect
)

// AddressFor returns the address at which src reaches w, when dialled is what
// src's process dialled: dialled itself when it is w's own, else w's first
// address of the same family, else w's first of a family that src has too. It
// returns false when the two workloads have no address family in common. A nil
// src has both families.
func (w *Workload) AddressFor(dialled netip.Addr, src *Workload) (netip.Addr, bool) {
	dialled = dialled.Unmap()
	var same, any netip.Addr
	for _, addr := range w.Addresses {
		switch {
		case addr == dialled:
			return addr, true
		case src != nil && !src.hasFamily(addr):
		case !same.IsValid() && addr.Is4() == dialled.Is4():
			same = addr
		case !any.IsValid():
			any = addr
		}
	}
	if same.IsValid() {
		return same, true
	}
	return any, any.IsValid()
}

func (w *Workload) hasFamily(of netip.Addr) bool {
	for _, addr := range w.Addresses {
		if addr.Is4() == of.Is4() {
			return true
		}
	}
	return false
}

// HasAddress reports whether addr, mapped or not, is one of the workload's.
func (w *Workload) HasAddress(addr netip.Addr) bool {
	addr = addr.Unmap()
	for _, own := range w.Addresses {
		if own == addr {
			return true
		}
	}
	return false
}

// IsProbePort reports whether the workload declares health probes to port.
func (w *Workload) IsProbePort(port uint16) bool {
	for _, declared := range w.ProbePorts {
		if declared == port {
			return true
		}
	}
	return false
}
