// Package spiretest is a SPIRE of one process, for tests: an agent's Workload API on a unix
// socket and a server's API on loopback, over gRPC and mutual TLS as SPIRE has them, with
// one registration entry, the operator's. It attests nobody. e2e/rotation/spire.sh has the true one.
package spiretest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/operator/spire/svidpb"
)

// Operator is the path of the operator's entry.
const Operator = "/heddle/operator"

// SPIRE is one. It is safe for concurrent use.
type SPIRE struct {
	// Server is the server's host:port, WorkloadAPI the agent's unix:///PATH.
	Server, WorkloadAPI string
	td                  spiffeid.TrustDomain
	socket              string

	state struct {
		sync.Mutex
		authorities []*authority        // of the bundle
		published   []*x509.Certificate // of the bundle, besides
		lags        bool
		signs       *authority
		serverID    string // path
		downstream  bool
		began, ttl  time.Duration // of CAs, from now
		template    func(*x509.Certificate)
		answer      func(*svidpb.NewDownstreamX509CAResponse)
		changed     chan struct{}
		issued      int
		agent       *grpc.Server
		server      *grpc.Server
	}
}

type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// New starts one with one root; it ends with the test.
func New(t testing.TB, td string) *SPIRE {
	t.Helper()
	dir, err := os.MkdirTemp("", "spire") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	s := &SPIRE{td: spiffeid.RequireTrustDomainFromString(td), socket: filepath.Join(dir, "agent.sock")}
	s.WorkloadAPI = "unix://" + s.socket
	s.state.changed = make(chan struct{})
	s.state.downstream, s.state.serverID = true, "/spire/server"
	s.SetLife(10*time.Second, time.Hour)
	s.Prepare(t)
	s.Activate()
	s.StartAgent(t)
	s.StartServer(t)
	t.Cleanup(func() {
		s.StopAgent()
		s.StopServer()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

// change is made under the lock, and told to the agent's clients.
func (s *SPIRE) change(what func()) {
	s.state.Lock()
	defer s.state.Unlock()
	what()
	close(s.state.changed)
	s.state.changed = make(chan struct{})
}

// Prepare adds a root to the bundle, and returns it.
func (s *SPIRE) Prepare(t testing.TB) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := s.ca(10*time.Second, 24*time.Hour)
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s.change(func() { s.state.authorities = append(s.state.authorities, &authority{key, cert}) })
	return cert
}

// Activate has the newest root sign.
func (s *SPIRE) Activate() {
	s.change(func() { s.state.signs = s.state.authorities[len(s.state.authorities)-1] })
}

// Revoke takes the oldest root out of the bundle.
func (s *SPIRE) Revoke() {
	s.change(func() { s.state.authorities = s.state.authorities[1:] })
}

// Publish adds a root to the bundle that SPIRE never signs by, as shape makes it; nil as
// Prepare's.
func (s *SPIRE) Publish(t testing.TB, shape func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := s.ca(10*time.Second, 24*time.Hour)
	if shape != nil {
		shape(template)
	}
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s.change(func() { s.state.published = append(s.state.published, cert) })
	return cert
}

// SetLag has the agent's bundle, and SVIDs, know of the oldest root only.
func (s *SPIRE) SetLag(does bool) { s.change(func() { s.state.lags = does }) }

// SetLife is when CAs that are signed from now on began, and how long they last yet.
func (s *SPIRE) SetLife(began, lasts time.Duration) {
	s.change(func() { s.state.began, s.state.ttl = began, lasts })
}

// SetDownstream says whether the operator's entry is marked so.
func (s *SPIRE) SetDownstream(is bool) { s.change(func() { s.state.downstream = is }) }

// SetServerID is the path of the identity that the server proves from now on.
func (s *SPIRE) SetServerID(path string) { s.change(func() { s.state.serverID = path }) }

// SetTemplate has f change each CA before it is signed.
func (s *SPIRE) SetTemplate(f func(*x509.Certificate)) { s.change(func() { s.state.template = f }) }

// SetAnswer has f change each CA's answer; nil nothing.
func (s *SPIRE) SetAnswer(f func(*svidpb.NewDownstreamX509CAResponse)) {
	s.change(func() { s.state.answer = f })
}

// Issued counts the CAs that were signed.
func (s *SPIRE) Issued() int {
	s.state.Lock()
	defer s.state.Unlock()
	return s.state.issued
}

// StartAgent serves the Workload API.
func (s *SPIRE) StartAgent(t testing.TB) {
	t.Helper()
	listener, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, &agent{spire: s})
	s.change(func() { s.state.agent = server })
	serve(t, server, listener)
}

// StartServer serves the server's API, at the address it had before.
func (s *SPIRE) StartServer(t testing.TB) {
	t.Helper()
	address := s.Server
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s.Server = listener.Addr().String()
	server := grpc.NewServer(grpc.Creds(grpccredentials.MTLSServerCredentials(s, s, tlsconfig.AuthorizeMemberOf(s.td))))
	svidpb.RegisterSVIDServer(server, &api{spire: s})
	s.change(func() { s.state.server = server })
	serve(t, server, listener)
}

func serve(t testing.TB, server *grpc.Server, listener net.Listener) {
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
}

// StopAgent ends the Workload API, StopServer the server's.
func (s *SPIRE) StopAgent() {
	s.state.Lock()
	server := s.state.agent
	s.state.Unlock()
	server.Stop()
}

// StopServer is told by StopAgent.
func (s *SPIRE) StopServer() {
	s.state.Lock()
	server := s.state.server
	s.state.Unlock()
	server.Stop()
}

// ca is the template of a CA as SPIRE's are.
func (s *SPIRE) ca(began, ttl time.Duration) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"SPIFFE"}, SerialNumber: serial().String()},
		NotBefore: time.Now().Add(-began), NotAfter: time.Now().Add(ttl), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, URIs: []*url.URL{s.td.ID().URL()},
	}
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // the machine has no randomness
	}
	return n.Add(n, big.NewInt(1))
}

