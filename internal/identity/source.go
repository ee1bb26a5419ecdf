package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/identity/federated"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// Signer has SVIDs signed. Authority is one, Client is one.
type Signer interface {
	// Sign returns id's SVID for the key of csr (PKCS #10, DER): the chain,
	// leaf first and without the root, and the roots of the trust domain.
	Sign(ctx context.Context, id spiffeid.ID, csr []byte) (chain, bundle []*x509.Certificate, err error)
}

// The ways in which a Source has no certificate.
var (
	// ErrNoCertificate: none was issued yet, or the identity is not wanted.
	ErrNoCertificate = errors.New("no certificate")
	// ErrCertificateExpired: the last one issued is past its NotAfter.
	ErrCertificateExpired = errors.New("certificate expired")
)

// Defaults of SourceConfig.
const (
	DefaultParallel    = 4
	DefaultSignTimeout = 15 * time.Second
)

// SourceConfig says what a Source needs. TrustDomain and Signer are needed.
type SourceConfig struct {
	TrustDomain spiffeid.TrustDomain
	Signer      Signer
	// Keys keeps what was issued for the next process; nil keeps it in memory
	// only.
	Keys *keystore.Store
	// Bundle is trusted until the Signer delivers another; nil means none. What
	// Keys holds is used only if it shares a root with Bundle.
	Bundle *x509bundle.Bundle
	// Logger receives every issue and refusal; nil discards.
	Logger *slog.Logger
	// Parallel bounds requests to the Signer under way at once.
	Parallel int
	// Timeout bounds each of them.
	Timeout time.Duration
}

// Source keeps certificates for the identities it is told to want. Everything
// but Run only takes a short lock.
type Source struct {
	cfg   SourceConfig
	wake  chan struct{} // capacity 1: Want was called
	stats sourceStats

	state struct {
		sync.Mutex
		// wanted is nil until the first Want: nothing is dropped before.
		wanted  map[spiffeid.ID]struct{}
		held    map[spiffeid.ID]*held
		bundle  *x509bundle.Bundle // replaced, never changed; nil if none
		issuer  *x509.Certificate  // of the authority that is followed; nil if none
		others  *federated.Set
		changed chan struct{} // closed and replaced at every change
	}
}

// held is what a Source knows of one identity.
type held struct {
	entry       keystore.Entry
	certificate *tls.Certificate // nil while there is none
	renewAt     time.Time
	due         bool              // renewAt is another than the queue's
	issuer      *x509.Certificate // nil while nobody asked
	failures    int               // since the last success
	lastErr     error
}

