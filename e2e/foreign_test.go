package e2e

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/local"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/internal/testenv/partner"
)

const (
	payDomain  = "pay.heddle.dev"
	payBilling = "spiffe://" + payDomain + "/ns/pay/sa/billing"
	payApp     = "10.244.2.90:7501"
)

// abroad is a mesh, and a workload of another trust domain in a pod's network that it knows
// nothing of but what the Mesh declares.
type abroad struct {
	*testbed.Bed
	ca       *partner.Authority
	server   *partner.Server
	endpoint string
}

func newAbroad(t *testing.T) *abroad {
	t.Helper()
	b := up(t, "e2e-abroad")
	f := &abroad{Bed: b, ca: partner.New(t, payDomain, 24*time.Hour)}
	handler, err := federation.NewHandler(f.ca.TrustDomain, f.ca.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	svid := f.ca.SVID(t, "spiffe://"+payDomain+"/bundles")
	listener := b.ListenOutside(t, "127.0.0.1:0")
	f.endpoint = "https://" + listener.Addr().String() + "/"
	bundles := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}}},
		ErrorLog: log.New(io.Discard, "", 0)} // it is not believed while the Mesh gives another bundle
	served := make(chan error, 1)
	go func() { served <- bundles.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { bundles.Close(); <-served })
	own, err := identity.OpenAuthority(filepath.Join(local.DefaultStateDir, b.Mesh.Plan.Name, "operator", "ca"), identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("e2e.heddle.dev")})
	if err != nil {
		t.Fatal(err)
	}
	f.server = partner.Serve(t, b.Listen(t, "plain/listener", ":15008"), f.ca.SVID(t, payBilling), own.Bundle(), "spiffe://e2e.heddle.dev/ns/shop/sa/client")
	return f
}

// mesh is the Mesh's file, without plain/listener; with a federation by a bundle, unless that
// is nil, and the identity declared at its address, unless that is "".
func (f *abroad) mesh(t *testing.T, by *spiffebundle.Bundle, declared string) string {
	t.Helper()
	var pods []pod
	for _, p := range shopPods() {
		if p.name != "listener" {
			pods = append(pods, p)
		}
	}
	plain := meshYAML(f.Mesh.Plan.Name, pods...) + service("server", "10.96.0.10", 80)
	if by == nil {
		return plain
	}
	bundle, err := by.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	entry := map[string]any{"trustDomain": payDomain, "endpoint": f.endpoint, "profile": "https_spiffe", "endpointSPIFFEID": "spiffe://" + payDomain + "/bundles", "bundle": string(bundle)}
	if declared != "" {
		entry["workloads"] = []map[string]any{{"identity": declared, "addresses": []string{"10.244.2.90", "fd00:244:2::90"}}}
	}
	text, err := json.Marshal([]any{entry})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(plain, "spec:\n", "spec:\n  federation: "+string(text)+"\n", 1)
}