func sign(template, by *x509.Certificate, key, with any) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, by, key, with)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// svid signs one of a path.
func (s *SPIRE) svid(path string) (*x509svid.SVID, error) {
	id, err := spiffeid.FromPath(s.td, path)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	s.state.Lock()
	by := s.state.signs
	if s.state.lags {
		by = s.state.authorities[0]
	}
	s.state.Unlock()
	leaf, err := sign(&x509.Certificate{SerialNumber: serial(), NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, URIs: []*url.URL{id.URL()}}, by.cert, key.Public(), by.key)
	if err != nil {
		return nil, err
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}, nil
}

// GetX509SVID is the server's, for its TLS.
func (s *SPIRE) GetX509SVID() (*x509svid.SVID, error) {
	s.state.Lock()
	path := s.state.serverID
	s.state.Unlock()
	return s.svid(path)
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *SPIRE) GetX509BundleForTrustDomain(spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return x509bundle.FromX509Authorities(s.td, s.Roots()), nil
}

// Roots are those of the bundle.
func (s *SPIRE) Roots() []*x509.Certificate {
	s.state.Lock()
	defer s.state.Unlock()
	var all []*x509.Certificate
	for _, a := range s.state.authorities {
		all = append(all, a.cert)
	}
	return append(all, s.state.published...)
}

// bundle is what the agent has.
func (s *SPIRE) bundle() []*x509.Certificate {
	roots := s.Roots()
	s.state.Lock()
	defer s.state.Unlock()
	if s.state.lags {
		return roots[:1]
	}
	return roots
}

type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	spire *SPIRE
}

// FetchX509SVID implements workload.SpiffeWorkloadAPIServer.
func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md.Get("workload.spiffe.io")) != 1 {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	for {
		a.spire.state.Lock()
		changed := a.spire.state.changed
		a.spire.state.Unlock()
		svid, err := a.spire.svid(Operator)
		if err != nil {
			return err
		}
		chain, key, err := svid.MarshalRaw()
		if err != nil {
			return err
		}
		var bundle []byte
		for _, root := range a.spire.bundle() {
			bundle = append(bundle, root.Raw...)
		}
		if err := stream.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: svid.ID.String(), X509Svid: chain, X509SvidKey: key, Bundle: bundle}}}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		}
	}
}

type api struct {
	svidpb.UnimplementedSVIDServer
	spire *SPIRE
}

// NewDownstreamX509CA implements svidpb.SVIDServer.
func (a *api) NewDownstreamX509CA(ctx context.Context, req *svidpb.NewDownstreamX509CARequest) (*svidpb.NewDownstreamX509CAResponse, error) {
	s := a.spire
	s.state.Lock()
	by, downstream, change := s.state.signs, s.state.downstream, s.state.answer
	template, shape := s.ca(s.state.began, s.state.ttl), s.state.template
	s.state.issued++
	s.state.Unlock()
	caller, ok := grpccredentials.PeerIDFromContext(ctx)
	if !ok || caller.Path() != Operator || !downstream {
		return nil, status.Errorf(codes.PermissionDenied, "authorization denied for method, of %s", caller)
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "malformed CSR")
	}
	if template.NotAfter.After(by.cert.NotAfter) {
		template.NotAfter = by.cert.NotAfter
	}
	if shape != nil {
		shape(template)
	}
	cert, err := sign(template, by.cert, csr.PublicKey, by.key)
	if err != nil {
		return nil, err
	}
	answer := &svidpb.NewDownstreamX509CAResponse{CaCertChain: [][]byte{cert.Raw}}
	for _, root := range s.Roots() {
		answer.X509Authorities = append(answer.X509Authorities, root.Raw)
	}
	if change != nil {
		change(answer)
	}
	return answer, nil
}
