package proxy_test

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/internal/testenv/partner"
)

const (
	billing    = "spiffe://partner.test/ns/pay/sa/billing"
	billingAt  = "198.18.200.1"
	billingApp = billingAt + ":7001"
	billingNo  = billingAt + ":4010" // partner.Refused
)

// federated gives the SVIDs and the bundle of a mesh, and the bundles of other trust domains.
type federated struct {
	*authority
	others *x509bundle.Set
}

func (f federated) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td != trustDomain {
		return f.others.GetX509BundleForTrustDomain(td)
	}
	return f.authority.GetX509BundleForTrustDomain(td)
}

// abroad is a node with a client, and a workload of another trust domain.
type abroad struct {
	*world
	a      *node
	client *pod
	ca     *partner.Authority
	server *partner.Server
	others *x509bundle.Set
}

func newAbroad(t *testing.T, kind string) *abroad {
	w := newWorld(t)
	w.engines = map[string]string{"a": kind}
	w.workload("web", "a", "198.18.1.1")
	f := &abroad{world: w, ca: partner.New(t, "partner.test", time.Hour), others: x509bundle.NewSet()}
	f.others.Add(f.ca.Bundle().X509Bundle())
	f.declare(billing)
	f.a = w.node("a", func(c *proxy.Config) { c.Identities = federated{w.ca, f.others} })
	f.client = f.a.serve("web", "198.18.1.1", podOptions{outbound: []string{billingApp, billingNo}})
	own, err := w.ca.GetX509BundleForTrustDomain(trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	f.server = partner.Serve(t, listen(t, billingAt+":15008"), f.ca.SVID(t, billing), own, "spiffe://example.test/ns/shop/sa/web")
	return f
}

// declare federates, with a workload of an identity at the partner's address; "" with none.
func (f *abroad) declare(id string) {
	f.t.Helper()
	d := mesh.FederatedDomain{TrustDomain: f.ca.TrustDomain}
	if id != "" {
		d.Workloads = []mesh.FederatedWorkload{{Identity: spiffeid.RequireFromString(id), Addresses: []netip.Addr{netip.MustParseAddr(billingAt)}}}
	}
	f.settings.Federation = []mesh.FederatedDomain{d}
	f.publish()
}

func (f *abroad) echoes(c io.ReadWriter) error {
	got := make([]byte, 4)
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != "ping" {
		return fmt.Errorf("echoed %q", got)
	}
	return nil
}

// eachEngine runs a test with both.
func eachEngine(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{engine.Loop, engine.Reference} {
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}

// TestForeignWorkloadIsReached: HBONE of another implementation, whose server proves the
// declared identity by its own roots, is spoken to; and is told nothing but what it needs.
func TestForeignWorkloadIsReached(t *testing.T) {
	eachEngine(t, func(t *testing.T, kind string) {
		f := newAbroad(t, kind)
		c := f.client.client(billingApp)
		if err := f.echoes(c); err != nil {
			t.Fatal(err)
		}
		r := f.server.Heard(t)
		if r.Host != billingApp || r.Header.Get("baggage") != "" || !strings.Contains(r.Header.Get("forwarded"), addrPort(c.LocalAddr()).String()) {
			t.Errorf("asked for %q with %v", r.Host, r.Header)
		}
		c.CloseWrite()
		if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
			t.Errorf("at the end %q, %v", rest, err)
		}
		is := f.a.flows.wait(t, 1)[0]
		to := is.Destination
		if is.Verdict != mesh.VerdictAllow || is.Reason != mesh.ReasonNoPolicy || is.Transport != flow.TransportTunnel || is.Secured == (flow.Secured{}) ||
			to.Identity.String() != billing || to.Addr.String() != billingApp || to.Workload != (mesh.Key{}) || is.BytesSent != 4 || is.BytesReceived != 4 {
			t.Errorf("%+v", is)
		}
	})
}

// TestForeignWorkloadIsVerified: nobody but who proves exactly the declared identity, by the
// roots of its trust domain, gets a byte.
func TestForeignWorkloadIsVerified(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, f *abroad)
		reason mesh.Reason
	}{
		{"another identity of its trust domain", func(t *testing.T, f *abroad) { f.server.Become(f.ca.SVID(t, billing+"2")) }, mesh.ReasonPeerIdentityMismatch},
		{"another one is declared", func(_ *testing.T, f *abroad) { f.declare(billing + "2") }, mesh.ReasonPeerIdentityMismatch},
		{"its name, by a CA of the same name", func(t *testing.T, f *abroad) {
			f.server.Become(partner.New(t, "partner.test", time.Hour).SVID(t, billing))
		}, mesh.ReasonCertificateUntrusted},
		{"its name, by this mesh's CA", func(t *testing.T, f *abroad) { f.server.Become(f.ownSVID(t, billing)) }, mesh.ReasonCertificateUntrusted},
		{"its name, by the CA of a third, believed trust domain", func(t *testing.T, f *abroad) {
			third := partner.New(t, "third.test", time.Hour)
			f.others.Add(third.Bundle().X509Bundle())
			f.server.Become(third.SVID(t, billing))
		}, mesh.ReasonCertificateUntrusted},
		{"a workload of this mesh", func(t *testing.T, f *abroad) {
			f.server.Become(f.ownSVID(t, "spiffe://example.test/ns/pay/sa/billing"))
		}, mesh.ReasonPeerIdentityMismatch},
		{"no bundle of its trust domain", func(_ *testing.T, f *abroad) { f.others.Remove(f.ca.TrustDomain) }, mesh.ReasonCertificateUntrusted},
		{"a bundle that has expired", func(t *testing.T, f *abroad) {
			expired := partner.New(t, "partner.test", -time.Minute)
			f.others.Add(expired.Bundle().X509Bundle())
			f.server.Become(expired.SVID(t, billing))
		}, mesh.ReasonCertificateExpired},
		{"revoked", func(_ *testing.T, f *abroad) {
			f.settings.RevokedIdentities = []spiffeid.ID{spiffeid.RequireFromString(billing)}
			f.publish()
		}, mesh.ReasonIdentityRevoked},
		{"a client without a certificate", func(_ *testing.T, f *abroad) {
			f.world.ca.withhold(spiffeid.RequireFromString("spiffe://example.test/ns/shop/sa/web"))
		}, mesh.ReasonNoCertificate},
		{"a client that a NetworkPolicy keeps in", func(_ *testing.T, f *abroad) {
			f.network = []netpolicy.Policy{{Name: netpolicy.Name{Namespace: "shop", Name: "in"}, Egress: &netpolicy.Direction{}}}
			f.publish()
		}, mesh.ReasonNetworkPolicyEgress},
		{"no longer declared", func(_ *testing.T, f *abroad) { f.declare("") }, mesh.ReasonUnknownDestination},
		{"no longer federated", func(_ *testing.T, f *abroad) { f.settings.Federation = nil; f.publish() }, mesh.ReasonUnknownDestination},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, kind string) {
				f := newAbroad(t, kind)
				c.change(t, f)
				f.client.refused(billingApp)
				r := f.a.flows.wait(t, 1)[0]
				if r.Verdict != mesh.VerdictDeny || r.Reason != c.reason || f.server.Streams() != 0 {
					t.Errorf("%v %v (%s), %d streams; want %v", r.Verdict, r.Reason, r.Detail, f.server.Streams(), c.reason)
				}
			})
		})
	}
}

