//go:build spire

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/e2e/spire"
	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/local"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// What the two trust domains are called, who is who, and how long each step may take: SPIRE
// asks four times in the minute that our refresh hint says, the operator each 5 s.
const (
	ourDomain     = "e2e.heddle.dev"
	partnerDomain = "partner.example"
	billing       = "spiffe://partner.example/billing"
	stranger      = "spiffe://partner.example/stranger"
	ourEndpoint   = "127.0.0.1:15013"
	spirePatience = 2 * time.Minute
)

// partnerSPIRE is a SPIRE of another trust domain, in the network between the nodes: its bundle
// endpoint is of profile https_spiffe, and it is federated with the mesh by the mesh's own.
type partnerSPIRE struct {
	*testbed.Bed
	*spire.SPIRE
	endpoint string
}

func newPartner(t *testing.T, b *testbed.Bed) *partnerSPIRE {
	t.Helper()
	fabric := b.Mesh.FabricPath()
	port := spire.FreePort(t, fabric)
	p := &partnerSPIRE{Bed: b, endpoint: fmt.Sprintf("https://127.0.0.1:%d/", port)}
	own, err := identity.OpenAuthority(filepath.Join(local.DefaultStateDir, b.Mesh.Plan.Name, "operator", "ca"), identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString(ourDomain)})
	if err != nil {
		t.Fatal(err)
	}
	first, err := spiffebundle.FromX509Bundle(own.Bundle()).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	p.SPIRE = spire.Start(t, spire.Config{Programs: os.Getenv("HEDDLE_SPIRE"), TrustDomain: partnerDomain, NetNS: fabric, Files: map[string][]byte{"heddle.json": first},
		Federation: fmt.Sprintf("federation {\n bundle_endpoint {\n address = \"127.0.0.1\"\n port = %d\n refresh_hint = \"20s\"\n profile \"https_spiffe\" {}\n }\n }", port)})
	p.Server("federation", "create", "-trustDomain", ourDomain, "-bundleEndpointURL", "https://"+ourEndpoint+"/", "-bundleEndpointProfile", "https_spiffe",
		"-endpointSpiffeID", "spiffe://"+ourDomain+"/operator", "-trustDomainBundleFormat", "spiffe", "-trustDomainBundlePath", filepath.Join(p.Dir(), "heddle.json"))
	for _, id := range []string{billing, stranger} {
		p.Entry(id, "-federatesWith", "spiffe://"+ourDomain)
	}
	p.StartAgent()
	return p
}

// mesh is the Mesh's file, with federations.
func (p *partnerSPIRE) mesh(t *testing.T, federations ...map[string]string) string {
	t.Helper()
	plain := meshYAML(p.Mesh.Plan.Name, shopPods()...) + service("server", "10.96.0.10", 80)
	if len(federations) == 0 {
		return plain
	}
	text, err := json.Marshal(federations)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(plain, "spec:\n", "spec:\n  federation: "+string(text)+"\n", 1)
}

// entry is what an administrator writes of it into the Mesh.
func (p *partnerSPIRE) entry() map[string]string {
	return map[string]string{"trustDomain": partnerDomain, "endpoint": p.endpoint, "profile": "https_spiffe",
		"endpointSPIFFEID": "spiffe://" + partnerDomain + "/spire/server", "bundle": p.Server("bundle", "show", "-format", "spiffe")}
}

// statusError is the answer to a CONNECT that is not 200.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("the answer to CONNECT is %d", int(e)) }

// untried is why there was nothing for the mesh to judge.
type untried struct{ error }

// connect has a program of SPIRE's, that has its SVID and both bundles of SPIRE's agent, and
// its HBONE of net/http2, connect to the mesh's server and have a byte echoed.
func (p *partnerSPIRE) connect(t *testing.T, id string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	has, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(p.WorkloadAPI()))
	if err != nil {
		return untried{err}
	}
	i := slices.IndexFunc(has.SVIDs, func(s *x509svid.SVID) bool { return s.ID.String() == id })
	if i < 0 {
		return untried{fmt.Errorf("SPIRE's agent has no SVID of %s", id)}
	}
	cfg := tlsconfig.MTLSClientConfig(has.SVIDs[i], has.Bundles, tlsconfig.AuthorizeID(spiffeid.RequireFromString("spiffe://"+ourDomain+"/ns/shop/sa/server")))
	cfg.NextProtos = []string{"h2"}
	raw, err := p.Dial("plain/talker", "10.244.2.10:15008", 5*time.Second)
	if err != nil {
		return untried{err}
	}
	defer raw.Close()
	secured := tls.Client(raw, cfg)
	if err := secured.HandshakeContext(ctx); err != nil { // of TLS 1.3: the client's certificate is judged after it
		return untried{err}
	}
	conn, err := new(http2.Transport).NewClientConn(secured)
	if err != nil {
		return err
	}
	defer conn.Close()
	body, say := io.Pipe()
	defer say.Close()
	request := (&http.Request{Method: http.MethodConnect, URL: &url.URL{Host: "10.244.2.10:7501"}, Host: "10.244.2.10:7501", Header: http.Header{}, Body: body}).WithContext(ctx)
	answer, err := conn.RoundTrip(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return statusError(answer.StatusCode)
	}
	if _, err := say.Write([]byte{'x'}); err != nil {
		return err
	}
	_, err = io.ReadFull(answer.Body, make([]byte, 1))
	return err
}

