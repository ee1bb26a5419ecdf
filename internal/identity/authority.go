package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/heddle-mesh/heddle/internal/hbone/skew"
	"github.com/heddle-mesh/heddle/internal/identity/cakey"
)

// Defaults of AuthorityConfig.
const (
	// DefaultTTL is how long a workload's SVID is valid from now on.
	DefaultTTL = 24 * time.Hour
	// DefaultNodeTTL is the same for a node's SVID. A node renews at half
	// life, so that one that is switched off has at least half of this left:
	// a long weekend.
	DefaultNodeTTL = 7 * 24 * time.Hour
	// DefaultRootTTL is how long a root that the Authority makes is valid.
	DefaultRootTTL = 10 * 365 * 24 * time.Hour
	// DefaultIntermediateTTL is the same for an intermediate.
	DefaultIntermediateTTL = 2 * 365 * 24 * time.Hour
	// DefaultBackdate is how long before now a certificate's validity begins.
	// Two clocks that are wrong by 10 minutes in opposite directions are 20
	// minutes apart; the rest is margin.
	DefaultBackdate = 30 * time.Minute
)

// minRemaining is the least validity worth issuing; below it, the Authority
// says that its root is at its end instead of issuing something useless.
const minRemaining = 10 * time.Second

// ErrBadCSR is matched by every refusal of a certificate signing request.
var ErrBadCSR = errors.New("certificate signing request refused")

// AuthorityConfig says what an Authority signs. TrustDomain is needed; zero
// fields take the defaults.
type AuthorityConfig struct {
	TrustDomain spiffeid.TrustDomain
	// TTL, NodeTTL and RootTTL are validities from now on.
	TTL, NodeTTL, RootTTL time.Duration
	// Backdate is how far validities begin in the past.
	Backdate time.Duration
	// Now is the clock; nil means time.Now. Tests set a skewed one.
	Now func() time.Time
}

func (c AuthorityConfig) withDefaults() (AuthorityConfig, error) {
	if c.TrustDomain.IsZero() {
		return c, errors.New("authority needs a trust domain")
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"TTL", &c.TTL, DefaultTTL},
		{"node TTL", &c.NodeTTL, DefaultNodeTTL},
		{"root TTL", &c.RootTTL, DefaultRootTTL},
		{"backdate", &c.Backdate, DefaultBackdate},
	} {
		if *d.value == 0 {
			*d.value = d.def
		}
		if *d.value < 0 {
			return c, fmt.Errorf("authority's %s %v is negative", d.name, *d.value)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}

// Authority is the operator's certificate authority for one trust domain: the
// certificate that signs, a root or an intermediate, and the bundle of all roots
// that verifiers trust, which has more than one while roots overlap. It is
// immutable and safe for concurrent use.
type Authority struct {
	cfg AuthorityConfig
	// chain signs with key: its first, an intermediate's issuer next, up to and
	// with root, which is one of roots.
	chain []*x509.Certificate
	key   crypto.Signer
	root  *x509.Certificate
	roots []*x509.Certificate
}

// NewAuthority makes an Authority with a new root, in memory only.
func NewAuthority(cfg AuthorityConfig) (*Authority, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate root key: %w", err)
	}
	root, err := newRoot(cfg, key)
	if err != nil {
		return nil, err
	}
	return newAuthority(cfg, key, []*x509.Certificate{root})
}