// TestForeignWorkloadRefuses: what the other end refuses is that end's refusal.
func TestForeignWorkloadRefuses(t *testing.T) {
	eachEngine(t, func(t *testing.T, kind string) {
		f := newAbroad(t, kind)
		f.client.refused(billingNo)
		if r := f.a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonPeerRefused || r.Destination.Identity.String() != billing {
			t.Errorf("%v of %v (%s)", r.Reason, r.Destination.Identity, r.Detail)
		}
	})
}

// ownSVID is signed by this mesh's CA, for whomever.
func (f *abroad) ownSVID(t *testing.T, id string) *x509svid.SVID {
	t.Helper()
	cert, err := f.world.ca.Certificate(spiffeid.RequireFromString(id))
	if err != nil {
		t.Fatal(err)
	}
	return &x509svid.SVID{ID: spiffeid.RequireFromString(id), Certificates: []*x509.Certificate{cert.Leaf}, PrivateKey: cert.PrivateKey.(crypto.Signer)}
}

// TestForeignWorkloadIsTakenBack: a live connection ends when what let it out does: within a
// second, with the reason, and not before.
func TestForeignWorkloadIsTakenBack(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, f *abroad)
		reason mesh.Reason // ReasonNoPolicy when it goes on
	}{
		{"the same again", func(_ *testing.T, f *abroad) { f.declare(billing) }, mesh.ReasonNoPolicy},
		{"the declaration is taken back", func(_ *testing.T, f *abroad) { f.declare("") }, mesh.ReasonPolicyChanged},
		{"another identity is declared", func(_ *testing.T, f *abroad) { f.declare(billing + "2") }, mesh.ReasonPolicyChanged},
		{"the federation ends", func(_ *testing.T, f *abroad) { f.settings.Federation = nil; f.publish() }, mesh.ReasonPolicyChanged},
		{"a NetworkPolicy keeps the client in", func(_ *testing.T, f *abroad) {
			f.network = []netpolicy.Policy{{Name: netpolicy.Name{Namespace: "shop", Name: "in"}, Egress: &netpolicy.Direction{}}}
			f.publish()
		}, mesh.ReasonPolicyChanged},
		{"it is revoked", func(_ *testing.T, f *abroad) {
			f.settings.RevokedIdentities = []spiffeid.ID{spiffeid.RequireFromString(billing)}
			f.publish()
		}, mesh.ReasonIdentityRevoked},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, kind string) {
				f := newAbroad(t, kind)
				conn := f.client.client(billingApp)
				if err := f.echoes(conn); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				c.change(t, f)
				if c.reason == mesh.ReasonNoPolicy {
					time.Sleep(300 * time.Millisecond)
					if err := f.echoes(conn); err != nil {
						t.Errorf("it does not go on: %v", err)
					}
					return
				}
				if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("it ends with %v, want a reset", err)
				}
				if took := time.Since(began); took > time.Second && !testenv.Overloaded(t) {
					t.Errorf("it took %v", took)
				}
				if r := f.a.flows.wait(t, 1)[0]; r.Reason != c.reason || r.Verdict != mesh.VerdictDeny {
					t.Errorf("%v %v (%s), want %v", r.Verdict, r.Reason, r.Detail, c.reason)
				}
			})
		})
	}
}

