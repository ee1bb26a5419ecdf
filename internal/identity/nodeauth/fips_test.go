package nodeauth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/approved"
	"github.com/heddle-mesh/heddle/internal/identity"
)

// TestWeakKeysInFIPSMode: chains with RSA of 1024 bits prove nothing in FIPS 140-3
// mode, neither to the operator nor to a peer, and do outside of it.
func TestWeakKeysInFIPSMode(t *testing.T) {
	if os.Getenv("TEST_WEAK_KEYS") == "" {
		for _, mode := range []string{"off", "on"} {
			again := exec.Command("/proc/self/exe", "-test.run=^TestWeakKeysInFIPSMode$", "-test.v")
			again.Env = append(os.Environ(), "GODEBUG=rsa1024min=0,fips140="+mode, "TEST_WEAK_KEYS="+mode)
			if out, err := again.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS: TestWeakKeysInFIPSMode")) {
				t.Errorf("%s: %v\n%s", mode, err, out)
			}
		}
		return
	}
	if fips140.Enabled() != (os.Getenv("TEST_WEAK_KEYS") == "on") {
		t.Fatal("the process is in another mode")
	}
	strong, weak := ecKey(t), rsaKey(t)
	strongRoot, weakRoot := certificate(t, true, strong, nil, nil), certificate(t, true, weak, nil, nil)
	below := ecKey(t)
	underWeak := certificate(t, true, below, weakRoot, weak)
	for name, c := range map[string]struct {
		root  *x509.Certificate
		chain []*x509.Certificate
		good  bool
	}{
		"all strong":                    {strongRoot, []*x509.Certificate{certificate(t, false, ecKey(t), strongRoot, strong)}, true},
		"a weak leaf":                   {strongRoot, []*x509.Certificate{certificate(t, false, weak, strongRoot, strong)}, false},
		"a weak root, an intermediate":  {weakRoot, []*x509.Certificate{certificate(t, false, ecKey(t), underWeak, below), underWeak}, false},
		"the intermediate as the trust": {underWeak, []*x509.Certificate{certificate(t, false, ecKey(t), underWeak, below)}, true},
	} {
		good := c.good || !fips140.Enabled()
		bundle := x509bundle.FromX509Authorities(td, []*x509.Certificate{c.root})
		v := verifier{bundles: bundle, usage: x509.ExtKeyUsageClientAuth}
		if err := v.verify(tls.ConnectionState{PeerCertificates: c.chain}); (err == nil) != good || err != nil && !errors.Is(err, approved.ErrChains) {
			t.Errorf("%s: to the operator: %v", name, err)
		}
		if _, err := hbone.VerifyPeer(c.chain, bundle, time.Now()); (err == nil) != good || err != nil && !(errors.Is(err, approved.ErrChains) && errors.Is(err, hbone.ErrCertificateUntrusted)) {
			t.Errorf("%s: to a peer: %v", name, err)
		}
	}
}

func ecKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// certificate is a CA's, or the operator's; a nil issuer has it sign itself.
func certificate(t *testing.T, ca bool, key crypto.Signer, issuer *x509.Certificate, by crypto.Signer) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true}
	if template.KeyUsage = x509.KeyUsageCertSign; ca {
		template.Subject = pkix.Name{CommonName: "CA", SerialNumber: serial.String()}
	} else {
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		template.URIs = []*url.URL{identity.OperatorID(td).URL()}
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
