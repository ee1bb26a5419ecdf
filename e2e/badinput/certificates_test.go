package badinput

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/local"
)

// authority signs whatever it is told to.
type authority struct {
	root *x509.Certificate
	key  crypto.Signer
}

// meshAuthority is the running mesh's own, as whoever stole its key has it.
func meshAuthority(t *testing.T) authority {
	t.Helper()
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(local.DefaultStateDir, meshName, "operator", "ca", name))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		if block == nil {
			t.Fatalf("%s is not PEM", name)
		}
		return block.Bytes
	}
	root, err := x509.ParseCertificate(read("tls.crt"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(read("tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	return authority{root, key.(crypto.Signer)}
}

// foreignAuthority is one that nobody knows. Its root looks like the mesh's.
func foreignAuthority(t *testing.T, like *x509.Certificate) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: like.SerialNumber, Subject: like.Subject, SubjectKeyId: like.SubjectKeyId, URIs: like.URIs,
		NotBefore: like.NotBefore, NotAfter: like.NotAfter, IsCA: true, BasicConstraintsValid: true, KeyUsage: like.KeyUsage,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{root, key}
}

// issue signs a leaf with the given URI names; each change bends it before.
func (a authority) issue(t *testing.T, uris []string, changes ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, text := range uris {
		uri, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, uri)
	}
	for _, change := range changes {
		change(template)
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func valid(from, until time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(until) }
}

func isAuthority(c *x509.Certificate) {
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
}

// spiffe is the identity of a service account.
func spiffe(trustDomain, account string) string {
	return "spiffe://" + trustDomain + "/ns/shop/sa/" + account
}