// newAuthority checks what it is given: key must belong to one of certs, which is
// the one that signs, and a root or with a chain of them to one. Those of certs
// that are roots are trusted, MaxBundle at most; all of them must be of the trust domain.
func newAuthority(cfg AuthorityConfig, key crypto.Signer, certs []*x509.Certificate) (*Authority, error) {
	a := &Authority{cfg: cfg, key: key}
	var signing *x509.Certificate
	for _, cert := range certs {
		if err := checkRoot(cert, cfg.TrustDomain); err != nil {
			return nil, fmt.Errorf("certificate %s: %w", cert.SerialNumber.Text(16), err)
		}
		if signing == nil && cakey.Belongs(key, cert.PublicKey) {
			signing = cert
		}
		if IsRoot(cert) {
			a.roots = append(a.roots, cert)
		}
	}
	if len(a.roots) > MaxBundle {
		return nil, fmt.Errorf("%d roots in %s, %s and %s together, and nodes take %d at most; remedy: take out those that nothing uses", len(a.roots), rootCertFile, bundleFile, furtherFile, MaxBundle)
	}
	if signing == nil {
		return nil, errors.New("tls.key belongs to none of the root certificates, and to no intermediate")
	}
	for cert := signing; ; cert = issuerAmong(cert, certs) {
		if cert == nil || len(a.chain) == MaxChain-1 {
			return nil, fmt.Errorf("intermediate %s: the certificates given lead to no root; remedy: put the root into ca.crt, or roots.crt", signing.SerialNumber.Text(16))
		}
		if now := cfg.Now(); now.After(cert.NotAfter) {
			return nil, fmt.Errorf("root certificate expired at %s", cert.NotAfter.Format(time.RFC3339))
		}
		if err := cakey.Public(cert.PublicKey); err != nil {
			return nil, fmt.Errorf("certificate %s: %w", cert.SerialNumber.Text(16), err)
		}
		a.chain = append(a.chain, cert)
		if IsRoot(cert) {
			a.root = cert
			if err := a.try(a.Bundle()); err != nil {
				return nil, fmt.Errorf("what %s signs is not valid: %w; remedy: a CA whose certificates have path length to spare and no constraints on names", signing.SerialNumber.Text(16), err)
			}
			return a, nil
		}
	}
}

// AcceptedBy says whether whoever trusts another Authority's roots accepts what this one
// signs; the error says why not. What is at its end signs nothing more, and is accepted.
func (a *Authority) AcceptedBy(other *Authority) error { return a.try(other.Bundle()) }

// try has the Authority sign, and verifies it by a bundle as peers will, so that what
// constrains its certificates (path length, names, a beginning that is to come) is found
// now. An Authority at its end signs no more, and is none the worse for what it has signed.
func (a *Authority) try(by *x509bundle.Bundle) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate key: %w", err)
	}
	chain, err := a.sign(key.Public(), OperatorID(a.cfg.TrustDomain), 0)
	if err != nil {
		return nil
	}
	_, _, err = x509svid.Verify(chain, by, x509svid.WithTime(skew.Moment(chain[0], a.cfg.Now())))
	return err
}

// IsRoot says whether a certificate of a CA is signed by its own key.
func IsRoot(cert *x509.Certificate) bool { return signedBy(cert, cert) }

// signedBy says whether a certificate names by as its issuer, and has its signature.
func signedBy(cert, by *x509.Certificate) bool {
	return string(cert.RawIssuer) == string(by.RawSubject) && cert.CheckSignatureFrom(by) == nil
}

func issuerAmong(cert *x509.Certificate, certs []*x509.Certificate) *x509.Certificate {
	for _, by := range certs {
		if signedBy(cert, by) {
			return by
		}
	}
	return nil
}

