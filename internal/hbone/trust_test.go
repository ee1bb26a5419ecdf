package hbone_test

import (
	"crypto/x509"
	"errors"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
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
	trust := hbone.NewTrust([]*x509.Certificate{leaf}, nil)
	if _, vouched := trust.State(); vouched != nil {
		t.Error("roots vouched before a check")
	}
	if err := trust.Check(roots(ca), ca.ID("peer")); err != nil {
		t.Fatal(err)
	}
	if err := trust.Check(roots(other), ca.ID("peer")); !errors.Is(err, hbone.ErrCertificateUntrusted) {
		t.Errorf("with the root gone: %v", err)
	}
	chain, vouched := trust.State()
	for name, c := range map[string]struct {
		now  *x509bundle.Bundle
		want bool
	}{"same roots": {roots(ca), true}, "a root more": {roots(ca, other), false}, "another root": {roots(other), false}} {
		moved, err := hbone.TrustFrom(chain, vouched, c.now, ca.ID("peer"))
		if err != nil {
			t.Fatal(err)
		}
		if _, again := moved.State(); (again != nil) != c.want {
			t.Errorf("%s: believed is %v", name, again != nil)
		}
	}
	moved, err := hbone.TrustFrom(chain, vouched, nil, ca.ID("peer"))
	if err != nil {
		t.Fatal(err)
	}
	if err := moved.Check(roots(other), ca.ID("peer")); !errors.Is(err, hbone.ErrCertificateUntrusted) {
		t.Errorf("moved, with the root gone: %v", err)
	}
	if err := moved.Check(roots(ca, other), ca.ID("peer")); err != nil {
		t.Error(err)
	}
	if _, err := hbone.TrustFrom([][]byte{{1, 2}}, nil, nil, ca.ID("peer")); err == nil {
		t.Error("a chain that is none was taken")
	}
}
