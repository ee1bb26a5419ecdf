package identity

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The bounds of what either side of the issuing protocol accepts.
const (
	// MaxCSRBytes bounds a PKCS #10 request in DER. A P-384 request with a
	// SPIFFE ID of the longest kind has less than 3 KiB.
	MaxCSRBytes = 8 << 10
	// MaxIDBytes bounds a SPIFFE ID (SPIFFE-ID section 2.3).
	MaxIDBytes = 2048
	// MaxNodeName bounds a node's name: that of a DNS name, as in Kubernetes.
	MaxNodeName = 253

	// MaxChain and MaxBundle bound certificates in a chain and in a bundle.
	MaxChain  = 8
	MaxBundle = 32
)

// OperatorID returns the operator's identity, spiffe://TD/operator.
func OperatorID(td spiffeid.TrustDomain) spiffeid.ID {
	// The segment is constant and valid, so that no error can come of it.
	return spiffeid.RequireFromSegments(td, "operator")
}

// NodeID returns the identity of a node's agent, spiffe://TD/node/NAME. It
// refuses names that are no SPIFFE path segment ([a-zA-Z0-9._-]) or too long.
func NodeID(td spiffeid.TrustDomain, name string) (spiffeid.ID, error) {
	if len(name) > MaxNodeName {
		return spiffeid.ID{}, fmt.Errorf("node name of %d bytes: the limit is %d", len(name), MaxNodeName)
	}
	id, err := spiffeid.FromSegments(td, "node", name)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("node name %q: %w", name, err)
	}
	return id, nil
}

// NodeName is the inverse of NodeID; false when id is not a node's.
func NodeName(id spiffeid.ID) (string, bool) {
	name, ok := strings.CutPrefix(id.Path(), "/node/")
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", false
	}
	return name, true
}

// IsWorkloadID reports whether id has the form of a workload's identity in td,
// spiffe://TD/ns/NAMESPACE/sa/SERVICE_ACCOUNT.
func IsWorkloadID(td spiffeid.TrustDomain, id spiffeid.ID) bool {
	seg := strings.Split(id.Path(), "/")
	return id.MemberOf(td) && len(seg) == 5 && seg[1] == "ns" && seg[3] == "sa"
}
