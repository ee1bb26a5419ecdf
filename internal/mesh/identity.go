package mesh

import (
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh/pattern"
)

// IdentityFor returns the identity of a service account:
// spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT. It is an error when a
// part is empty or has characters that a SPIFFE ID may not have.
func IdentityFor(td spiffeid.TrustDomain, namespace, serviceAccount string) (spiffeid.ID, error) {
	return pattern.IdentityFor(td, namespace, serviceAccount)
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
