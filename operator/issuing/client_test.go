package issuing

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// dial connects with a client certificate, or none, and verifies nothing.
func dial(t testing.TB, o *operator, cert *tls.Certificate) *grpc.ClientConn {
	t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	conn, err := grpc.NewClient(o.address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// mint signs with the operator's root, taken from its directory, what the
// Authority would not.
func (o *operator) mint(t testing.TB, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(o.caDir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	caKey, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	_, key := newCSR(t, web)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: td.Name(), Path: "/node/n1"}},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, o.authority.Root(), key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestClientCertificates(t *testing.T) {
	o, foreign := startOperator(t), startOperator(t)
	csr, _ := newCSR(t, web)
	for name, c := range map[string]struct {
		cert *tls.Certificate
		code codes.Code
		want string
	}{
		"none":    {nil, codes.Unauthenticated, "no certificate"},
		"good":    {o.mint(t, func(*x509.Certificate) {}), codes.OK, ""},
		"expired": {o.mint(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), codes.Unavailable, ""},
		"foreign": {foreign.mint(t, func(*x509.Certificate) {}), codes.Unavailable, ""},
		"two URI names": {o.mint(t, func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: td.Name(), Path: "/node/n2"})
		}), codes.Unavailable, ""},
		"no URI name":  {o.mint(t, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"n1"} }), codes.Unavailable, ""},
		"CA":           {o.mint(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), codes.Unavailable, ""},
		"server's":     {o.mint(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), codes.Unavailable, ""},
		"a workload's": {o.mint(t, func(c *x509.Certificate) { c.URIs = []*url.URL{web.URL()} }), codes.PermissionDenied, "is not a node"},
		"the operator": {o.mint(t, func(c *x509.Certificate) { c.URIs = []*url.URL{identity.OperatorID(td).URL()} }), codes.PermissionDenied, "is not a node"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := meshpb.NewIssuingClient(dial(t, o, c.cert)).Sign(ctx, &meshpb.SignRequest{Identity: web.String(), Csr: csr})
			if status.Code(err) != c.code || c.want != "" && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want %v %q", err, c.code, c.want)
			}
		})
	}
}

// TestConnectionEndsWithItsCertificate: a connection that was made in time does
// not outlive the SVID that it was made with.
func TestConnectionEndsWithItsCertificate(t *testing.T) {
	o := startOperator(t)
	cert := o.mint(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Second) })
	client := meshpb.NewIssuingClient(dial(t, o, cert))
	csr, _ := newCSR(t, web)
	sign := func() error {
		_, err := client.Sign(t.Context(), &meshpb.SignRequest{Identity: web.String(), Csr: csr})
		return err
	}
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 5*time.Second, "calls fail", func() bool { return sign() != nil })
}

func TestRateLimits(t *testing.T) {
	o := startOperator(t, func(_ *identity.AuthorityConfig, c *Config) {
		c.SignRate, c.SignBurst, c.JoinRate, c.JoinBurst = 0.001, 3, 0.001, 2
	})
	n1, n2 := o.join(t, "n1"), o.join(t, "n2")
	csr, _ := newCSR(t, web)
	var limited int
	for range 5 {
		if _, _, err := n1.Sign(t.Context(), web, csr); status.Code(errors.Unwrap(err)) == codes.ResourceExhausted {
			limited++
		}
	}
	if limited != 2 {
		t.Errorf("%d of 5 were limited, the burst is 3", limited)
	}
	if _, _, err := n2.Sign(t.Context(), db, csr); err != nil {
		t.Errorf("another node suffers: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := nodeauth.Join(ctx, nodeauth.JoinConfig{NodeConfig: nodeauth.NodeConfig{Dir: nodeDir(t)}, Token: o.token(t, "n1", time.Hour)})
	if err == nil || !strings.Contains(err.Error(), "too many attempts") {
		t.Errorf("third join: %v", err)
	}
}

func TestLimitersAreBounded(t *testing.T) {
	l, now := newLimiters(1, 1), time.Now()
	for i := range 3 * maxLimiters {
		l.allow(string(rune(i)), now)
	}
	if n := len(l.buckets.byCaller); n > maxLimiters {
		t.Errorf("%d limiters", n)
	}
	l.allow("late", now.Add(time.Hour))
	if n := len(l.buckets.byCaller); n > 10 {
		t.Errorf("%d limiters are kept at rest", n)
	}
}

func TestJoinsAreLimitedByNetwork(t *testing.T) {
	for a, b := range map[string]string{"10.0.0.1": "10.0.0.2", "2001:db8::1": "2001:db8:0:1::1"} {
		if network(a) == network(b) {
			t.Errorf("%s and %s share a limit", a, b)
		}
	}
	if network("2001:db8::1") != network("2001:db8::ffff:1") {
		t.Error("a /64 has more than one limit")
	}
}
