package identity

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// errOtherIssuer is why a certificate that came is not taken: it would have to be
// replaced at once, and the operator may have been told that all are.
var errOtherIssuer = errors.New("issued certificate is of another issuer than the operator's present one: a replica is behind")

// Trust is what a trust domain's authority says of itself.
type Trust struct {
	// Bundle has the roots to trust, and is not empty.
	Bundle *x509bundle.Bundle
	// Issuer is the certificate that signs.
	Issuer *x509.Certificate
	// Spread is over how long certificates of other issuers are replaced.
	Spread time.Duration
}

// Follow makes the Source trust what is said, in place of what it was told before
// or finds in answers of its Signer, and replaces every certificate that is of
// another issuer, within Spread, which the Signer's failures lengthen. From now
// on certificates of other issuers are refused. What is the same changes nothing.
func (s *Source) Follow(t Trust) error {
	if t.Issuer == nil || !t.Issuer.IsCA {
		return errors.New("follow an authority: it does not say who signs")
	}
	if err := s.SetBundle(t.Bundle); err != nil {
		return err
	}
	s.state.Lock()
	defer s.state.Unlock()
	if s.state.issuer != nil && s.state.issuer.Equal(t.Issuer) {
		return nil
	}
	s.state.issuer = t.Issuer
	now := time.Now()
	for _, h := range s.state.held {
		if h.certificate == nil || issuedBy(h.entry.Chain, t.Issuer) {
			continue
		}
		h.renewAt, h.due = now, true
		if t.Spread > 0 {
			h.renewAt = now.Add(mathrand.N(t.Spread))
		}
	}
	s.notify()
	select {
	case s.wake <- struct{}{}:
	default: // the loop is told already
	}
	return nil
}

// issuedBy says whether issuer signed a chain's leaf: both are compared, since an
// authority may have two certificates of one key.
func issuedBy(chain []*x509.Certificate, issuer *x509.Certificate) bool {
	if len(chain) > 1 {
		return chain[1].Equal(issuer)
	}
	return signedBy(chain[0], issuer)
}

// checkFollowed is CheckIssued, with the roots and the issuer that are followed
// in place of those of the answer.
func (s *Source) checkFollowed(e keystore.Entry, answered *x509bundle.Bundle) error {
	s.state.Lock()
	issuer, bundle := s.state.issuer, s.state.bundle
	s.state.Unlock()
	if issuer == nil {
		return CheckIssued(e, answered)
	}
	if err := CheckIssued(e, bundle); err != nil {
		return err
	}
	if !issuedBy(e.Chain, issuer) {
		return errOtherIssuer
	}
	return nil
}

// takeBundle takes the bundle of an answer, unless an authority is followed.
func (s *Source) takeBundle(b *x509bundle.Bundle) error {
	s.state.Lock()
	followed := s.state.issuer != nil
	s.state.Unlock()
	if followed {
		return nil
	}
	return s.SetBundle(b)
}

// Holding is one certificate that a Source has.
type Holding struct {
	ID   spiffeid.ID
	Leaf *x509.Certificate
	// Issuer is the SHA-256 of the certificate that signed the leaf; zero when it
	// is not among the roots held.
	Issuer  [sha256.Size]byte
	RenewAt time.Time
	// LastErr is why the last attempt to renew failed; nil when it did not.
	LastErr error
}

// Holdings returns the roots that the Source trusts, and the certificates that it
// has, sorted by identity, as of one moment. They must not be changed.
func (s *Source) Holdings() (roots []*x509.Certificate, all []Holding) {
	s.state.Lock()
	defer s.state.Unlock()
	if s.state.bundle != nil {
		roots = s.state.bundle.X509Authorities()
	}
	for id, h := range s.state.held {
		if h.certificate == nil {
			continue
		}
		all = append(all, Holding{ID: id, Leaf: h.entry.Chain[0], Issuer: s.issuerOf(h), RenewAt: h.renewAt, LastErr: h.lastErr})
	}
	slices.SortFunc(all, func(a, b Holding) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return roots, all
}

// issuerOf needs the lock. It looks once for each certificate.
func (s *Source) issuerOf(h *held) [sha256.Size]byte {
	if h.issuer != nil {
		return sha256.Sum256(h.issuer.Raw)
	}
	candidates := []*x509.Certificate{}
	if s.state.issuer != nil {
		candidates = append(candidates, s.state.issuer)
	}
	if s.state.bundle != nil {
		candidates = append(candidates, s.state.bundle.X509Authorities()...)
	}
	if len(h.entry.Chain) > 1 {
		candidates = h.entry.Chain[1:2]
	}
	for _, by := range candidates {
		if issuedBy(h.entry.Chain, by) {
			h.issuer = by
			return sha256.Sum256(by.Raw)
		}
	}
	return [sha256.Size]byte{}
}
