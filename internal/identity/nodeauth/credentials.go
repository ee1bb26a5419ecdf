package nodeauth

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"

	"github.com/heddle-mesh/heddle/internal/hbone/approved"
	"github.com/heddle-mesh/heddle/internal/hbone/skew"
	"github.com/heddle-mesh/heddle/internal/identity"
)

// NewServerCredentials returns the operator's side of mutual TLS: TLS 1.3, a
// client certificate is optional, because a node that joins has none, but one
// that is presented must be a valid SVID of bundles. Who may call what without
// one is for ServerOptions. A connection ends when its client's SVID does.
func NewServerCredentials(own identity.CertificateFunc, bundles x509bundle.Source) credentials.TransportCredentials {
	v := verifier{bundles: bundles, usage: x509.ExtKeyUsageClientAuth}
	return newCredentials(&tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return own()
		},
		// The chain is verified below, by SPIFFE's rules.
		ClientAuth:       tls.RequestClientCert,
		VerifyConnection: v.verifyOptional,
		// Resumption would skip nothing here (VerifyConnection runs in any
		// case), but a ticket would outlive what it was given for.
		SessionTicketsDisabled: true,
	})
}

// NewClientCredentials returns a node's side: it presents own and accepts only
// the given server identity, verified by bundles.
func NewClientCredentials(own identity.CertificateFunc, bundles x509bundle.Source, server spiffeid.ID) credentials.TransportCredentials {
	v := verifier{bundles: bundles, usage: x509.ExtKeyUsageServerAuth, expect: server}
	return newCredentials(&tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return own()
		},
		// Names and roots of crypto/tls do not apply to SVIDs; verify does.
		InsecureSkipVerify: true,
		VerifyConnection:   v.verify,
	})
}

// NewPinnedCredentials are those of whoever joins by a token: it has no certificate
// and knows nothing but the hash of a root. The server must present that root,
// a chain to it, and the expected identity; refused is told why it was not.
func NewPinnedCredentials(pin [sha256.Size]byte, server spiffeid.ID, refused func(error)) credentials.TransportCredentials {
	verify := func(state tls.ConnectionState) error {
		root := findPinned(state.PeerCertificates, pin)
		if root == nil {
			return fmt.Errorf("server presents no root with SHA-256 %x, which the join token pins", pin)
		}
		v := verifier{
			bundles: x509bundle.FromX509Authorities(server.TrustDomain(), []*x509.Certificate{root}),
			usage:   x509.ExtKeyUsageServerAuth,
			expect:  server,
		}
		return v.verify(state)
	}
	return newCredentials(&tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // as above
		VerifyConnection: func(state tls.ConnectionState) error {
			err := verify(state)
			if err != nil {
				refused(err)
			}
			return err
		},
	})
}

func findPinned(certs []*x509.Certificate, pin [sha256.Size]byte) *x509.Certificate {
	for _, cert := range certs {
		if sha256.Sum256(cert.Raw) == pin {
			return cert
		}
	}
	return nil
}

// verifier verifies the other end's SVID.
type verifier struct {
	bundles x509bundle.Source
	usage   x509.ExtKeyUsage
	expect  spiffeid.ID // zero: any
}

func (v verifier) verifyOptional(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	return v.verify(state)
}

func (v verifier) verify(state tls.ConnectionState) error {
	certs := state.PeerCertificates
	if len(certs) > identity.MaxChain {
		return fmt.Errorf("chain of %d certificates, the limit is %d", len(certs), identity.MaxChain)
	}
	// Verify checks chain, validity, exactly one URI name, and that it is no
	// CA's; X509-SVID section 4.4 leaves the extended key usage to us.
	id, verified, err := x509svid.Verify(certs, v.bundles, x509svid.WithTime(skew.Moment(certs[0], time.Now())))
	if err != nil {
		return err
	}
	if err := approved.Chains(verified); err != nil {
		return fmt.Errorf("certificate of %s: %w", id, err)
	}
	if !slices.Contains(certs[0].ExtKeyUsage, v.usage) {
		return fmt.Errorf("certificate of %s is not for this end of TLS", id)
	}
	if !v.expect.IsZero() && id != v.expect {
		return fmt.Errorf("other end is %s, not %s", id, v.expect)
	}
	return nil
}

// PeerInfo is the credentials.AuthInfo of a verified connection. Only this
// package makes one with a peer in it.
type PeerInfo struct {
	credentials.TLSInfo
	peer     spiffeid.ID // zero: the other end presented nothing
	notAfter time.Time
	end      func() error // closes the connection; nil where peer is zero
}

// Peer returns the other end's identity; zero when it presented none.
func (p PeerInfo) Peer() spiffeid.ID { return p.peer }

// NotAfter returns the end of the other end's SVID; zero when there is none.
func (p PeerInfo) NotAfter() time.Time { return p.notAfter }

// spiffeCredentials put the verified identity into the AuthInfo, and end every
// connection at the NotAfter of the other end's SVID.
type spiffeCredentials struct {
	credentials.TransportCredentials
}

func newCredentials(cfg *tls.Config) credentials.TransportCredentials {
	return spiffeCredentials{credentials.NewTLS(cfg)}
}

// ServerHandshake implements credentials.TransportCredentials.
func (c spiffeCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	return describe(conn, info, err)
}

// ClientHandshake implements credentials.TransportCredentials.
func (c spiffeCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	return describe(conn, info, err)
}

// Clone implements credentials.TransportCredentials.
func (c spiffeCredentials) Clone() credentials.TransportCredentials {
	return spiffeCredentials{c.TransportCredentials.Clone()}
}

func describe(conn net.Conn, info credentials.AuthInfo, err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil {
		return nil, nil, err
	}
	t, ok := info.(credentials.TLSInfo)
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("TLS credentials describe themselves as %T", info), conn.Close())
	}
	p := PeerInfo{TLSInfo: t}
	if len(t.State.PeerCertificates) == 0 {
		return conn, p, nil
	}
	leaf := t.State.PeerCertificates[0]
	if p.peer, err = x509svid.IDFromCert(leaf); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	p.notAfter = leaf.NotAfter
	ending := endAt(conn, leaf.NotAfter)
	p.end = ending.Close
	return ending, p, nil
}

// endingConn is closed when its time has come.
type endingConn struct {
	net.Conn
	timer *time.Timer
	close func() error
}

func endAt(conn net.Conn, end time.Time) net.Conn {
	closeOnce := sync.OnceValue(conn.Close)
	return &endingConn{
		Conn:  conn,
		close: closeOnce,
		// The reader and the writer see the error; nobody waits for this one.
		timer: time.AfterFunc(time.Until(end), func() { _ = closeOnce() }),
	}
}

// Close implements net.Conn.
func (c *endingConn) Close() error {
	c.timer.Stop()
	return c.close()
}
