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

// Authority is the operator's certificate authority for one trust domain: one
// root that signs, and the bundle of all roots that verifiers trust, which
// has more than one while roots overlap. It is immutable and safe for
// concurrent use.
type Authority struct {
	cfg AuthorityConfig
	// root and key sign; root is one of roots.
	root  *x509.Certificate
	key   crypto.Signer
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

// newAuthority checks what it is given: key must belong to one of the roots,
// which is the one that signs; all of them must be roots of the trust domain.
func newAuthority(cfg AuthorityConfig, key crypto.Signer, roots []*x509.Certificate) (*Authority, error) {
	a := &Authority{cfg: cfg, key: key, roots: roots}
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("root key is %T: an ECDSA key is needed", key.Public())
	}
	for _, root := range roots {
		if err := checkRoot(root, cfg.TrustDomain); err != nil {
			return nil, fmt.Errorf("root %s: %w", root.SerialNumber, err)
		}
		if a.root == nil && public.Equal(root.PublicKey) {
			a.root = root
		}
	}
	if a.root == nil {
		return nil, errors.New("root key belongs to none of the root certificates")
	}
	if now := cfg.Now(); now.After(a.root.NotAfter) {
		return nil, fmt.Errorf("root certificate expired at %s", a.root.NotAfter.Format(time.RFC3339))
	}
	return a, nil
}

// newRoot self-signs a root as X509-SVID sections 2 and 4 want a signing
// certificate: its URI is the trust domain's, without a path.
func newRoot(cfg AuthorityConfig, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := cfg.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		// The serial sets roots of one trust domain apart for verifiers that
		// look issuers up by name.
		Subject:               pkix.Name{Organization: []string{"Heddle"}, CommonName: "Heddle mesh root", SerialNumber: serial.Text(16)},
		NotBefore:             now.Add(-cfg.Backdate),
		NotAfter:              now.Add(cfg.RootTTL),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		URIs:                  []*url.URL{cfg.TrustDomain.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign root certificate: %w", err)
	}
	return x509.ParseCertificate(der)
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

// Root returns the root that signs now. It must not be changed.
func (a *Authority) Root() *x509.Certificate { return a.root }

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
	if notAfter.After(a.root.NotAfter) {
		notAfter = a.root.NotAfter
	}
	if notAfter.Sub(now) < min(ttl, minRemaining) {
		return nil, fmt.Errorf("sign for %s: root certificate ends at %s", id, a.root.NotAfter.Format(time.RFC3339))
	}
	if notBefore.Before(a.root.NotBefore) {
		notBefore = a.root.NotBefore
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
	}, a.root, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	return []*x509.Certificate{leaf}, nil
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
