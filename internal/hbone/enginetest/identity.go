package enginetest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

func identityTests() []test {
	return []test{
		{"server's certificate", testServerCertificates}, {"client's certificate", testClientCertificates},
		{"no client certificate", testNoClientCertificate}, {"TLS 1.2", testOldTLS}, {"no ALPN", testNoALPN},
		{"no SNI and no tickets", testHandshakeShape}, {"what secures it is told", testSecured}, {"other trust domain", testFederation},
	}
}

// testSecured: both ends know key exchange and peer's certificate of each stream, the
// first and those on the warm connection; and the key exchange is a post-quantum one.
func testSecured(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	client, server := secured.Of(tls.X25519MLKEM768, r.server.cert.Leaf), secured.Of(tls.X25519MLKEM768, r.client.cert.Leaf)
	if client == server {
		t.Fatal("one certificate for both")
	}
	for i := range 3 {
		f := r.open(r.request())
		if got := within(t, f.secured, "Established"); got != client {
			t.Errorf("stream %d: the client knows of %v, want %v", i, got, client)
		}
		r.mu.Lock()
		if got := r.requests[i].Secured; got != server {
			t.Errorf("stream %d: the server knows of %v, want %v", i, got, server)
		}
		r.mu.Unlock()
		f.finish()
	}
	if n := r.dialed(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// bent are certificates that no peer may accept, and the class of the refusal.
func bent(t *testing.T, ca *CA, account string) map[string]struct {
	cert *tls.Certificate
	want error
} {
	two := func(c *x509.Certificate) { c.URIs = append(c.URIs, ca.ID("other").URL()) }
	return map[string]struct {
		cert *tls.Certificate
		want error
	}{
		"expired":          {ca.SVID(t, account, ExpiresIn(-time.Minute)), hbone.ErrCertificateExpired},
		"not yet valid":    {ca.SVID(t, account, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) }), hbone.ErrCertificateExpired},
		"foreign CA":       {NewCA(t, "mesh.test").SVID(t, account), hbone.ErrCertificateUntrusted},
		"unknown domain":   {NewCA(t, "elsewhere.test").SVID(t, account), hbone.ErrCertificateUntrusted},
		"two URI names":    {ca.SVID(t, account, two), hbone.ErrCertificateInvalid},
		"no URI name":      {ca.SVID(t, account, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"web.test"} }), hbone.ErrCertificateInvalid},
		"not a SPIFFE ID":  {ca.SVID(t, account, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "https", Host: "mesh.test", Path: "/a"}} }), hbone.ErrCertificateInvalid},
		"a domain's name":  {ca.SVID(t, account, func(c *x509.Certificate) { c.URIs = []*url.URL{ca.Domain.ID().URL()} }), hbone.ErrCertificateInvalid},
		"a CA certificate": {ca.SVID(t, account, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }), hbone.ErrCertificateInvalid},
	}
}

func testServerCertificates(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	all := bent(t, r.ca, "server")
	all["another identity"] = struct {
		cert *tls.Certificate
		want error
	}{r.ca.SVID(t, "impostor"), hbone.ErrPeerMismatch}
	good := r.server.cert
	for name, c := range all {
		r.mu.Lock()
		r.server.cert = c.cert
		r.mu.Unlock()
		f := r.start(r.request())
		if o := f.outcome(); !errors.Is(o.Err, c.want) {
			t.Errorf("%s: %v, want %v", name, o.Err, c.want)
		}
		expectReset(t, f.program, false)
	}
	r.mu.Lock()
	r.server.cert = good
	r.mu.Unlock()
	f := r.open(r.request())
	f.echo("still here")
	f.finish()
}

func testClientCertificates(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	for name, c := range bent(t, r.ca, "client") {
		r.mu.Lock()
		r.client.cert, r.refused = c.cert, nil
		r.mu.Unlock()
		if o := r.start(r.request()).outcome(); !errors.Is(o.Err, hbone.ErrHandshake) {
			t.Errorf("%s: client's outcome %v", name, o.Err)
		}
		r.lastRefusal(c.want)
	}
	if len(r.requests) != 0 {
		t.Error("Accept was asked")
	}
}

