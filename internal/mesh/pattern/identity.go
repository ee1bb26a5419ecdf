package pattern

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// IdentityFor returns the identity of a service account:
// spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT. It is an error when a
// part is empty or has characters that a SPIFFE ID may not have.
func IdentityFor(td spiffeid.TrustDomain, namespace, serviceAccount string) (spiffeid.ID, error) {
	if td.IsZero() {
		return spiffeid.ID{}, fmt.Errorf("identity of %s/%s: trust domain is empty", namespace, serviceAccount)
	}
	id, err := spiffeid.FromSegments(td, "ns", namespace, "sa", serviceAccount)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("identity of %q/%q: %w", namespace, serviceAccount, err)
	}
	return id, nil
}
