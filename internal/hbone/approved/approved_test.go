package approved_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone/approved"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestChains asks a process of each mode.
func TestChains(t *testing.T) {
	if os.Getenv("TEST_APPROVED") == "" {
		for _, mode := range []string{"off", "on", "only"} {
			again := exec.Command("/proc/self/exe", "-test.run=^TestChains$", "-test.v")
			again.Env = append(os.Environ(), "GODEBUG=fips140="+mode, "TEST_APPROVED="+mode)
			if out, err := again.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS: TestChains")) {
				t.Errorf("%s: %v\n%s", mode, err, out)
			}
		}
		return
	}
	if fips140.Enabled() != (os.Getenv("TEST_APPROVED") != "off") {
		t.Fatal("the process is in another mode")
	}
	of := func(public any) *x509.Certificate { return &x509.Certificate{PublicKey: public} }
	bits := func(n uint) *x509.Certificate {
		return of(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), n-1), E: 65537})
	}
	p256 := of(&ecdsa.PublicKey{Curve: elliptic.P256()})
	type chain = []*x509.Certificate
	for name, c := range map[string]struct {
		verified []chain
		good     bool
	}{
		"ECDSA":                     {[]chain{{p256, of(&ecdsa.PublicKey{Curve: elliptic.P384()}), of(&ecdsa.PublicKey{Curve: elliptic.P521()})}}, true},
		"RSA of 2048":               {[]chain{{p256, bits(2048)}}, true},
		"Ed25519":                   {[]chain{{p256, of(ed25519.PublicKey{})}}, true},
		"another chain is approved": {[]chain{{p256, bits(1024)}, {p256, bits(3072)}}, true},
		"a leaf with RSA of 1024":   {[]chain{{bits(1024), p256}}, false},
		"a root with RSA of 2047":   {[]chain{{p256, p256, bits(2047)}}, false},
		"P-224":                     {[]chain{{p256, of(&ecdsa.PublicKey{Curve: elliptic.P224()})}}, false},
		"none that is known":        {[]chain{{p256, of(nil)}}, false},
		"no chain":                  {nil, false},
		"an empty chain":            {[]chain{{}}, false},
	} {
		err := approved.Chains(c.verified)
		if want := c.good || !fips140.Enabled(); (err == nil) != want || err != nil && !errors.Is(err, approved.ErrChains) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
