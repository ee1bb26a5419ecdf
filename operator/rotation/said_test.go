package rotation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// below makes a CA's certificate, of its own key or below another one.
func below(t *testing.T, serial int64, by *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint("ca ", serial)}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true}
	if by == nil {
		by, key = template, own
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, own.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, own
}

// TestWhatIsSaidOfEach: remedies go by whether a certificate signs, is the root of what
// does, or is a further one; and what is between the two may end, too.
func TestWhatIsSaidOfEach(t *testing.T) {
	root, rootKey := below(t, 1, nil, nil)
	middle, middleKey := below(t, 2, root, rootKey)
	signer, signerKey := below(t, 3, middle, middleKey)
	further, _ := below(t, 4, nil, nil)
	old, _ := below(t, 5, nil, nil)
	der, err := x509.MarshalPKCS8PrivateKey(signerKey)
	if err != nil {
		t.Fatal(err)
	}
	texts := begun(t).texts
	texts["tls.crt"], texts["tls.key"] = identity.CertificatesText([]*x509.Certificate{signer, middle}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	texts["ca.crt"], texts["roots.crt"] = identity.CertificatesText([]*x509.Certificate{old, root}), identity.CertificatesText([]*x509.Certificate{further})
	var said []string
	for _, c := range parse(t, texts).Said() {
		said = append(said, fmt.Sprintf("%s %s signs=%t anchors=%t further=%t", c.GetKind(), c.GetSerial(), c.GetSigns(), c.GetAnchors(), c.GetFurther()))
	}
	if want := []string{
		"intermediate 3 signs=true anchors=false further=false",
		"intermediate 2 signs=false anchors=false further=false",
		"root 1 signs=false anchors=true further=false",
		"root 5 signs=false anchors=false further=false",
		"root 4 signs=false anchors=false further=true",
	}; !slices.Equal(said, want) {
		t.Errorf("%q", said)
	}
}
