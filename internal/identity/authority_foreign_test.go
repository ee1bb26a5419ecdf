package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/heddle-mesh/heddle/internal/hbone/skew"
	"github.com/heddle-mesh/heddle/internal/identity/cakey"
)

// foreignCA is a certificate as cert-manager makes one for isCA: no SPIFFE ID, a
// beginning of now; each change bends it. A nil issuer has it sign itself.
func foreignCA(t *testing.T, name string, key crypto.Signer, issuer *x509.Certificate, by crypto.Signer, changes ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Truncate(time.Second), NotAfter: time.Now().Add(90 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
	}
	for _, change := range changes {
		change(template)
	}
	if issuer == nil {
		issuer, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func foreignTexts(t *testing.T, key []byte, kind, tls, ca string) map[string][]byte {
	t.Helper()
	texts := map[string][]byte{"tls.key": pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: key}), "tls.crt": []byte(tls)}
	if ca != "" {
		texts["ca.crt"] = []byte(ca)
	}
	if added, err := AddConfigurationKey(texts, nil); err != nil || !added {
		t.Fatalf("no configuration key: %v", err)
	}
	if added, err := AddConfigurationKey(texts, nil); err != nil || added {
		t.Fatalf("a second configuration key: %v", err)
	}
	return texts
}

// TestForeignAuthority: a CA in cert-manager's layout signs what peers verify: a root
// alone, an intermediate with its root in ca.crt or roots.crt, a longer chain.
func TestForeignAuthority(t *testing.T) {
	text := func(certs ...*x509.Certificate) string { return string(CertificatesText(certs)) }
	rootKey, key := rsaKey(t), newKey(t)
	root := foreignCA(t, "root", rootKey, nil, nil)
	upperKey := newKey(t)
	upper := foreignCA(t, "upper", upperKey, root, rootKey)
	lower := foreignCA(t, "lower", key, upper, upperKey)
	direct := foreignCA(t, "direct", key, root, rootKey)
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := x509.MarshalPKCS1PrivateKey(rootKey)
	further := foreignTexts(t, sec1, "EC PRIVATE KEY", text(direct), "")
	further["roots.crt"] = []byte(text(root))
	for name, c := range map[string]struct {
		texts map[string][]byte
		chain int
	}{
		"an RSA root, PKCS #1":            {foreignTexts(t, pkcs1, "RSA PRIVATE KEY", text(root), text(root)), 1},
		"an intermediate, SEC 1":          {foreignTexts(t, sec1, "EC PRIVATE KEY", text(direct), text(root)), 2},
		"a chain, root in ca.crt":         {foreignTexts(t, sec1, "EC PRIVATE KEY", text(lower, upper), text(root)), 3},
		"an intermediate, root beside it": {further, 2},
	} {
		a, _, err := AuthorityFromTexts(c.texts, AuthorityConfig{TrustDomain: testTD})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		csr, err := NewCSR(newKey(t), shopWeb)
		if err != nil {
			t.Fatal(err)
		}
		chain, roots, err := a.Sign(t.Context(), shopWeb, csr)
		if err != nil || len(chain) != c.chain || len(roots) != 1 || !roots[0].Equal(root) {
			t.Errorf("%s: %d certificates, %d roots, %v", name, len(chain), len(roots), err)
			continue
		}
		if id, _, err := x509svid.Verify(chain, a.Bundle(), x509svid.WithTime(skew.Moment(chain[0], time.Now()))); err != nil || id != shopWeb {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := cakey.Type(root); got != "RSA 2048" {
		t.Errorf("the key is shown as %q", got)
	}
}

// TestForeignAuthorityRefused: what would sign nothing that verifies is refused, with a remedy or the reason.
func TestForeignAuthorityRefused(t *testing.T) {
	text := func(certs ...*x509.Certificate) string { return string(CertificatesText(certs)) }
	rootKey, key := newKey(t), newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	root := foreignCA(t, "root", rootKey, nil, nil)
	short := foreignCA(t, "short", rootKey, nil, nil, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	smallDER, err := x509.MarshalPKCS8PrivateKey(small)
	if err != nil {
		t.Fatal(err)
	}
	below := func(by *x509.Certificate, changes ...func(*x509.Certificate)) *x509.Certificate {
		return foreignCA(t, "below", key, by, rootKey, changes...)
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	weakKey, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak := foreignCA(t, "weak", weakKey, nil, nil)
	for name, c := range map[string]struct {
		key     []byte
		tls, ca string
		says    string
	}{
		"no root":             {der, text(below(root)), "", "lead to no root; remedy: put the root into ca.crt"},
		"no CA":               {der, text(below(root, func(c *x509.Certificate) { c.IsCA = false })), text(root), "not a CA certificate"},
		"no right to sign":    {der, text(below(root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })), text(root), "key usage without certificate signing"},
		"another's key":       {der, text(root), text(root), "tls.key belongs to none"},
		"a path that is long": {der, text(below(short)), text(short), "path length to spare"},
		"names constrained":   {der, text(below(root, func(c *x509.Certificate) { c.PermittedURIDomains = []string{"elsewhere.test"} })), text(root), "no constraints on names"},
		"of tomorrow":         {der, text(below(root, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })), text(root), "is not valid"},
		"ended":               {der, text(below(root, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) })), text(root), "expired"},
		"another domain's":    {der, text(below(root, func(c *x509.Certificate) { c.URIs = append(c.URIs, foreigns.URL()) })), text(root), "is of "},
		"a root of 1024 bits": {der, text(foreignCA(t, "below", key, weak, weakKey)), text(weak), "RSA of 1024 bits is not taken"},
		"a curve of 224 bits": {smallDER, text(root), text(root), "cert-manager: spec.privateKey"},
	} {
		texts := foreignTexts(t, c.key, "PRIVATE KEY", c.tls, c.ca)
		if _, _, err := AuthorityFromTexts(maps.Clone(texts), AuthorityConfig{TrustDomain: testTD}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

// TestUnrelatedWeakRoot: a root of 1024 bits that signs nothing here is trusted on.
func TestUnrelatedWeakRoot(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	weakKey, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	texts, err := NewAuthorityTexts(AuthorityConfig{TrustDomain: testTD})
	if err != nil {
		t.Fatal(err)
	}
	texts["ca.crt"] = CertificatesText([]*x509.Certificate{foreignCA(t, "weak", weakKey, nil, nil)})
	if a, _, err := AuthorityFromTexts(texts, AuthorityConfig{TrustDomain: testTD}); err != nil || len(a.Roots()) != 2 {
		t.Error(err)
	}
}

// TestMoreRootsThanNodesTake are refused by name, however they are spread over the texts.
func TestMoreRootsThanNodesTake(t *testing.T) {
	texts, err := NewAuthorityTexts(AuthorityConfig{TrustDomain: testTD})
	if err != nil {
		t.Fatal(err)
	}
	var others []*x509.Certificate
	key := newKey(t)
	for range MaxBundle {
		others = append(others, foreignCA(t, "other", key, nil, nil))
	}
	texts["ca.crt"], texts["roots.crt"] = CertificatesText(others[:20]), CertificatesText(others[15:MaxBundle-1])
	if a, _, err := AuthorityFromTexts(texts, AuthorityConfig{TrustDomain: testTD}); err != nil || len(a.Roots()) != MaxBundle {
		t.Errorf("as many as nodes take: %v", err)
	}
	texts["roots.crt"] = CertificatesText(others[15:])
	if _, _, err := AuthorityFromTexts(texts, AuthorityConfig{TrustDomain: testTD}); err == nil || !strings.Contains(err.Error(), "33 roots in tls.crt, ca.crt and roots.crt together") {
		t.Errorf("one more: %v", err)
	}
}
