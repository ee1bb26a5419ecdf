package hbone_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

// TestTrust: a chain is verified again when the roots are others than before,
// and believed, after a move too, when they are not.
func TestTrust(t *testing.T) {
	ca, other := enginetest.NewCA(t, "mesh.test"), enginetest.NewCA(t, "mesh.test")
	leaf := ca.SVID(t, "peer").Leaf
	roots := func(cas ...*enginetest.CA) *x509bundle.Bundle {
		b := x509bundle.New(ca.ID("peer").TrustDomain())
		for _, one := range cas {
			b.AddX509Authority(one.Cert)
		}
		return b
	}
	trust := hbone.NewTrust(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, CurveID: tls.CurveP384}, nil)
	if _, vouched, _ := trust.State(); vouched != nil {
		t.Error("roots vouched before a check")
	}
	if err := trust.Check(roots(ca), ca.ID("peer")); err != nil {
		t.Fatal(err)
	}
	if err := trust.Check(roots(other), ca.ID("peer")); !errors.Is(err, hbone.ErrCertificateUntrusted) {
		t.Errorf("with the root gone: %v", err)
	}
	chain, vouched, group := trust.State()
	if by := secured.Of(tls.CurveP384, leaf); trust.Secured() != by || group != tls.CurveP384 {
		t.Errorf("secured by %v, want %v", trust.Secured(), by)
	}
	for name, c := range map[string]struct {
		now  *x509bundle.Bundle
		want bool
	}{"same roots": {roots(ca), true}, "a root more": {roots(ca, other), false}, "another root": {roots(other), false}} {
		moved, err := hbone.TrustFrom(chain, vouched, group, c.now, ca.ID("peer"))
		if err != nil {
			t.Fatal(err)
		}
		if moved.Secured() != trust.Secured() {
			t.Errorf("%s: secured by %v, was %v", name, moved.Secured(), trust.Secured())
		}
		if _, again, _ := moved.State(); (again != nil) != c.want {
			t.Errorf("%s: believed is %v", name, again != nil)
		}
	}
	moved, err := hbone.TrustFrom(chain, vouched, 0, nil, ca.ID("peer"))
	if err != nil {
		t.Fatal(err)
	}
	if by := secured.Of(0, leaf); moved.Secured() != by {
		t.Errorf("of a version that does not say: %v, want %v", moved.Secured(), by)
	}
	if err := moved.Check(roots(other), ca.ID("peer")); !errors.Is(err, hbone.ErrCertificateUntrusted) {
		t.Errorf("moved, with the root gone: %v", err)
	}
	if err := moved.Check(roots(ca, other), ca.ID("peer")); err != nil {
		t.Error(err)
	}
	if _, err := hbone.TrustFrom([][]byte{{1, 2}}, nil, 0, nil, ca.ID("peer")); err == nil {
		t.Error("a chain that is none was taken")
	}
}
