package hbone

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

// Trust is a peer's certificate chain, what its handshake settled, and the roots that
// vouched for it last. It is safe for concurrent use.
type Trust struct {
	chain []*x509.Certificate
	by    secured.By
	mu    sync.Mutex
	roots *x509bundle.Bundle
}

// NewTrust is trust in the chain of a handshake. Roots, unless nil, have vouched for it.
func NewTrust(state tls.ConnectionState, roots *x509bundle.Bundle) *Trust {
	if roots != nil {
		roots = roots.Clone()
	}
	return &Trust{chain: state.PeerCertificates, by: SecuredBy(state.CurveID, state.PeerCertificates), roots: roots}
}

// Secured is what secures the connection.
func (t *Trust) Secured() secured.By { return t.by }

// SecuredBy is what a handshake settled with a peer of this chain, leaf first.
func SecuredBy(group tls.CurveID, chain []*x509.Certificate) secured.By {
	if len(chain) == 0 {
		return secured.Of(group, nil)
	}
	return secured.Of(group, chain[0])
}

// Check verifies the chain again if the bundle is another than before.
func (t *Trust) Check(bundles x509bundle.Source, peer spiffeid.ID) error {
	roots, err := bundles.GetX509BundleForTrustDomain(peer.TrustDomain())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCertificateUntrusted, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.roots != nil && roots.Equal(t.roots) {
		return nil
	}
	if _, err := VerifyPeer(t.chain, roots, time.Now()); err != nil {
		return err
	}
	t.roots = roots.Clone()
	return nil
}

// State is the chain in DER, a digest of the roots, nil when none have vouched, and
// the group of the key exchange.
func (t *Trust) State() (chain [][]byte, roots []byte, group tls.CurveID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, cert := range t.chain {
		chain = append(chain, cert.Raw)
	}
	if t.roots != nil {
		roots = digest(t.roots)
	}
	return chain, roots, t.by.Facts().Group
}

// TrustFrom goes on from a state, of which the group may be 0, not known. It believes
// what was verified before if the roots of now are the same; else, and with nil for
// bundles, the next Check verifies.
func TrustFrom(chain [][]byte, digestBefore []byte, group tls.CurveID, bundles x509bundle.Source, peer spiffeid.ID) (*Trust, error) {
	t := &Trust{}
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("peer's certificate: %w", err)
		}
		t.chain = append(t.chain, cert)
	}
	t.by = SecuredBy(group, t.chain)
	if bundles == nil || len(digestBefore) == 0 {
		return t, nil
	}
	roots, err := bundles.GetX509BundleForTrustDomain(peer.TrustDomain())
	if err == nil && string(digest(roots)) == string(digestBefore) {
		t.roots = roots.Clone()
	}
	return t, nil
}

// digest tells one bundle from another; authorities in another order make
// another, which costs a verification.
func digest(b *x509bundle.Bundle) []byte {
	h := sha256.New()
	h.Write([]byte(b.TrustDomain().Name()))
	for _, cert := range b.X509Authorities() {
		sum := sha256.Sum256(cert.Raw)
		h.Write(sum[:])
	}
	return h.Sum(nil)
}
