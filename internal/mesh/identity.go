package mesh

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/pattern"
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

// NamespaceOf returns the namespace that an identity proves: that of an ID of
// trust domain td in the form that IdentityFor gives, "" for every other. It
// does not allocate.
func NamespaceOf(td spiffeid.TrustDomain, id spiffeid.ID) string {
	if !id.MemberOf(td) {
		return ""
	}
	namespace, account := pattern.NameParts(id.Path())
	if strings.Contains(account, "/") {
		return ""
	}
	return namespace
}
