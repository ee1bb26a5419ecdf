// Package partner is another trust domain for tests, of nothing that is this project's: a CA
// of crypto/x509, go-spiffe's TLS configuration, and net/http's HTTP/2 for HBONE's other end.
//
// What New returns is safe for concurrent use.
package partner

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Authority is a CA.
type Authority struct {
	TrustDomain spiffeid.TrustDomain
	root        *x509.Certificate
	key         *ecdsa.PrivateKey
	serial      atomic.Int64
}

// New makes a CA whose root ends so long from now; less than 0 is in the past.
func New(t testing.TB, trustDomain string, lasts time.Duration) *Authority {
	t.Helper()
	a := &Authority{TrustDomain: spiffeid.RequireTrustDomainFromString(trustDomain), key: newKey(t)}
	until := time.Now().Add(lasts)
	a.root = a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: trustDomain}, NotBefore: until.Add(-24 * time.Hour), NotAfter: until, URIs: []*url.URL{a.TrustDomain.ID().URL()},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, a.key)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *Authority) sign(t testing.TB, template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	parent := a.root
	if parent == nil {
		parent = template
	}
	template.SerialNumber = big.NewInt(a.serial.Add(1))
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// SVID signs a certificate for any identity, of another trust domain, too. It ends an hour
// from now, whenever the root does.
func (a *Authority) SVID(t testing.TB, id string) *x509svid.SVID {
	t.Helper()
	who, key := spiffeid.RequireFromString(id), newKey(t)
	leaf := a.sign(t, &x509.Certificate{
		URIs: []*url.URL{who.URL()}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, key)
	return &x509svid.SVID{ID: who, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}
}

// Bundle is the root as a bundle of its trust domain.
func (a *Authority) Bundle() *spiffebundle.Bundle {
	return spiffebundle.FromX509Authorities(a.TrustDomain, []*x509.Certificate{a.root})
}

// Refused is the port for which a Server answers 401.
const Refused = 4010

// Server echoes what streams of HBONE bring.
type Server struct {
	svid    atomic.Pointer[x509svid.SVID]
	heard   chan *http.Request
	streams atomic.Int64
	open    sync.Map // of net.Conn
}

// Serve has a server answer on l, until the test ends, whoever proves the identity client
// by believed. It has svid until Become gives it another.
func Serve(t testing.TB, l net.Listener, svid *x509svid.SVID, believed x509bundle.Source, client string) *Server {
	t.Helper()
	s := &Server{heard: make(chan *http.Request, 1024)}
	s.Become(svid)
	cfg := tlsconfig.MTLSServerConfig(s, believed, tlsconfig.AuthorizeID(spiffeid.RequireFromString(client)))
	cfg.MinVersion = tls.VersionTLS13
	server := &http.Server{Handler: s, TLSConfig: cfg, Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0), ConnState: s.track}
	server.Protocols.SetHTTP2(true)
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	return s
}

// Become gives new connections another SVID.
func (s *Server) Become(svid *x509svid.SVID) { s.svid.Store(svid) }

// track knows the connections that there are (http.Server.ConnState).
func (s *Server) track(conn net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		s.open.Delete(conn)
		return
	}
	s.open.Store(conn, nil)
}

// End ends the connections that there are.
func (s *Server) End() {
	s.open.Range(func(conn, _ any) bool {
		_ = conn.(net.Conn).Close() // its handler has ended, or ends now
		return true
	})
}

// GetX509SVID implements x509svid.Source.
func (s *Server) GetX509SVID() (*x509svid.SVID, error) { return s.svid.Load(), nil }

// Streams counts those that were answered with 200 so far.
func (s *Server) Streams() int { return int(s.streams.Load()) }

// Heard returns the next request that was answered.
func (s *Server) Heard(t testing.TB) *http.Request {
	t.Helper()
	select {
	case r := <-s.heard:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("the partner was asked nothing")
	}
	return nil
}

// ServeHTTP answers a CONNECT, and echoes.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(w, fmt.Sprintf("%s is not CONNECT", r.Method), http.StatusMethodNotAllowed)
		return
	}
	if strings.HasSuffix(r.Host, ":"+strconv.Itoa(Refused)) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.streams.Add(1)
	select {
	case s.heard <- r:
	default: // nobody listens
	}
	w.WriteHeader(http.StatusOK)
	answer := http.NewResponseController(w)
	if answer.Flush() != nil {
		return
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil || answer.Flush() != nil {
				return
			}
		}
		if err != nil {
			if err != io.EOF {
				panic(http.ErrAbortHandler) // as the client was, so is the answer
			}
			return
		}
	}
}