// NewSource makes a Source and takes over what cfg.Keys holds and is still
// valid: those certificates are there before Run, and without the Signer.
func NewSource(cfg SourceConfig) (*Source, error) {
	if cfg.TrustDomain.IsZero() || cfg.Signer == nil {
		return nil, errors.New("source needs a trust domain and a signer")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = DefaultParallel
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultSignTimeout
	}
	s := &Source{cfg: cfg, wake: make(chan struct{}, 1)}
	s.state.held = map[spiffeid.ID]*held{}
	s.state.changed = make(chan struct{})
	if cfg.Bundle != nil {
		s.state.bundle = cfg.Bundle.Clone()
	}
	if cfg.Keys != nil {
		if err := s.adopt(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Want replaces the set of identities that the Source keeps certificates for.
// Identities outside the trust domain are refused with an error that names them
// and the others are taken all the same. Certificates of identities that are no
// longer wanted are dropped, from the key store too; so call it with the
// whole set, and not before the set is known.
func (s *Source) Want(ids []spiffeid.ID) error {
	wanted := make(map[spiffeid.ID]struct{}, len(ids))
	var foreign []string
	for _, id := range ids {
		if !id.MemberOf(s.cfg.TrustDomain) {
			foreign = append(foreign, fmt.Sprintf("%q", id))
			continue
		}
		wanted[id] = struct{}{}
	}
	s.state.Lock()
	s.state.wanted = wanted
	s.state.Unlock()
	select {
	case s.wake <- struct{}{}:
	default: // the loop is told already
	}
	if len(foreign) > 0 {
		slices.Sort(foreign)
		return fmt.Errorf("identities outside trust domain %s: %s", s.cfg.TrustDomain, strings.Join(foreign, ", "))
	}
	return nil
}

// Certificate returns id's certificate, Leaf set. It must not be changed. The
// error matches ErrNoCertificate or ErrCertificateExpired and says why there is
// none.
func (s *Source) Certificate(id spiffeid.ID) (*tls.Certificate, error) {
	s.state.Lock()
	defer s.state.Unlock()
	h := s.state.held[id]
	switch {
	case h == nil:
		return nil, fmt.Errorf("%w for %s", ErrNoCertificate, id)
	case h.certificate == nil && h.lastErr != nil:
		return nil, fmt.Errorf("%w for %s: %w", ErrNoCertificate, id, h.lastErr)
	case h.certificate == nil:
		return nil, fmt.Errorf("%w for %s", ErrNoCertificate, id)
	case time.Now().After(h.certificate.Leaf.NotAfter):
		err := fmt.Errorf("%w: %s at %s", ErrCertificateExpired, id, h.certificate.Leaf.NotAfter.Format(time.RFC3339))
		if h.lastErr != nil {
			err = fmt.Errorf("%w; renewal: %w", err, h.lastErr)
		}
		return nil, err
	}
	return h.certificate, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source. The bundle must not
// be changed; a rotation makes a new one.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	s.state.Lock()
	defer s.state.Unlock()
	if td != s.cfg.TrustDomain {
		return s.state.others.GetX509BundleForTrustDomain(td)
	}
	if s.state.bundle == nil {
		return nil, fmt.Errorf("no bundle for trust domain %q", td)
	}
	return s.state.bundle, nil
}

// SetFederated replaces the bundles of other trust domains, and Federated returns them. They
// say nothing of the Source's own.
func (s *Source) SetFederated(others *federated.Set) {
	s.state.Lock()
	defer s.state.Unlock()
	s.state.others = others
	s.notify()
}

// Federated returns the bundles of other trust domains.
func (s *Source) Federated() *federated.Set {
	s.state.Lock()
	defer s.state.Unlock()
	return s.state.others
}

// SetBundle replaces the trust bundle, as when configuration delivers one
// between two issues.
func (s *Source) SetBundle(b *x509bundle.Bundle) error {
	if b.TrustDomain() != s.cfg.TrustDomain || b.Empty() {
		return fmt.Errorf("set bundle: of %q with %d roots, trust domain is %s", b.TrustDomain(), len(b.X509Authorities()), s.cfg.TrustDomain)
	}
	s.state.Lock()
	changed := s.state.bundle == nil || !s.state.bundle.Equal(b)
	if changed {
		b = b.Clone()
		s.state.bundle = b
		s.notify()
	}
	s.state.Unlock()
	if changed && s.cfg.Keys != nil {
		return s.cfg.Keys.PutBundle(b)
	}
	return nil
}

// Changed returns a channel that is closed at the next change of a certificate
// or the bundle. Take it first, look second, wait third.
func (s *Source) Changed() <-chan struct{} {
	s.state.Lock()
	defer s.state.Unlock()
	return s.state.changed
}

// notify needs the lock.
func (s *Source) notify() {
	close(s.state.changed)
	s.state.changed = make(chan struct{})
}

// Status is one identity's certificate, for status and metrics.
type Status struct {
	ID spiffeid.ID
	// NotAfter and Serial are zero while there is no certificate.
	NotAfter time.Time
	Serial   string
	// RenewAt is when renewal begins; zero while there is no certificate.
	RenewAt time.Time
	// Failures counts attempts since the last success; LastErr is the last's.
	Failures int
	LastErr  error
}

// Statuses lists what the Source holds and wants, the earliest expiry first.
func (s *Source) Statuses() []Status {
	s.state.Lock()
	defer s.state.Unlock()
	ids := maps.Clone(s.state.wanted)
	if ids == nil {
		ids = map[spiffeid.ID]struct{}{}
	}
	for id := range s.state.held {
		ids[id] = struct{}{}
	}
	list := make([]Status, 0, len(ids))
	for id := range ids {
		st := Status{ID: id}
		if h := s.state.held[id]; h != nil {
			st.Failures, st.LastErr = h.failures, h.lastErr
			if h.certificate != nil {
				st.NotAfter, st.RenewAt = h.certificate.Leaf.NotAfter, h.renewAt
				st.Serial = h.certificate.Leaf.SerialNumber.Text(16)
			}
		}
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b Status) int {
		if c := a.NotAfter.Compare(b.NotAfter); c != 0 {
			return c
		}
		return strings.Compare(a.ID.String(), b.ID.String())
	})
	return list
}

// summary counts valid certificates and identities without one, and returns the
// earliest NotAfter in Unix seconds, 0 when there is none.
func (s *Source) summary() (valid, missing int, earliest float64) {
	now := time.Now()
	for _, st := range s.Statuses() {
		if !st.NotAfter.IsZero() && earliest == 0 {
			earliest = float64(st.NotAfter.Unix())
		}
		if st.NotAfter.After(now) {
			valid++
		} else {
			missing++
		}
	}
	return valid, missing, earliest
}
