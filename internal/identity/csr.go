package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/url"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ParseCSR returns the public key of a PKCS #10 request in DER, after verifying
// that whoever made the request holds the private one. It accepts ECDSA keys on
// P-256 and P-384 and refuses everything else with an error that matches
// ErrBadCSR.
func ParseCSR(der []byte) (*ecdsa.PublicKey, error) {
	if len(der) > MaxCSRBytes {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrBadCSR, len(der), MaxCSRBytes)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadCSR, err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: key is %s, ECDSA is needed", ErrBadCSR, csr.PublicKeyAlgorithm)
	}
	if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
		return nil, fmt.Errorf("%w: curve %s, P-256 or P-384 is needed", ErrBadCSR, key.Curve.Params().Name)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadCSR, err)
	}
	return key, nil
}

// NewCSR makes a PKCS #10 request for id, in DER, signed by key.
func NewCSR(key crypto.Signer, id spiffeid.ID) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
	if err != nil {
		return nil, fmt.Errorf("make signing request for %s: %w", id, err)
	}
	return der, nil
}