// rawTLS connects to the rig's server with a configuration of the test's own.
func (r *rig) rawTLS(change func(*tls.Config)) (*tls.Conn, error) {
	cfg := &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12,
		Certificates: []tls.Certificate{*r.client.cert},
	}
	change(cfg)
	c, err := tls.Dial("tcp", r.endpoint.String(), cfg)
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	_, err = io.ReadFull(c, newBuffer(9)) // in TLS 1.3 the server's refusal comes here
	return c, err
}

func testNoClientCertificate(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	if _, err := r.rawTLS(func(c *tls.Config) { c.Certificates = nil }); err == nil {
		t.Error("accepted")
	}
	r.lastRefusal(hbone.ErrCertificateInvalid)
}

func testOldTLS(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	if _, err := r.rawTLS(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }); err == nil {
		t.Error("accepted")
	}
	r.lastRefusal(hbone.ErrHandshake)
}

func testNoALPN(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	for _, protocols := range [][]string{nil, {"http/1.1"}} {
		if _, err := r.rawTLS(func(c *tls.Config) { c.NextProtos = protocols }); err == nil {
			t.Errorf("accepted ALPN %v", protocols)
		}
		r.lastRefusal(hbone.ErrHandshake)
	}
}

func testHandshakeShape(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		c, err := r.rawTLS(func(cfg *tls.Config) { cfg.ClientSessionCache, cfg.ServerName = cache, "x" })
		must(t, err)
		if cs := c.ConnectionState(); cs.DidResume || cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "h2" {
			t.Errorf("resumed %v, version %x, protocol %q", cs.DidResume, cs.Version, cs.NegotiatedProtocol)
		}
	}
	hello := newChan[*tls.ClientHelloInfo](1)
	l := listen(t, "127.0.0.1:0")
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		cfg := &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) { hello <- h; return nil, errors.New("seen enough") }}
		_ = tls.Server(c, cfg).Handshake() // fails, by the line above
	}()
	req := r.request()
	req.Endpoint = l.Addr().(*net.TCPAddr).AddrPort()
	req.Dial = dialTo(l.Addr().String())
	r.start(req).outcome()
	h := within(t, hello, "a ClientHello")
	if h.ServerName != "" || len(h.SupportedVersions) != 1 || h.SupportedVersions[0] != tls.VersionTLS13 || len(h.SupportedProtos) != 1 || h.SupportedProtos[0] != "h2" {
		t.Errorf("hello: SNI %q, versions %x, ALPN %q", h.ServerName, h.SupportedVersions, h.SupportedProtos)
	}
	if len(h.SupportedCurves) == 0 || h.SupportedCurves[0] != tls.X25519MLKEM768 {
		t.Errorf("hello: curves %v, want a post-quantum one first", h.SupportedCurves)
	}
}

// testFederation: a peer of another trust domain is verified with that domain's
// bundle, and with no other.
func testFederation(t *testing.T, make New) {
	foreign := NewCA(t, "other.test")
	r := newRig(t, make, Options{}, clientCert(foreign.SVID(t, "client")), func(r *rig) {
		r.srv.Bundles = x509bundle.NewSet(r.ca.Bundle(), foreign.Bundle())
	})
	f := r.open(r.request())
	f.echo("hello")
	f.finish()
	if got, want := r.requests[0].Peer, foreign.ID("client"); got != want {
		t.Errorf("peer %v, want %v", got, want)
	}
	// The foreign CA speaks for its own domain only.
	forged := foreign.SVID(t, "client", func(c *x509.Certificate) { c.URIs = []*url.URL{r.ca.ID("client").URL()} })
	r.mu.Lock()
	r.client.cert = forged
	r.mu.Unlock()
	if o := r.start(r.request()).outcome(); o.Err == nil {
		t.Error("a forged identity was accepted")
	}
	r.lastRefusal(hbone.ErrCertificateUntrusted)
}

// changingBundle is a bundle source whose answer a test replaces.
type changingBundle struct{ get func() *x509bundle.Bundle }

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (b changingBundle) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return b.get().GetX509BundleForTrustDomain(td)
}
