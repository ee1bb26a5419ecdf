package keystore

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	maxEntryBytes = 64 << 10
	maxChain      = 8

	keyBlock         = "PRIVATE KEY"
	certificateBlock = "CERTIFICATE"
	receivedHeader   = "Received"
)

// Entry is one identity's private key and SVID. It must not be changed once it
// is stored or loaded.
type Entry struct {
	ID spiffeid.ID
	// Key is the private key of Chain's leaf.
	Key *ecdsa.PrivateKey
	// Chain is the leaf and its intermediates, without the root.
	Chain []*x509.Certificate
	// Received is when the SVID arrived, by this machine's clock: its life is
	// counted from here, because NotBefore lies in the past.
	Received time.Time
}

// TLS returns the entry as crypto/tls takes it, with Leaf set.
func (e Entry) TLS() *tls.Certificate {
	c := &tls.Certificate{PrivateKey: e.Key, Leaf: e.Chain[0]}
	for _, cert := range e.Chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

// fileName names an identity's file: SPIFFE IDs may be longer than file names.
func fileName(id spiffeid.ID) string {
	sum := sha256.Sum256([]byte(id.String()))
	return hex.EncodeToString(sum[:]) + entrySuffix
}

func (e Entry) encode() ([]byte, error) {
	if len(e.Chain) == 0 || e.Key == nil {
		return nil, errors.New("entry without key or certificate")
	}
	der, err := x509.MarshalPKCS8PrivateKey(e.Key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	headers := map[string]string{receivedHeader: e.Received.UTC().Format(time.RFC3339)}
	if err := pem.Encode(&b, &pem.Block{Type: keyBlock, Headers: headers, Bytes: der}); err != nil {
		return nil, err
	}
	for _, cert := range e.Chain {
		if err := pem.Encode(&b, &pem.Block{Type: certificateBlock, Bytes: cert.Raw}); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// parseEntry is the inverse of encode. It checks everything that can be checked
// without a trust bundle: that the key is the leaf's and that the leaf names
// exactly one identity.
func parseEntry(text []byte) (Entry, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != keyBlock {
		return Entry{}, errors.New("does not begin with a private key")
	}
	received, err := time.Parse(time.RFC3339, block.Headers[receivedHeader])
	if err != nil {
		return Entry{}, fmt.Errorf("header %s: %w", receivedHeader, err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Entry{}, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return Entry{}, fmt.Errorf("key is %T, ECDSA is needed", parsed)
	}
	chain, err := ParseCertificates(rest, maxChain)
	if err != nil {
		return Entry{}, err
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return Entry{}, errors.New("private key is not the certificate's")
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return Entry{}, err
	}
	return Entry{ID: id, Key: key, Chain: chain, Received: received}, nil
}

// ParseCertificates reads PEM certificates, at least one and at most limit, and
// nothing else.
func ParseCertificates(text []byte, limit int) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != certificateBlock {
			return nil, errors.New("has something other than PEM certificates")
		}
		if len(certs) == limit {
			return nil, fmt.Errorf("more than %d certificates", limit)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return certs, nil
}

// maxDER bounds a certificate that came over the wire, in bytes.
const maxDER = 16 << 10

// ParseDER reads one certificate that came over the wire.
func ParseDER(der []byte) (*x509.Certificate, error) {
	if len(der) > maxDER {
		return nil, fmt.Errorf("certificate of %d bytes, the limit is %d", len(der), maxDER)
	}
	return x509.ParseCertificate(der)
}