// reached waits until a client's connections are answered, and returns one.
func (f *abroad) reached(t *testing.T, what string) (conn *net.TCPConn) {
	t.Helper()
	testenv.Eventually(t, 30*time.Second, what, func() bool {
		c, err := f.Dial("shop/client", payApp, 5*time.Second)
		if err != nil {
			return false
		}
		if liveEcho(c) != nil {
			c.Close()
			return false
		}
		conn = c
		return true
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// refused waits until a client's connections are refused for a reason that the flows tell,
// and holds that nobody is asked anything then.
func (f *abroad) refused(t *testing.T, reason string) {
	t.Helper()
	before := len(f.Flows(t, "--reason", reason))
	testenv.Eventually(t, 30*time.Second, "refused for "+reason, func() bool {
		f.server.End() // what is pooled has proved something else
		answered := f.server.Streams()
		c, err := f.Dial("shop/client", payApp, 5*time.Second)
		if err == nil {
			err = liveEcho(c)
			c.Close()
		}
		return err != nil && f.server.Streams() == answered && len(f.Flows(t, "--reason", reason)) > before
	})
}

// TestConnectionsToAForeignWorkload: a workload of another trust domain, which another
// implementation of HBONE serves, is connected to when it is declared and proves exactly what
// is declared by its own roots; and else not, and for no longer.
func TestConnectionsToAForeignWorkload(t *testing.T) {
	f := newAbroad(t)
	f.Write(t, "mesh.yaml", f.mesh(t, f.ca.Bundle(), ""))
	f.refused(t, "UnknownDestination")
	capture := f.Capture(t)

	f.Write(t, "mesh.yaml", f.mesh(t, f.ca.Bundle(), payBilling))
	conn := f.reached(t, "the declared workload is connected to")
	f.toldOf(t)
	if _, err := io.WriteString(conn, secret); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, len(secret))); err != nil {
		t.Fatal(err)
	}
	client := netip.MustParseAddr("10.244.1.10")
	if err := capture.Stop(t, secret, func(a netip.Addr) bool { return a == client }).Sealed(); err != nil {
		testenv.ForGood(t, "%v", err)
	}
	f.simulated(t)

	f.server.Become(f.ca.SVID(t, payBilling+"2"))
	f.refused(t, "PeerIdentityMismatch")
	f.server.Become(partner.New(t, payDomain, time.Hour).SVID(t, payBilling))
	f.refused(t, "CertificateUntrusted")
	expired := partner.New(t, payDomain, -time.Minute)
	f.server.Become(expired.SVID(t, payBilling))
	f.Write(t, "mesh.yaml", f.mesh(t, expired.Bundle(), payBilling))
	f.refused(t, "CertificateExpired")
	if out, err := f.Heddle("check", "--name", f.Mesh.Plan.Name); err == nil || !strings.Contains(out, "all of its roots have expired") {
		t.Errorf("check: %v: %s", err, out)
	}

	f.server.Become(f.ca.SVID(t, payBilling))
	f.Write(t, "mesh.yaml", f.mesh(t, f.ca.Bundle(), payBilling))
	f.ends(t, f.reached(t, "connected to again"), f.mesh(t, f.ca.Bundle(), ""))
	f.refused(t, "UnknownDestination")
	f.Write(t, "mesh.yaml", f.mesh(t, f.ca.Bundle(), payBilling))
	f.ends(t, f.reached(t, "declared again"), f.mesh(t, nil, ""))
	f.refused(t, "UnknownDestination")
}

// toldOf: every command says what it is to say of the workload.
func (f *abroad) toldOf(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		says []string
		args []string
	}{
		{[]string{payBilling, "tunnel", "NoPolicy", "by the roots of " + payDomain}, []string{"explain", "shop/client", payBilling + ":7501"}},
		{[]string{payDomain, "verifiable"}, []string{"status"}},
		{[]string{"trust domain " + payDomain, "1 workloads at 2 addresses may be connected to"}, []string{"check", "-o", "json"}},
	} {
		out, err := f.Heddle(append(c.args, "--name", f.Mesh.Plan.Name)...)
		for _, word := range c.says {
			if !strings.Contains(out, word) {
				t.Errorf("%s: %v: no %q in %s", c.args[0], err, word, out)
			}
		}
	}
	live, err := f.Heddle("connections", "--name", f.Mesh.Plan.Name)
	if err != nil || !strings.Contains(live, payBilling) && !strings.Contains(live, payApp) {
		t.Errorf("connections: %v: %s", err, live)
	}
}

// simulated: the end of the declaration would break what is there.
func (f *abroad) simulated(t *testing.T) {
	t.Helper()
	change := filepath.Join(t.TempDir(), "mesh.yaml")
	only, _, _ := strings.Cut(f.mesh(t, f.ca.Bundle(), ""), "---\n")
	if err := os.WriteFile(change, []byte(only), 0o600); err != nil {
		t.Fatal(err)
	}
	var out string
	defer func() {
		if t.Failed() {
			t.Logf("simulate: %s", out)
		}
	}()
	testenv.Eventually(t, 30*time.Second, "simulate says what breaks", func() bool {
		out, _ = f.Heddle("simulate", "-f", change, "--name", f.Mesh.Plan.Name)
		return strings.Contains(out, payBilling) && strings.Contains(out, "UnknownDestination")
	})
}

// ends: a live connection ends within a second of a change, for it.
func (f *abroad) ends(t *testing.T, conn *net.TCPConn, change string) {
	t.Helper()
	before := len(f.Flows(t, "--reason", "PolicyChanged"))
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	f.Write(t, "mesh.yaml", change)
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) {
		t.Fatalf("the connection goes on, or ends as if it were done: %v", err)
	}
	took, within := time.Since(began), liveWithin
	t.Logf("it ended after %v", took)
	if testenv.Overloaded(t) {
		within = liveLoaded
	}
	if took > within {
		t.Errorf("it took %v, more than %v", took, within)
	}
	testenv.Eventually(t, 10*time.Second, "its flow", func() bool {
		flows := f.Flows(t, "--reason", "PolicyChanged")
		return len(flows) > before && flows[len(flows)-1].Destination.Identity == payBilling
	})
}
