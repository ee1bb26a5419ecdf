package rotation

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/trustfeed"
)

// ErrConflict is matched when somebody else changed the texts first.
var ErrConflict = errors.New("the authority was changed by somebody else meanwhile")

// ErrNoOverlap is matched when the authority is replaced by one that nobody trusts yet, or
// that no longer trusts what the one before has signed.
var ErrNoOverlap = errors.New("the authority was replaced without overlap")

// Store keeps the texts.
type Store interface {
	// Load returns the texts, and a version that Save goes by.
	Load(ctx context.Context) (Texts, string, error)
	// Save replaces all texts at once, when they are still of that version; else
	// the error matches ErrConflict.
	Save(ctx context.Context, texts Texts, version string) error
	// Keeper is the Certificate of cert-manager, as NAMESPACE/NAME, that had written what
	// Load returned last, so that Save of a rotation is refused; "" for none.
	Keeper() string
	// String names the place, for messages.
	String() string
}

// LiveConfig says how a Live goes. Store and Logger are needed.
type LiveConfig struct {
	Store     Store
	Authority identity.AuthorityConfig
	// First makes the texts of an authority that OpenDir finds nothing of, or one that has
	// ended, without a configuration key; nil makes a root where there is nothing.
	First func(context.Context) (map[string][]byte, error)
	// Poll is how often the Store is read; 3 s when zero.
	Poll   time.Duration
	Logger *slog.Logger
}

// Live is the authority of the moment. It is an issuing.Issuer, an
// x509bundle.Source of its trust domain, and says what a trustfeed.Server says.
type Live struct {
	cfg      LiveConfig
	changing chan struct{} // of capacity 1, held by Change: what is changed here is no conflict

	state struct {
		sync.Mutex
		keyring *Keyring
		version string
		own     identity.CertificateFunc
		changed chan struct{} // closed and replaced at every change
		problem error         // of the newest texts, when they are not in use
	}
}

// Open reads the Store. It starts nothing.
func Open(ctx context.Context, cfg LiveConfig) (*Live, error) {
	if cfg.Store == nil || cfg.Logger == nil {
		return nil, errors.New("open authority: Store and Logger are needed")
	}
	cfg.Poll = cmp.Or(cfg.Poll, 3*time.Second)
	l := &Live{cfg: cfg, changing: make(chan struct{}, 1)}
	l.state.changed = make(chan struct{})
	texts, version, err := cfg.Store.Load(ctx)
	if err != nil {
		return nil, err
	}
	keyring, err := Parse(texts, cfg.Authority)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; remedy: restore it from a backup, or delete it and restart operators and agents", cfg.Store, err)
	}
	l.take(keyring, version)
	return l, nil
}

// Run reads the Store now and then until ctx is done, and returns nil. Texts that
// are not valid are said to be so, and those before stay in use.
func (l *Live) Run(ctx context.Context) error {
	told := ""
	for {
		timer := time.NewTimer(l.cfg.Poll)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		err := l.Reload(ctx)
		switch {
		case err == nil:
			told = ""
		case ctx.Err() == nil && err.Error() != told: // said once
			told = err.Error()
			l.cfg.Logger.Error("the authority's newest keys are not read: going on with those before", "error", err)
		}
	}
}

// Reload reads the Store at once. What it does not take, those before staying in use,
// is its error: ErrNoOverlap when it and the one before do not trust each other.
func (l *Live) Reload(ctx context.Context) error {
	texts, version, err := l.cfg.Store.Load(ctx)
	if err != nil {
		return err
	}
	l.state.Lock()
	same := version == l.state.version
	if same {
		l.state.problem = nil
	}
	l.state.Unlock()
	if same {
		return nil
	}
	keyring, err := Parse(texts, l.cfg.Authority)
	if err != nil {
		err = fmt.Errorf("read %s: %w; remedy: restore it from a backup", l.cfg.Store, err)
	} else if err = l.Keyring().overlaps(keyring); err != nil {
		err = fmt.Errorf("%s: %w; or restart operators and agents, whose connections then end", l.cfg.Store, err)
	}
	if err == nil {
		l.take(keyring, version)
		return nil
	}
	l.state.Lock()
	l.state.problem = err
	l.state.Unlock()
	return err
}

// overlaps says whether nodes that trust what this Keyring does go on without a connection
// that fails when the other takes its place: each must accept what the other signs, since
// not all nodes take it at the same moment. In a rotation each stage does so.
func (k *Keyring) overlaps(with *Keyring) error {
	if k.AtEnd(time.Now()) {
		return nil // no connection is left that could fail
	}
	const remedy = "remedy: restore what was there, and put the old root and the new one into " + furtherFile + " first, until every node trusts both"
	if err := with.Signing.AcceptedBy(k.Signing); err != nil {
		return fmt.Errorf("%w: no node accepts yet what root %s signs (%w); %s", ErrNoOverlap, with.Signing.Root().SerialNumber.Text(16), err, remedy)
	}
	if k.Next != nil && k.Next.Signing().Equal(with.Signing.Signing()) {
		return nil // the rotation went on, and has replaced what this one signed
	}
	if err := k.Signing.AcceptedBy(with.Signing); err != nil {
		return fmt.Errorf("%w: no node would accept any more what root %s has signed (%w); %s", ErrNoOverlap, k.Signing.Root().SerialNumber.Text(16), err, remedy)
	}
	return nil
}

func (l *Live) take(k *Keyring, version string) {
	l.state.Lock()
	defer l.state.Unlock()
	l.state.keyring, l.state.version, l.state.problem = k, version, nil
	l.state.own = k.Own.Own(identity.OperatorID(k.Own.TrustDomain()))
	close(l.state.changed)
	l.state.changed = make(chan struct{})
}

