package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

var (
	testTD   = spiffeid.RequireTrustDomainFromString("mesh.test")
	shopWeb  = spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/web")
	shopDB   = spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/db")
	foreigns = spiffeid.RequireFromString("spiffe://other.test/ns/shop/sa/web")
)

func newTestAuthority(t testing.TB, change ...func(*AuthorityConfig)) *Authority {
	t.Helper()
	cfg := AuthorityConfig{TrustDomain: testTD}
	for _, c := range change {
		c(&cfg)
	}
	a, err := NewAuthority(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newTestCSR(t testing.TB, key crypto.Signer, id spiffeid.ID) []byte {
	t.Helper()
	csr, err := NewCSR(key, id)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func TestLeafIsAnSVID(t *testing.T) {
	a := newTestAuthority(t)
	key := newKey(t)
	chain, err := a.SignCSR(newTestCSR(t, key, shopWeb), shopWeb, 0)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	switch {
	case len(chain) != 1:
		t.Errorf("chain has %d certificates: the root does not belong in it", len(chain))
	case !key.PublicKey.Equal(leaf.PublicKey):
		t.Error("leaf is for another key")
	case leaf.IsCA || !leaf.BasicConstraintsValid:
		t.Error("leaf's basic constraints do not say that it is no CA")
	case leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		t.Errorf("key usage is %b", leaf.KeyUsage)
	case len(leaf.ExtKeyUsage) != 2:
		t.Errorf("extended key usages are %v", leaf.ExtKeyUsage)
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != shopWeb.String():
		t.Errorf("URI names are %v", leaf.URIs)
	case leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() < 64:
		t.Errorf("serial is %v", leaf.SerialNumber)
	case leaf.SignatureAlgorithm != x509.ECDSAWithSHA256:
		t.Errorf("signed with %v", leaf.SignatureAlgorithm)
	}
	for _, e := range leaf.Extensions {
		if e.Id.String() == "2.5.29.17" && !e.Critical {
			t.Error("the only name is not critical, and the subject is empty")
		}
	}
	if got := time.Until(leaf.NotAfter); got > 24*time.Hour || got < 24*time.Hour-time.Minute {
		t.Errorf("valid for %v from now", got)
	}
	if id, _, err := x509svid.Verify(chain, a.Bundle()); err != nil || id != shopWeb {
		t.Errorf("go-spiffe says %v, %v", id, err)
	}
}

func TestRootIsASigningCertificate(t *testing.T) {
	a := newTestAuthority(t)
	root := a.Root()
	switch {
	case !root.IsCA || root.MaxPathLen != 1:
		t.Errorf("CA %v, path length %d", root.IsCA, root.MaxPathLen)
	case root.KeyUsage != x509.KeyUsageCertSign:
		t.Errorf("key usage is %b", root.KeyUsage)
	case len(root.URIs) != 1 || root.URIs[0].String() != "spiffe://mesh.test":
		t.Errorf("URI names are %v", root.URIs)
	case !bytes.Equal(root.RawIssuer, root.RawSubject):
		t.Error("not self-issued")
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		t.Error(err)
	}
}

func TestNothingButTheKeyIsTakenFromTheRequest(t *testing.T) {
	a := newTestAuthority(t)
	other, _ := url.Parse("spiffe://mesh.test/operator")
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "root"}, URIs: []*url.URL{other, shopDB.URL()}, DNSNames: []string{"evil.test"},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}},
	}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.SignCSR(csr, shopWeb, 0)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != shopWeb.String() || len(leaf.DNSNames) > 0 || leaf.IsCA || leaf.Subject.CommonName != "" {
		t.Errorf("leaf took over what the request asked for: %v %v %v", leaf.URIs, leaf.DNSNames, leaf.Subject)
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	a := newTestAuthority(t)
	key := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := newTestCSR(t, key(elliptic.P256()), shopWeb)
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	for name, csr := range map[string][]byte{
		"empty":             nil,
		"garbage":           []byte("-----BEGIN CERTIFICATE REQUEST-----"),
		"trailing bytes":    append(bytes.Clone(good), 0),
		"too large":         append(bytes.Clone(good), make([]byte, MaxCSRBytes)...),
		"another signature": forged,
		"P-224":             newTestCSR(t, key(elliptic.P224()), shopWeb),
		"P-521":             newTestCSR(t, key(elliptic.P521()), shopWeb),
		"RSA":               newTestCSR(t, rsaKey, shopWeb),
		"Ed25519":           newTestCSR(t, edKey, shopWeb),
	} {
		if _, err := a.SignCSR(csr, shopWeb, 0); !errors.Is(err, ErrBadCSR) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, csr := range map[string][]byte{"P-256": good, "P-384": newTestCSR(t, key(elliptic.P384()), shopWeb)} {
		if _, err := a.SignCSR(csr, shopWeb, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestForeignIdentitiesAreNotSigned(t *testing.T) {
	a := newTestAuthority(t)
	csr := newTestCSR(t, newKey(t), foreigns)
	for _, id := range []spiffeid.ID{foreigns, testTD.ID(), {}} {
		if _, err := a.SignCSR(csr, id, 0); err == nil {
			t.Errorf("signed for %q", id)
		}
	}
}

func TestValidityEndsWithTheRoot(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	a := newTestAuthority(t, func(c *AuthorityConfig) { c.RootTTL = time.Hour; c.Now = clock })
	csr := newTestCSR(t, newKey(t), shopWeb)
	chain, err := a.SignCSR(csr, shopWeb, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !chain[0].NotAfter.Equal(a.Root().NotAfter) {
		t.Errorf("leaf ends %v, root %v", chain[0].NotAfter, a.Root().NotAfter)
	}
	now = now.Add(time.Hour - time.Second)
	if _, err := a.SignCSR(csr, shopWeb, 0); err == nil || !strings.Contains(err.Error(), "root certificate ends") {
		t.Errorf("at the root's end: %v", err)
	}
}

// TestSkewDoesNoHarm: an operator and a verifier whose clocks are wrong by 10
// minutes, in any directions, agree on a fresh certificate.
func TestSkewDoesNoHarm(t *testing.T) {
	skews := []time.Duration{-10 * time.Minute, 0, 10 * time.Minute}
	for _, issuer := range skews {
		a := newTestAuthority(t, func(c *AuthorityConfig) { c.Now = func() time.Time { return time.Now().Add(issuer) } })
		chain, err := a.SignCSR(newTestCSR(t, newKey(t), shopWeb), shopWeb, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for _, verifier := range skews {
			if _, _, err := x509svid.Verify(chain, a.Bundle(), x509svid.WithTime(time.Now().Add(verifier))); err != nil {
				t.Errorf("issuer %v, verifier %v: %v", issuer, verifier, err)
			}
		}
	}
}

func TestAuthorityIsLoadedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	cfg := AuthorityConfig{TrustDomain: testTD}
	roots := make([]*x509.Certificate, 16)
	keys := make([]string, len(roots))
	var wg sync.WaitGroup
	for i := range roots {
		wg.Go(func() {
			a, err := OpenAuthority(dir, cfg)
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = a.Root()
			k, err := OpenConfigurationKey(dir)
			if err != nil {
				t.Error(err)
			}
			keys[i] = string(k)
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i := range roots {
		if !roots[i].Equal(roots[0]) || keys[i] != keys[0] {
			t.Fatal("operators that began together have different roots or keys")
		}
	}
	info, err := os.Stat(filepath.Join(dir, rootKeyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
}

func TestDamagedAuthorityIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(dir string) error
		want   string
	}{
		"key readable by others": {func(dir string) error { return os.Chmod(filepath.Join(dir, rootKeyFile), 0o644) }, "lets others in"},
		"key corrupt":            {func(dir string) error { return os.WriteFile(filepath.Join(dir, rootKeyFile), []byte("x"), 0o600) }, "PEM"},
		"certificate corrupt":    {func(dir string) error { return os.WriteFile(filepath.Join(dir, rootCertFile), []byte("x"), 0o600) }, "PEM"},
		"key of another root":    {func(dir string) error { return os.Remove(filepath.Join(dir, rootKeyFile)) }, "none of the root"},
		"bundle corrupt":         {func(dir string) error { return os.WriteFile(filepath.Join(dir, bundleFile), []byte("x"), 0o600) }, "PEM"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := OpenAuthority(dir, AuthorityConfig{TrustDomain: testTD}); err != nil {
				t.Fatal(err)
			}
			if err := c.damage(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenAuthority(dir, AuthorityConfig{TrustDomain: testTD}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	dir := t.TempDir()
	if _, err := OpenAuthority(dir, AuthorityConfig{TrustDomain: foreigns.TrustDomain()}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(dir, AuthorityConfig{TrustDomain: testTD}); err == nil || !strings.Contains(err.Error(), "spiffe://other.test") {
		t.Errorf("authority of another trust domain: %v", err)
	}
}

func TestOwnCertificateRenewsItself(t *testing.T) {
	now := time.Now()
	a := newTestAuthority(t, func(c *AuthorityConfig) { c.Now = func() time.Time { return now } })
	own := a.Own(OperatorID(testTD))
	first, err := own()
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Certificate) != 2 || !bytes.Equal(first.Certificate[1], a.Root().Raw) {
		t.Error("chain does not end with the root, which joining nodes need")
	}
	now = now.Add(10 * time.Hour)
	if again, err := own(); err != nil || again != first {
		t.Errorf("renewed before half life (%v)", err)
	}
	now = now.Add(4 * time.Hour)
	if again, err := own(); err != nil || again == first {
		t.Errorf("not renewed after half life (%v)", err)
	}
}

func TestNodeNames(t *testing.T) {
	for _, bad := range []string{"", ".", "..", "a/b", "a b", "ü", strings.Repeat("n", MaxNodeName+1)} {
		if id, err := NodeID(testTD, bad); err == nil {
			t.Errorf("%q became %s", bad, id)
		}
	}
	id, err := NodeID(testTD, "n-1.example")
	if name, ok := NodeName(id); err != nil || !ok || name != "n-1.example" {
		t.Errorf("%v, %q, %v", err, name, ok)
	}
	for _, s := range []string{"spiffe://mesh.test/operator", "spiffe://mesh.test/node", "spiffe://mesh.test/node/a/b", "spiffe://mesh.test/ns/node/sa/x"} {
		if name, ok := NodeName(spiffeid.RequireFromString(s)); ok {
			t.Errorf("%s is node %q", s, name)
		}
	}
	if IsWorkloadID(testTD, foreigns) || !IsWorkloadID(testTD, shopWeb) || IsWorkloadID(testTD, OperatorID(testTD)) {
		t.Error("IsWorkloadID")
	}
}

func FuzzParseCSR(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(newTestCSR(f, key, shopWeb))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		k, err := ParseCSR(der)
		if (err == nil) == (k == nil) {
			t.Errorf("key %v, error %v", k, err)
		}
		if err != nil && !errors.Is(err, ErrBadCSR) {
			t.Errorf("%v does not match ErrBadCSR", err)
		}
	})
}

func BenchmarkSignCSR(b *testing.B) {
	a := newTestAuthority(b)
	csr := newTestCSR(b, newKey(b), shopWeb)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.SignCSR(csr, shopWeb, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
}
