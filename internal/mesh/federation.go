package mesh

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Foreign reports whether an identity is of another trust domain than the mesh's.
func (v *View) Foreign(id spiffeid.ID) bool {
	return !id.IsZero() && !id.MemberOf(v.settings.TrustDomain)
}

// Federated reports whether a trust domain is another one whose identities are believed. It
// does not allocate.
func (v *View) Federated(td spiffeid.TrustDomain) bool {
	for i := range v.settings.Federation {
		if v.settings.Federation[i].TrustDomain == td {
			return true
		}
	}
	return false
}

// ForeignAt returns the workload of another trust domain that is declared to have an address,
// mapped or not. It has no name: its Key is zero, and it is none of Workloads.
func (v *View) ForeignAt(addr netip.Addr) (*Workload, bool) {
	if w := v.foreign[addr.Unmap()]; w != nil {
		return w[0], true
	}
	return nil, false
}

// Declared reports whether an identity of another trust domain is that of the workload
// which is declared to have an address.
func (v *View) Declared(id spiffeid.ID, addr netip.Addr) bool {
	w, ok := v.ForeignAt(addr)
	return ok && w.Identity == id
}
