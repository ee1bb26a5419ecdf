package mesh

import "github.com/spiffe/go-spiffe/v2/spiffeid"

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