// gets waits until connections of an identity fare so.
func (p *partnerSPIRE) gets(t *testing.T, what, id string, how func(error) bool) {
	t.Helper()
	var last error
	defer func() {
		if t.Failed() {
			t.Logf("the last connection of %s: %v", id, last)
		}
	}()
	testenv.Eventually(t, spirePatience, what, func() bool {
		last = p.connect(t, id)
		return how(last)
	})
}

func through(err error) bool { return err == nil }
func unauthorized(err error) bool {
	status, ok := errors.AsType[statusError](err)
	return ok && status == http.StatusUnauthorized
}

// unbelieved is no answer to a CONNECT, but the end of the TLS connection.
func unbelieved(err error) bool {
	_, answered := errors.AsType[statusError](err)
	_, before := errors.AsType[untried](err)
	return err != nil && !answered && !before
}

// federated is what `heddle certs` says of another trust domain.
type federated struct {
	TrustDomain string `json:"trustDomain"`
	Profile     string `json:"profile"`
	Refreshed   string `json:"refreshed"`
	Sequence    uint64 `json:"sequence"`
	JWTKeys     int    `json:"jwtKeys"`
	Error       string `json:"error"`
	Roots       []struct {
		SHA256 string `json:"sha256"`
	} `json:"roots"`
}

// follows waits until the operator has, from its endpoint, the roots that a SPIRE has now.
func (p *partnerSPIRE) follows(t *testing.T, what, domain string, of *spire.SPIRE, roots int) federated {
	t.Helper()
	var want []string
	for _, root := range of.Roots() {
		sum := sha256.Sum256(root.Raw)
		want = append(want, hex.EncodeToString(sum[:]))
	}
	if len(want) != roots {
		t.Fatalf("%s: SPIRE has %d roots, want %d", what, len(want), roots)
	}
	slices.Sort(want)
	var f federated
	testenv.Eventually(t, spirePatience, what, func() bool {
		out, _ := p.Heddle("certs", "--name", p.Mesh.Plan.Name, "-o", "json") // its status says what else there is
		var all struct {
			Federation []federated `json:"federation"`
		}
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			t.Fatalf("heddle certs: %v: %s", err, out)
		}
		i := slices.IndexFunc(all.Federation, func(f federated) bool { return f.TrustDomain == domain })
		if i < 0 {
			return false
		}
		f = all.Federation[i]
		var has []string
		for _, root := range f.Roots {
			has = append(has, root.SHA256)
		}
		slices.Sort(has)
		return f.Error == "" && f.Refreshed != "" && slices.Equal(has, want)
	})
	return f
}

// served is the mesh's bundle as SPIRE has it.
func (p *partnerSPIRE) served(t *testing.T) *spiffebundle.Bundle {
	t.Helper()
	bundle, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(ourDomain), []byte(p.Server("bundle", "list", "-id", "spiffe://"+ourDomain, "-format", "spiffe")))
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

// TestTrueSPIREFederates: SPIRE's own programs are the other trust domain. Either side takes
// the other's bundle from its endpoint and follows a rotation of its root; and a workload of
// SPIRE's is let in by a policy that names it, and else not.
func TestTrueSPIREFederates(t *testing.T) {
	t.Setenv("HEDDLE_BUNDLE_ENDPOINT", ourEndpoint) // the operator's
	b := up(t, "e2e-spire")
	go echo(t, b.Listen(t, "shop/server", ":7501"))
	p := newPartner(t, b)

	p.gets(t, "an unknown trust domain is not believed", billing, unbelieved)
	testenv.Eventually(t, 20*time.Second, "flows say so", func() bool { return len(b.Flows(t, "--reason", "CertificateUntrusted")) > 0 })
	b.Write(t, "mesh.yaml", p.mesh(t, p.entry()))
	if f := p.follows(t, "SPIRE's root is followed", partnerDomain, p.SPIRE, 1); f.Profile != "https_spiffe" || f.JWTKeys == 0 || f.Sequence == 0 {
		t.Errorf("known of SPIRE is %+v, want a key for JWT-SVIDs and a sequence number by https_spiffe", f)
	}
	p.gets(t, "nobody is let in by the federation alone", billing, unauthorized)
	b.Write(t, "guests.yaml", `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: guests}
spec: {rules: [{from: [{identities: [`+billing+`]}]}]}
`)
	p.gets(t, "the policy that names it lets it in", billing, through)
	if err := p.connect(t, stranger); !unauthorized(err) {
		t.Errorf("a connection of another identity of SPIRE's ends with %v, want 401", err)
	}
	p.seen(t)

	p.takesOurs(t)
	p.replacesRoot(t)
	p.byWeb(t)

	b.Write(t, "mesh.yaml", p.mesh(t))
	p.gets(t, "after the federation it is not believed", billing, unbelieved)
}