// newRoot self-signs a root as X509-SVID sections 2 and 4 want a signing
// certificate: its URI is the trust domain's, without a path.
func newRoot(cfg AuthorityConfig, key crypto.Signer) (*x509.Certificate, error) {
	template, err := signingTemplate(cfg, "Heddle mesh root", cfg.Now().Add(cfg.RootTTL))
	if err != nil {
		return nil, err
	}
	template.MaxPathLen = 1 // one intermediate below it
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign root certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// newIntermediate has root sign a certificate that signs for it.
func newIntermediate(cfg AuthorityConfig, key *ecdsa.PrivateKey, root *x509.Certificate, rootKey crypto.Signer) (*x509.Certificate, error) {
	if root.MaxPathLen == 0 && root.MaxPathLenZero {
		return nil, fmt.Errorf("root %s may have no intermediate (path length 0, as roots of earlier versions have)", root.SerialNumber.Text(16))
	}
	end := cfg.Now().Add(DefaultIntermediateTTL)
	if root.NotAfter.Before(end) {
		end = root.NotAfter
	}
	template, err := signingTemplate(cfg, "Heddle mesh intermediate", end)
	if err != nil {
		return nil, err
	}
	template.MaxPathLenZero = true
	if template.NotBefore.Before(root.NotBefore) {
		template.NotBefore = root.NotBefore
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root, key.Public(), rootKey)
	if err != nil {
		return nil, fmt.Errorf("sign intermediate certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// signingTemplate is what certificates that sign have in common. The serial in
// the name sets those of one trust domain apart for verifiers that look issuers
// up by name.
func signingTemplate(cfg AuthorityConfig, name string, end time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Heddle"}, CommonName: name, SerialNumber: serial.Text(16)},
		NotBefore:             cfg.Now().Add(-cfg.Backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		URIs:                  []*url.URL{cfg.TrustDomain.ID().URL()},
	}, nil
}

func checkRoot(root *x509.Certificate, td spiffeid.TrustDomain) error {
	switch {
	case !root.BasicConstraintsValid || !root.IsCA:
		return errors.New("not a CA certificate")
	case root.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("key usage without certificate signing")
	case len(root.URIs) > 1:
		return errors.New("more than one URI name")
	case len(root.URIs) == 1 && root.URIs[0].String() != td.IDString():
		return fmt.Errorf("is of %s, not of %s", root.URIs[0], td.IDString())
	}
	return nil
}

// TrustDomain returns the trust domain that the Authority signs for.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.cfg.TrustDomain }

// TTL returns the default validity of id's SVID: a node's or a workload's.
func (a *Authority) TTL(id spiffeid.ID) time.Duration {
	if _, ok := NodeName(id); ok {
		return a.cfg.NodeTTL
	}
	return a.cfg.TTL
}

// Bundle returns the roots that verify what this Authority signs. The caller
// may keep and change it.
func (a *Authority) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.cfg.TrustDomain, a.roots)
}

// Roots returns the roots of Bundle. They must not be changed.
func (a *Authority) Roots() []*x509.Certificate { return a.roots }

// Root returns the root of what this Authority signs. It must not be changed.
func (a *Authority) Root() *x509.Certificate { return a.root }

// Signing returns the certificate that signs: Root, or an intermediate. It must
// not be changed.
func (a *Authority) Signing() *x509.Certificate { return a.chain[0] }

// Chain returns Signing, what is between it and Root, and Root. It must not be changed.
func (a *Authority) Chain() []*x509.Certificate { return a.chain }

// intermediates is what a leaf's chain has besides the leaf.
func (a *Authority) intermediates() []*x509.Certificate { return a.chain[:len(a.chain)-1] }

// Pin returns the SHA-256 of Root, by which join tokens pin it.
func (a *Authority) Pin() [sha256.Size]byte { return sha256.Sum256(a.root.Raw) }

// SignCSR issues id's SVID for the public key of a PKCS #10 request in DER. It
// verifies the request's signature and takes nothing but the key from it: names
// and extensions asked for are ignored. ttl 0 means the default; validity ends
// no later than the root's. It returns the chain, leaf first, without the root.
// Errors about the request match ErrBadCSR.
func (a *Authority) SignCSR(csr []byte, id spiffeid.ID, ttl time.Duration) ([]*x509.Certificate, error) {
	key, err := ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	return a.sign(key, id, ttl)
}

// Sign is SignCSR with the default TTL. It makes an Authority a Signer, for
// programs that hold it themselves and for tests.
func (a *Authority) Sign(_ context.Context, id spiffeid.ID, csr []byte) (chain, bundle []*x509.Certificate, err error) {
	chain, err = a.SignCSR(csr, id, 0)
	if err != nil {
		return nil, nil, err
	}
	return chain, a.roots, nil
}

// sign issues a leaf as X509-SVID section 4 wants it. The subject is empty,
// which makes the URI name critical (RFC 5280, 4.2.1.6).
func (a *Authority) sign(key crypto.PublicKey, id spiffeid.ID, ttl time.Duration) ([]*x509.Certificate, error) {
	if !id.MemberOf(a.cfg.TrustDomain) || id.Path() == "" {
		return nil, fmt.Errorf("sign for %q: not an identity of trust domain %s", id, a.cfg.TrustDomain)
	}
	if ttl <= 0 {
		ttl = a.TTL(id)
	}
	now := a.cfg.Now()
	notBefore, notAfter := now.Add(-a.cfg.Backdate), now.Add(ttl)
	for _, by := range a.chain {
		if notAfter.After(by.NotAfter) {
			notAfter = by.NotAfter
		}
		if notBefore.Before(by.NotBefore) {
			notBefore = by.NotBefore
		}
	}
	if notAfter.Sub(now) < min(ttl, minRemaining) {
		return nil, fmt.Errorf("sign for %s: root certificate ends at %s", id, notAfter.Format(time.RFC3339))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.URL()},
	}, a.Signing(), key, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	return append([]*x509.Certificate{leaf}, a.intermediates()...), nil
}

// newSerial returns a random positive serial of at most 126 bits, within the 20
// bytes of RFC 5280 and above the 64 bits of entropy that CAs must have.
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