// TestForeignRootsAreReplaced: with an overlap nothing fails; what a root vouched for that is
// gone carries nothing new, pooled connections too.
func TestForeignRootsAreReplaced(t *testing.T) {
	eachEngine(t, func(t *testing.T, kind string) {
		f := newAbroad(t, kind)
		first := f.client.client(billingApp)
		if err := f.echoes(first); err != nil {
			t.Fatal(err)
		}
		next := partner.New(t, "partner.test", time.Hour)
		both := f.ca.Bundle().X509Bundle()
		both.AddX509Authority(next.Bundle().X509Authorities()[0])
		f.others.Add(both)
		if err := f.echoes(f.client.client(billingApp)); err != nil {
			t.Fatalf("by the old root, beside the new one: %v", err)
		}
		f.others.Add(next.Bundle().X509Bundle()) // and the server still has the old one's
		f.client.refused(billingApp)
		testenv.Eventually(t, 5*time.Second, "the refusal's flow", func() bool {
			for _, r := range f.a.flows.all() {
				if r.Reason == mesh.ReasonCertificateUntrusted {
					return true
				}
			}
			return false
		})
		f.server.Become(next.SVID(t, billing))
		if err := f.echoes(f.client.client(billingApp)); err != nil {
			t.Fatalf("by the new root: %v", err)
		}
		if err := f.echoes(first); err != nil {
			t.Fatalf("what was open before ends by its certificate, not by a root: %v", err)
		}
	})
}