// seen: flows name SPIRE's identities.
func (p *partnerSPIRE) seen(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, 20*time.Second, "flows name SPIRE's workloads", func() bool {
		all := p.Flows(t)
		return slices.ContainsFunc(all, func(f testbed.Flow) bool {
			return f.Source.Identity == billing && f.Verdict == "allow" && f.Policy == "shop/guests" && f.Transport == "tunnel"
		}) && slices.ContainsFunc(all, func(f testbed.Flow) bool { return f.Source.Identity == stranger && f.Reason == "ForeignIdentity" })
	})
}

// takesOurs: SPIRE was given roots alone, so the keys for JWT-SVIDs are what the endpoint gave;
// and it has both roots while ours is replaced.
func (p *partnerSPIRE) takesOurs(t *testing.T) {
	p.Server("federation", "refresh", "-id", "spiffe://"+ourDomain)
	testenv.Eventually(t, spirePatience, "SPIRE has what the mesh's endpoint serves", func() bool { return len(p.served(t).JWTAuthorities()) > 0 })
	bundle := p.served(t)
	if hint, ok := bundle.RefreshHint(); !ok || hint != time.Minute || len(bundle.X509Authorities()) != 1 {
		t.Errorf("SPIRE has %d roots of the mesh and the refresh hint %v, want 1 and a minute", len(bundle.X509Authorities()), hint)
	}
	if out, err := p.Heddle("certs", "rotate", "--root", "--name", p.Mesh.Plan.Name); err != nil {
		t.Fatalf("heddle certs rotate: %v: %s", err, out)
	}
	testenv.Eventually(t, spirePatience, "SPIRE has the mesh's next root by itself", func() bool { return len(p.served(t).X509Authorities()) == 2 })
	p.gets(t, "SPIRE's workload connects meanwhile", billing, through)
	if out, err := p.Heddle("certs", "rotate", "--abort", "--name", p.Mesh.Plan.Name); err != nil {
		t.Fatalf("heddle certs rotate --abort: %v: %s", err, out)
	}
	testenv.Eventually(t, spirePatience, "SPIRE gives the other root up", func() bool { return len(p.served(t).X509Authorities()) == 1 })
}

// replacesRoot: at each step the operator has SPIRE's roots of now, and the workload is let in.
func (p *partnerSPIRE) replacesRoot(t *testing.T) {
	old := p.Roots()[0]
	p.Prepare()
	before := p.follows(t, "both of SPIRE's roots are followed", partnerDomain, p.SPIRE, 2)
	p.Activate()
	p.Revoke()
	after := p.follows(t, "SPIRE's new root alone is followed", partnerDomain, p.SPIRE, 1)
	if p.Roots()[0].Equal(old) || after.Sequence <= before.Sequence {
		t.Errorf("SPIRE's root is the one before, or the sequence, %d, is not after %d", after.Sequence, before.Sequence)
	}
	p.gets(t, "an SVID of SPIRE's new root is let in", billing, through)
	if err := p.connect(t, stranger); !unauthorized(err) {
		t.Errorf("a connection of another identity of SPIRE's ends with %v, want 401", err)
	}
}

// byWeb follows another SPIRE, whose bundle endpoint has a certificate of the web.
func (p *partnerSPIRE) byWeb(t *testing.T) {
	const domain = "web.example"
	certificate, key := webCertificate(t)
	port := spire.FreePort(t, p.Mesh.FabricPath())
	web := spire.Start(t, spire.Config{Programs: os.Getenv("HEDDLE_SPIRE"), TrustDomain: domain, NetNS: p.Mesh.FabricPath(), Files: map[string][]byte{"web.pem": certificate, "web.key": key},
		Federation: fmt.Sprintf("federation {\n bundle_endpoint {\n address = \"127.0.0.1\"\n port = %d\n refresh_hint = \"20s\"\n profile \"https_web\" {\n serving_cert_file {\n"+
			" cert_file_path = \"$DIR/web.pem\"\n key_file_path = \"$DIR/web.key\"\n file_sync_interval = \"1h\"\n }\n }\n }\n }", port)})
	entry := map[string]string{"trustDomain": domain, "endpoint": fmt.Sprintf("https://127.0.0.1:%d/", port), "profile": "https_web", "webRoots": string(certificate)}
	p.Write(t, "mesh.yaml", p.mesh(t, p.entry(), entry))
	if f := p.follows(t, "the root of a SPIRE by https_web is followed", domain, web, 1); f.Profile != "https_web" {
		t.Errorf("its profile is %q", f.Profile)
	}
	web.Prepare()
	p.follows(t, "and its next one", domain, web, 2)
	p.follows(t, "beside the other", partnerDomain, p.SPIRE, 1)
}

// webCertificate is one of 127.0.0.1 that is its own root, and its key, in PEM.
func webCertificate(t *testing.T) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bundle.web.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})
}
