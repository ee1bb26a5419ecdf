package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/reference"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/local"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// foreignMesh is another mesh: its authority, its bundle endpoint, which is go-spiffe's, and
// a tunnel's end beyond the nodes of this one.
type foreignMesh struct {
	*testbed.Bed
	authority *identity.Authority
	engine    hbone.Engine
	bundles   x509bundle.Source
	endpoint  string
}

func newForeignMesh(t *testing.T, b *testbed.Bed) *foreignMesh {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("other.heddle.dev")
	authority, err := identity.NewAuthority(identity.AuthorityConfig{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	engine := reference.New(reference.Config{})
	t.Cleanup(func() { engine.Drain(hbone.Match{}, true) })
	f := &foreignMesh{Bed: b, authority: authority, engine: engine}
	handler, err := federation.NewHandler(td, spiffebundle.FromX509Bundle(authority.Bundle()))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := authority.Own(identity.OperatorID(td))()
	if err != nil {
		t.Fatal(err)
	}
	listener := b.ListenOutside(t, "127.0.0.1:0")
	f.endpoint = "https://" + listener.Addr().String() + "/bundle"
	server := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{*cert}}}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { server.Close(); <-served })
	// This mesh's bundle, as the other's operator would have fetched it.
	own, err := identity.OpenAuthority(filepath.Join(local.DefaultStateDir, b.Mesh.Plan.Name, "operator", "ca"), identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("e2e.heddle.dev")})
	if err != nil {
		t.Fatal(err)
	}
	f.bundles = own.Bundle()
	return f
}

// mesh is the Mesh's file with a federation.
func (f *foreignMesh) mesh(t *testing.T) string {
	t.Helper()
	bundle, err := spiffebundle.FromX509Bundle(f.authority.Bundle()).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	td := f.authority.TrustDomain()
	entry, err := json.Marshal([]map[string]string{{"trustDomain": td.Name(), "endpoint": f.endpoint, "profile": "https_spiffe",
		"endpointSPIFFEID": identity.OperatorID(td).String(), "bundle": string(bundle)}})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(f.plain(), "spec:\n", "spec:\n  federation: "+string(entry)+"\n", 1)
}

func (f *foreignMesh) plain() string {
	return meshYAML(f.Mesh.Plan.Name, shopPods()...) + service("server", "10.96.0.10", 80)
}

// connect opens a connection as a workload of the other mesh; the error is why there is none.
func (f *foreignMesh) connect(t *testing.T, id string) (*net.TCPConn, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSR(key, spiffeid.RequireFromString(id))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := f.authority.SignCSR(csr, spiffeid.RequireFromString(id), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	program, local := loopback(t)
	answered, done := make(chan struct{}), make(chan hbone.Outcome, 1)
	target := netip.MustParseAddrPort("10.244.2.10:7501")
	endpoint := netip.AddrPortFrom(target.Addr(), 15008)
	f.engine.Connect(local, &hbone.ConnectRequest{
		Key:         hbone.Key{Source: "other", Leaf: hbone.Fingerprint(cert), Peer: spiffeid.RequireFromString("spiffe://e2e.heddle.dev/ns/shop/sa/server"), Endpoint: endpoint},
		Certificate: cert, Bundles: f.bundles, Authority: target, Timeout: 10 * time.Second,
		Dial: func(context.Context) (*net.TCPConn, error) {
			return f.Dial("plain/talker", endpoint.String(), 5*time.Second)
		},
		Established: func(hbone.Timing, secured.By) { close(answered) },
		Done:        func(o hbone.Outcome) { done <- o },
	})
	select {
	case <-answered:
		return program, nil
	case o := <-done:
		program.Close()
		return nil, o.Err
	}
}

// loopback is a pair of connected sockets.
func loopback(t *testing.T) (program, local *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), other.(*net.TCPConn)
}

// refused waits until connections of an identity are, for a reason that the flows tell.
func (f *foreignMesh) refused(t *testing.T, id, reason string, how func(error) bool) {
	t.Helper()
	testenv.Eventually(t, 20*time.Second, id+" is refused for "+reason, func() bool {
		c, err := f.connect(t, id)
		if err == nil {
			c.Close()
			return false
		}
		return how(err) && len(f.Flows(t, "--reason", reason)) > 0
	})
}

func denied(err error) bool {
	status, ok := errors.AsType[*hbone.StatusError](err)
	return ok && status.Code == 401
}

// TestForeignWorkload: a workload of another trust domain reaches one of this mesh when the Mesh
// is federated with it and an ALLOW policy names it, and else not; and no longer than that.
func TestForeignWorkload(t *testing.T) {
	b := up(t, "e2e-federation")
	f := newForeignMesh(t, b)
	go echo(t, b.Listen(t, "shop/server", ":7501"))
	const web = "spiffe://other.heddle.dev/ns/shop/sa/web"

	f.refused(t, web, "CertificateUntrusted", func(err error) bool { return !denied(err) })

	b.Write(t, "mesh.yaml", f.mesh(t))
	f.refused(t, web, "ForeignIdentity", denied) // no policy selects the workload
	allow := `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: guests}
spec: {rules: [{from: [%s]}]}
`
	b.Write(t, "guests.yaml", fmt.Sprintf(allow, "{namespaces: [shop]}, {ipBlocks: [0.0.0.0/0]}, {identities: [spiffe://e2e.heddle.dev/ns/shop/sa/web]}"))
	time.Sleep(time.Second) // what is to stay refused has no moment from which on it is
	f.refused(t, web, "ForeignIdentity", denied)

	b.Write(t, "guests.yaml", fmt.Sprintf(allow, "{identities: ["+web+"]}"))
	var conn *net.TCPConn
	testenv.Eventually(t, 20*time.Second, "the policy that names it lets it in", func() bool {
		c, err := f.connect(t, web)
		if err != nil {
			return false
		}
		conn = c
		return liveEcho(c) == nil
	})
	f.refused(t, "spiffe://other.heddle.dev/ns/shop/sa/stranger", "ForeignIdentity", denied)
	if out, err := b.Heddle("explain", "--name", b.Mesh.Plan.Name, web, "10.244.2.10:7501"); err != nil || !strings.Contains(out, "shop/guests") {
		t.Errorf("explain: %v: %s", err, out)
	}
	if out, err := b.Heddle("certs", "--name", b.Mesh.Plan.Name); err != nil || !strings.Contains(out, "other.heddle.dev") {
		t.Errorf("certs: %v: %s", err, out)
	}
	if text := b.Metrics(t, "operator"); !strings.Contains(text, `heddle_federation_failing{trust_domain="other.heddle.dev"} 0`) {
		t.Error("metrics do not say that the other trust domain is followed")
	}

	if err := liveEcho(conn); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	b.Write(t, "mesh.yaml", f.plain())
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection goes on after its federation: %v", err)
	} else if errors.Is(err, io.EOF) {
		t.Log("it ended by EOF")
	}
	took, within := time.Since(began), liveWithin
	t.Logf("a federation's end ended its connection after %v", took)
	if testenv.Overloaded(t) {
		within = liveLoaded
	}
	if took > within {
		t.Errorf("it took %v, more than %v", took, within)
	}
	f.refused(t, web, "CertificateUntrusted", func(err error) bool { return !denied(err) })
}
