package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// switching signs with the authority of the moment.
type switching struct{ now atomic.Pointer[Authority] }

func (s *switching) Sign(ctx context.Context, id spiffeid.ID, csr []byte) (chain, bundle []*x509.Certificate, err error) {
	return s.now.Load().Sign(ctx, id, csr)
}

// TestSourceFollowsAnAuthority takes a Source from one root to another, and back.
func TestSourceFollowsAnAuthority(t *testing.T) {
	before, after := newTestAuthority(t), newTestAuthority(t)
	td := before.TrustDomain()
	both := x509bundle.FromX509Authorities(td, []*x509.Certificate{before.Root(), after.Root()})
	signer := &switching{}
	signer.now.Store(before)
	s, err := NewSource(SourceConfig{TrustDomain: td, Signer: signer, Bundle: before.Bundle()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if err := s.Want([]spiffeid.ID{shopWeb, spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/db")}); err != nil {
		t.Fatal(err)
	}
	held := func(by *Authority) bool {
		_, all := s.Holdings()
		for _, h := range all {
			if h.Issuer != sha256.Sum256(by.Root().Raw) {
				return false
			}
		}
		return len(all) == 2
	}
	testenv.Eventually(t, 10*time.Second, "two certificates of the root before", func() bool { return held(before) })

	// Distributed: the answers' own bundle, of one root, no longer counts.
	if err := s.Follow(Trust{Bundle: both, Issuer: before.Root()}); err != nil {
		t.Fatal(err)
	}
	if roots, _ := s.Holdings(); len(roots) != 2 || !held(before) {
		t.Fatalf("%d roots", len(roots))
	}
	// The issuer changes, and a replica is behind: what it signs is not taken.
	if err := s.Follow(Trust{Bundle: both, Issuer: after.Root(), Spread: 10 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "refusals", func() bool { return s.stats.failed.Load() >= 2 })
	if !held(before) {
		t.Fatal("a certificate changed that should not have")
	}
	if _, err := s.Certificate(shopWeb); err != nil {
		t.Errorf("the one before does not do until then: %v", err)
	}
	signer.now.Store(after)
	testenv.Eventually(t, 10*time.Second, "two certificates of the root after", func() bool { return held(after) })
	if roots, _ := s.Holdings(); len(roots) != 2 {
		t.Errorf("%d roots: the answer's bundle was taken", len(roots))
	}
	if err := s.Follow(Trust{Bundle: after.Bundle(), Issuer: after.Root()}); err != nil {
		t.Fatal(err)
	}
	if roots, _ := s.Holdings(); len(roots) != 1 || !roots[0].Equal(after.Root()) {
		t.Errorf("%d roots", len(roots))
	}
	for _, bad := range []Trust{{Bundle: both}, {Bundle: x509bundle.New(td), Issuer: after.Root()},
		{Bundle: x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("other"), after.Roots()), Issuer: after.Root()}} {
		if err := s.Follow(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// TestIntermediate has an intermediate sign: what it signs verifies by the root.
func TestIntermediate(t *testing.T) {
	cfg := AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("mesh.test")}
	texts, err := NewAuthorityTexts(cfg)
	if err != nil {
		t.Fatal(err)
	}
	root, _, err := AuthorityFromTexts(texts, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // below the root, and then in place of the first
		more, err := NewIntermediateTexts(texts, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range more {
			texts[name] = text
		}
	}
	a, _, err := AuthorityFromTexts(texts, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if IsRoot(a.Signing()) || !a.Root().Equal(root.Root()) || len(a.Roots()) != 1 {
		t.Fatalf("signs by %v, root %v, %d roots", a.Signing().Subject, a.Root().Subject, len(a.Roots()))
	}
	csr := newTestCSR(t, newKey(t), shopWeb)
	chain, err := a.SignCSR(csr, shopWeb, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 2 || !issuedBy(chain, a.Signing()) || issuedBy(chain, a.Root()) {
		t.Errorf("chain of %d", len(chain))
	}
	if id, _, err := x509svid.Verify(chain, root.Bundle()); err != nil || id != shopWeb {
		t.Errorf("go-spiffe says %v, %v", id, err)
	}
	own, err := a.Own(OperatorID(a.TrustDomain()))()
	if err != nil || len(own.Certificate) != 3 {
		t.Errorf("own chain %v, %v", own, err)
	}
	delete(texts, RootKeyFile)
	if _, err := NewIntermediateTexts(texts, cfg); err == nil {
		t.Error("an intermediate without the root's key")
	}
	texts["tls.crt"] = certificateText(a.Signing())
	if _, _, err := AuthorityFromTexts(texts, cfg); err == nil {
		t.Error("an intermediate without its root was taken")
	}
}
