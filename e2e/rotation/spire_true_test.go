//go:build spire

package rotation_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/heddle-mesh/heddle/e2e/spire"
	"github.com/heddle-mesh/heddle/operator"
)

// TestTrueSPIRE is TestSPIRE with the programs spire-server and spire-agent, which
// `make spire` builds and names.
func TestTrueSPIRE(t *testing.T) {
	spireIssues(t, startSPIRE(t))
}

// TestTrueSPIREIsAwaited starts the operator before SPIRE has the operator's entry; and a
// workload that has its SVID of SPIRE and one of the mesh believe each other.
func TestTrueSPIREIsAwaited(t *testing.T) {
	s := startSPIREWithout(t)
	go func() {
		time.Sleep(3 * time.Second)
		s.entry()
	}()
	began := time.Now()
	w := newWorldBelow(t, s.where())
	if waited := time.Since(began); waited < 2*time.Second {
		t.Errorf("the operator served after %s, before SPIRE had its entry", waited)
	}
	one, _ := w.node(1, filepath.Join(t.TempDir(), "n1"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(s.where().WorkloadAPI)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	cert, err := one.Source().Certificate(workload(1))
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	deadline := time.Now().Add(patience)
	_, _ = a.SetDeadline(deadline), b.SetDeadline(deadline)
	server := tls.Server(a, tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(workload(1))))
	done := make(chan error, 1)
	go func() { _, err := io.ReadFull(server, make([]byte, 1)); done <- err }()
	mesh := tlsconfig.MTLSClientConfig(source, one.Source(), tlsconfig.AuthorizeAny())
	mesh.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	conn := tls.Client(b, mesh)
	if _, err := conn.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if id := conn.ConnectionState().PeerCertificates[0].URIs[0].String(); id != operatorEntry {
		t.Errorf("SPIRE's workload is %s", id)
	}
}

const operatorEntry = "spiffe://test.example/heddle/operator"

// trueSPIRE is SPIRE by its programs, with the operator's entry.
type trueSPIRE struct{ *spire.SPIRE }

func startSPIRE(t *testing.T) trueSPIRE {
	s := startSPIREWithout(t)
	s.entry()
	return s
}

// startSPIREWithout starts server and agent, without the operator's entry.
func startSPIREWithout(t *testing.T) trueSPIRE {
	t.Helper()
	s := spire.Start(t, spire.Config{Programs: os.Getenv("HEDDLE_SPIRE"), TrustDomain: "test.example"})
	s.StartAgent()
	return trueSPIRE{s}
}

// entry makes the operator's registration entry.
func (s trueSPIRE) entry() { s.Entry(operatorEntry, "-downstream") }

func (s trueSPIRE) where() *operator.SPIRE {
	return &operator.SPIRE{Server: s.Address(), WorkloadAPI: s.WorkloadAPI()}
}

func (s trueSPIRE) roots() []*x509.Certificate { return s.Roots() }
func (s trueSPIRE) prepare()                   { s.Prepare() }
func (s trueSPIRE) activate()                  { s.Activate() }
func (s trueSPIRE) revoke()                    { s.Revoke() }
func (s trueSPIRE) stop()                      { s.Stop() }