// Change has make write the next texts, of the newest ones, and takes them. The error
// matches ErrConflict when somebody else was first.
func (l *Live) Change(ctx context.Context, make func(*Keyring) (Texts, error)) error {
	select {
	case l.changing <- struct{}{}:
		defer func() { <-l.changing }()
	case <-ctx.Done():
		return fmt.Errorf("write %s: another change goes on: %w", l.cfg.Store, context.Cause(ctx))
	}
	if err := l.Reload(ctx); err != nil {
		return err
	}
	l.state.Lock()
	k, version := l.state.keyring, l.state.version
	l.state.Unlock()
	texts, err := make(k)
	if err != nil {
		return err
	}
	if err := l.cfg.Store.Save(ctx, texts, version); err != nil {
		return fmt.Errorf("write %s: %w", l.cfg.Store, err)
	}
	return l.Reload(ctx)
}

// Keyring returns what is in use. It must not be changed.
func (l *Live) Keyring() *Keyring {
	l.state.Lock()
	defer l.state.Unlock()
	return l.state.keyring
}

// Changed returns a channel that is closed at the next change.
func (l *Live) Changed() <-chan struct{} {
	l.state.Lock()
	defer l.state.Unlock()
	return l.state.changed
}

// Problem is why the Store's newest texts are not in use; nil when they are.
func (l *Live) Problem() error {
	l.state.Lock()
	defer l.state.Unlock()
	return l.state.problem
}

// Said is what agents are told, and a channel that is closed at the next change.
func (l *Live) Said() (trustfeed.Said, <-chan struct{}) {
	l.state.Lock()
	defer l.state.Unlock()
	signing := l.state.keyring.Signing
	return trustfeed.Said{Roots: signing.Roots(), Issuer: signing.Signing()}, l.state.changed
}

// TrustDomain is the authority's, which never changes.
func (l *Live) TrustDomain() spiffeid.TrustDomain { return l.Keyring().Signing.TrustDomain() }

// SignCSR is identity.Authority's, with the one that signs now.
func (l *Live) SignCSR(csr []byte, id spiffeid.ID, ttl time.Duration) ([]*x509.Certificate, error) {
	return l.Keyring().Signing.SignCSR(csr, id, ttl)
}

// Keeper is the Store's.
func (l *Live) Keeper() string { return l.cfg.Store.Keeper() }

// Roots returns the roots that are trusted now. They must not be changed.
func (l *Live) Roots() []*x509.Certificate { return l.Keyring().Signing.Roots() }

// Own is the operator's own certificate of the moment; it is an
// identity.CertificateFunc.
func (l *Live) Own() (*tls.Certificate, error) {
	l.state.Lock()
	own := l.state.own
	l.state.Unlock()
	return own()
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (l *Live) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return l.Keyring().Signing.Bundle().GetX509BundleForTrustDomain(td)
}

// Collector returns the metrics:
//
//	heddle_authority_certificate_expiry_seconds{kind,serial,signs}  Unix time of NotAfter
//	heddle_rotation_stage{kind,stage}                               1 while it is so; none when there is no rotation
//	heddle_authority_refused                                        1 while the newest keys are not in use
func (l *Live) Collector() prometheus.Collector {
	return &collector{live: l,
		expiry:  prometheus.NewDesc("heddle_authority_certificate_expiry_seconds", "Unix time at which a certificate of the authority expires.", []string{"kind", "serial", "signs"}, nil),
		stage:   prometheus.NewDesc("heddle_rotation_stage", "1 for the stage of the rotation that is under way.", []string{"kind", "stage"}, nil),
		refused: prometheus.NewDesc("heddle_authority_refused", "1 while the authority's newest keys are refused and those before in use.", nil, nil),
	}
}

type collector struct {
	live                   *Live
	expiry, stage, refused *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.expiry, c.stage, c.refused} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	k := c.live.Keyring()
	for _, cert := range k.Certificates() {
		gauge(c.expiry, float64(cert.Cert.NotAfter.Unix()), cert.Kind, cert.Cert.SerialNumber.Text(16), fmt.Sprint(cert.Signs))
	}
	if k.Active() {
		gauge(c.stage, 1, k.Kind, k.Stage)
	}
	refused := 0.0
	if c.live.Problem() != nil {
		refused = 1
	}
	gauge(c.refused, refused)
}

// Certificate is one of the authority's.
type Certificate struct {
	Cert *x509.Certificate
	// Kind is KindRoot or KindIntermediate.
	Kind string
	// Signs says whether SVIDs are signed by it, Trusted whether it, or its root, is
	// trusted.
	Signs, Trusted bool
	// Anchors says whether it is the root of what signs, Further whether roots.crt has it.
	Anchors, Further bool
}

// Certificates lists those of the authority, the one that signs first.
func (k *Keyring) Certificates() []Certificate {
	var all []Certificate
	seen := map[string]bool{}
	add := func(certs []*x509.Certificate, trusted bool) {
		for _, cert := range certs {
			if seen[string(cert.Raw)] {
				continue
			}
			seen[string(cert.Raw)] = true
			kind := KindIntermediate
			if identity.IsRoot(cert) {
				kind = KindRoot
			}
			all = append(all, Certificate{Cert: cert, Kind: kind, Signs: cert.Equal(k.Signing.Signing()), Trusted: trusted,
				Anchors: cert.Equal(k.Signing.Root()), Further: slices.ContainsFunc(k.further, cert.Equal)})
		}
	}
	add(k.Signing.Chain(), true)
	add(k.Signing.Roots(), true)
	add(k.Own.Chain(), true)
	if k.Next != nil {
		add(k.Next.Chain(), true)
	}
	return all
}
