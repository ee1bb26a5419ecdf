package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// CertificateFunc returns the certificate to present now; it is asked at every
// handshake, so that rotation needs no reconnecting.
type CertificateFunc func() (*tls.Certificate, error)

// Own returns the certificate of the program that holds the Authority, for
// NewServerCredentials: self-issued for id, in memory only, and issued anew
// when it is asked for past its half life. Unlike an agent's, its chain ends
// with the root, because a node that joins knows the root by its hash only. It
// is safe for concurrent use.
func (a *Authority) Own(id spiffeid.ID) CertificateFunc {
	var own struct {
		sync.Mutex
		cert    *tls.Certificate
		renewAt time.Time
	}
	return func() (*tls.Certificate, error) {
		own.Lock()
		defer own.Unlock()
		now := a.cfg.Now()
		if own.cert != nil && now.Before(own.renewAt) {
			return own.cert, nil
		}
		cert, err := a.issueOwn(id)
		if err != nil {
			if own.cert != nil && now.Before(own.cert.Leaf.NotAfter) {
				return own.cert, nil
			}
			return nil, err
		}
		own.cert, own.renewAt = cert, renewAt(now, cert.Leaf)
		return cert, nil
	}
}

func (a *Authority) issueOwn(id spiffeid.ID) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key of %s: %w", id, err)
	}
	chain, err := a.sign(key.Public(), id, 0)
	if err != nil {
		return nil, err
	}
	return keystore.Entry{ID: id, Key: key, Chain: append(chain, a.root)}.TLS(), nil
}
