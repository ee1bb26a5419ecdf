package cakey_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/identity/cakey"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// TestForms: each form that OpenSSL, cert-manager and others write a key in.
func TestForms(t *testing.T) {
	p256 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p384 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	large := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	bytes := must[[]byte](t)
	sec1 := block("EC PRIVATE KEY", bytes(x509.MarshalECPrivateKey(p384)))
	for name, c := range map[string]struct {
		text []byte
		key  crypto.Signer
	}{
		"PKCS #8, ECDSA":           {block("PRIVATE KEY", bytes(x509.MarshalPKCS8PrivateKey(p256))), p256},
		"PKCS #8, RSA":             {block("PRIVATE KEY", bytes(x509.MarshalPKCS8PrivateKey(large))), large},
		"PKCS #1":                  {append(block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(large)), '\n'), large},
		"SEC 1":                    {sec1, p384},
		"SEC 1, behind parameters": {append(block("EC PARAMETERS", []byte{6, 5, 43, 129, 4, 0, 34}), sec1...), p384},
	} {
		key, err := cakey.Parse("tls.key", c.text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		signer, err := cakey.Signer("tls.key", key)
		if err != nil || !cakey.Belongs(signer, c.key.Public()) || cakey.Belongs(signer, ed25519.PublicKey{}) {
			t.Errorf("%s: %T, %v", name, signer, err)
		}
	}
}

func TestRefused(t *testing.T) {
	p224 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	p256 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	bytes := must[[]byte](t)
	good := block("PRIVATE KEY", bytes(x509.MarshalPKCS8PrivateKey(p256)))
	for name, c := range map[string]struct {
		text []byte
		says string
	}{
		"nothing":         {nil, "not one private key"},
		"two":             {append(append([]byte{}, good...), good...), "not one private key"},
		"a certificate":   {block("CERTIFICATE", []byte{1}), `"CERTIFICATE" is not a private key`},
		"encrypted":       {block("ENCRYPTED PRIVATE KEY", []byte{1}), "openssl pkey"},
		"encrypted, old":  {pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"DEK-Info": "AES-256-CBC,00"}, Bytes: []byte{1}}), "openssl pkey"},
		"not DER":         {block("PRIVATE KEY", []byte{1}), "tls.key: "},
		"too much":        {make([]byte, cakey.MaxText+1), "more than"},
		"P-224":           {block("PRIVATE KEY", bytes(x509.MarshalPKCS8PrivateKey(p224))), "ECDSA with P-224 is not taken; remedy"},
		"Ed25519":         {block("PRIVATE KEY", bytes(x509.MarshalPKCS8PrivateKey(ed))), "ed25519.PrivateKey is not taken; remedy"},
		"another's label": {block("EC PRIVATE KEY", bytes(x509.MarshalPKCS8PrivateKey(p256))), "tls.key: "},
	} {
		key, err := cakey.Parse("tls.key", c.text)
		if err == nil {
			_, err = cakey.Signer("tls.key", key)
		}
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "tls.key: ") {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	if small, err := rsa.GenerateKey(rand.Reader, 1024); err != nil {
		t.Error(err)
	} else if _, err := cakey.Signer("tls.key", small); err == nil || !strings.Contains(err.Error(), "RSA of 1024 bits") {
		t.Errorf("RSA of 1024 bits: %v", err)
	}
}

// TestPublic: those of other certificates of a chain are judged as the key itself is.
func TestPublic(t *testing.T) {
	bits := func(n uint) any { return &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), n-1), E: 65537} }
	for name, c := range map[string]struct {
		key  any
		says string // "" when it is taken
	}{
		"P-256":       {&ecdsa.PublicKey{Curve: elliptic.P256()}, ""},
		"P-521":       {&ecdsa.PublicKey{Curve: elliptic.P521()}, ""},
		"P-224":       {&ecdsa.PublicKey{Curve: elliptic.P224()}, "ECDSA with P-224 is not taken; remedy"},
		"RSA of 2047": {bits(2047), "RSA of 2047 bits is not taken"},
		"RSA of 2048": {bits(2048), ""},
		"RSA of 8192": {bits(8192), ""},
		"RSA of 8193": {bits(8193), "RSA of 8193 bits is not taken"},
		"Ed25519":     {ed25519.PublicKey{}, "ed25519.PublicKey is not taken; remedy"},
		"none":        {nil, "is not taken"},
	} {
		if err := cakey.Public(c.key); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

// FuzzParse: whatever is parsed is a key that Signer judges, or an error.
func FuzzParse(f *testing.F) {
	key := must[*ecdsa.PrivateKey](f)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	f.Add(block("EC PRIVATE KEY", must[[]byte](f)(x509.MarshalECPrivateKey(key))))
	f.Add(block("RSA PRIVATE KEY", []byte{0x30, 0}))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := cakey.Parse("k", text)
		if (key == nil) == (err == nil) {
			t.Errorf("neither or both: %v, %v", key, err)
		}
		if signer, err := cakey.Signer("k", key); err == nil && !cakey.Belongs(signer, signer.Public()) {
			t.Error("a key that is not its own")
		}
	})
}
