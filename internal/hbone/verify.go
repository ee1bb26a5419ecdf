package hbone

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/heddle-mesh/heddle/internal/hbone/approved"
	"github.com/heddle-mesh/heddle/internal/hbone/skew"
)

// Fingerprint is the SHA-256 of a certificate's leaf, as Key.Leaf and
// Match.LeafFingerprint hold it; zero when there is no leaf.
func Fingerprint(cert *tls.Certificate) [32]byte {
	if cert == nil || len(cert.Certificate) == 0 {
		return [32]byte{}
	}
	return sha256.Sum256(cert.Certificate[0])
}

// VerifyPeer says which identity a chain of certificates, leaf first, proves at
// the given moment, or in one of a clock that is ahead (skew.Moment): the leaf is an X.509-SVID with exactly one URI name and
// chains to the bundle of its trust domain, in FIPS 140-3 mode by approved keys. The error matches one of
// ErrCertificateInvalid, ErrCertificateExpired and ErrCertificateUntrusted.
func VerifyPeer(chain []*x509.Certificate, bundles x509bundle.Source, now time.Time) (spiffeid.ID, error) {
	if len(chain) == 0 {
		return spiffeid.ID{}, fmt.Errorf("%w: none presented", ErrCertificateInvalid)
	}
	if _, err := x509svid.IDFromCert(chain[0]); err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %w", ErrCertificateInvalid, err)
	}
	id, verified, err := x509svid.Verify(chain, bundles, x509svid.WithTime(skew.Moment(chain[0], now)))
	if err == nil {
		err = approved.Chains(verified)
	}
	switch invalid := (x509.CertificateInvalidError{}); {
	case err == nil && id.Path() == "":
		return spiffeid.ID{}, fmt.Errorf("%w: %s has no path (X509-SVID section 4.1)", ErrCertificateInvalid, id)
	case err == nil:
		return id, nil
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return spiffeid.ID{}, fmt.Errorf("%w: %s: %w", ErrCertificateExpired, id, err)
	case mayNotBeLeaf(chain[0]):
		return spiffeid.ID{}, fmt.Errorf("%w: %w", ErrCertificateInvalid, err)
	default:
		return spiffeid.ID{}, fmt.Errorf("%w: %s: %w", ErrCertificateUntrusted, id, err)
	}
}

// mayNotBeLeaf says whether the certificate carries what the X509-SVID
// specification forbids in a leaf (sections 4.1 and 4.3).
func mayNotBeLeaf(c *x509.Certificate) bool {
	return c.IsCA || c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0
}

// baseTLS is what both ends of a tunnel agree on: TLS 1.3 only, ALPN h2, no
// resumption, because it would skip fresh verification. Key exchanges and
// cipher suites are crypto/tls's own choice, post-quantum ones and AES-GCM
// first where the hardware has it. Records have their full size from the first
// on: the tunnel's flows are not web pages.
func baseTLS(cert *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, MaxVersion: tls.VersionTLS13,
		NextProtos:                  []string{"h2"},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
		Certificates:                []tls.Certificate{*cert},
	}
}

// ClientTLS proves cert and expects the identity want. There is no SNI: the
// destination is named by the CONNECT's authority.
func ClientTLS(cert *tls.Certificate, bundles x509bundle.Source, want spiffeid.ID) *tls.Config {
	cfg := baseTLS(cert)
	cfg.InsecureSkipVerify = true // VerifyConnection does it, to SPIFFE's rules instead of the web's
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := verifyConnection(cs, bundles)
		if err == nil && id != want {
			err = fmt.Errorf("%w: expected %s, got %s", ErrPeerMismatch, want, id)
		}
		return err
	}
	return cfg
}

// ServerTLS proves cert and stores the identity that the client proves in peer.
func ServerTLS(cert *tls.Certificate, bundles x509bundle.Source, peer *spiffeid.ID) *tls.Config {
	cfg := baseTLS(cert)
	cfg.ClientAuth = tls.RequireAnyClientCert // the chain is VerifyConnection's to check
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := verifyConnection(cs, bundles)
		*peer = id
		return err
	}
	return cfg
}

func verifyConnection(cs tls.ConnectionState, bundles x509bundle.Source) (spiffeid.ID, error) {
	if cs.NegotiatedProtocol != "h2" {
		return spiffeid.ID{}, fmt.Errorf("%w: peer does not speak ALPN h2", ErrHandshake)
	}
	return VerifyPeer(cs.PeerCertificates, bundles, time.Now())
}

// noCertificate is in the error of crypto/tls for a client that presents no
// certificate, which has no type. To do without RequireAnyClientCert, so that
// VerifyConnection would see it, would tell the client the wrong alert.
const noCertificate = "tls: client didn't provide a certificate"

// HandshakeError classifies what tls.Conn.HandshakeContext returned.
func HandshakeError(err error) error {
	for _, known := range []error{ErrCertificateExpired, ErrCertificateUntrusted, ErrCertificateInvalid, ErrPeerMismatch, ErrHandshake, ErrTimeout, ErrRevoked, ErrDraining} {
		if errors.Is(err, known) {
			return err
		}
	}
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
		return fmt.Errorf("%w: handshake: %w", ErrTimeout, err)
	}
	if strings.Contains(err.Error(), noCertificate) {
		return fmt.Errorf("%w: %w", ErrCertificateInvalid, err)
	}
	return fmt.Errorf("%w: %w", ErrHandshake, err)
}

// NotAfter is the moment at which a connection between the two leaves ends: the
// earlier NotAfter.
func NotAfter(local, peer *x509.Certificate) time.Time {
	if local.NotAfter.Before(peer.NotAfter) {
		return local.NotAfter
	}
	return peer.NotAfter
}

// LeafOf returns the parsed leaf of a certificate that is to be presented.
func LeafOf(cert *tls.Certificate) (*x509.Certificate, error) {
	if cert == nil || len(cert.Certificate) == 0 {
		return nil, fmt.Errorf("%w: no local certificate", ErrHandshake)
	}
	if cert.Leaf != nil {
		return cert.Leaf, nil
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("%w: parse local certificate: %w", ErrHandshake, err)
	}
	return leaf, nil
}
