package spire

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/rotation"
	"github.com/heddle-mesh/heddle/operator/spire/spiretest"
	"github.com/heddle-mesh/heddle/operator/spire/svidpb"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const domain = "mesh.test"

// mesh is an authority that follows SPIRE, and the nodes that matter to it.
type mesh struct {
	spire    *spiretest.SPIRE
	live     *rotation.Live
	follower *Follower

	fleet struct {
		sync.Mutex
		nodes []rotation.Node
	}
}

func authority() identity.AuthorityConfig {
	return identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString(domain)}
}

func (m *mesh) config() Config {
	return Config{TrustDomain: authority().TrustDomain, Server: m.spire.Server, WorkloadAPI: m.spire.WorkloadAPI}
}

// begin opens the authority of a directory, of SPIRE or, with own, a root.
func begin(t *testing.T, s *spiretest.SPIRE, own bool) *mesh {
	t.Helper()
	m := &mesh{spire: s}
	cfg := rotation.LiveConfig{Authority: authority(), Poll: time.Hour, Logger: slog.New(slog.DiscardHandler)}
	if !own {
		cfg.First = func(ctx context.Context) (map[string][]byte, error) { return First(ctx, m.config()) }
	}
	var err error
	if m.live, err = rotation.OpenDir(t.Context(), filepath.Join(t.TempDir(), "ca"), cfg); err != nil {
		t.Fatal(err)
	}
	m.follower, err = NewFollower(FollowerConfig{SPIRE: m.config(), Live: m.live, Fleet: m.now, Interval: 10 * time.Millisecond, Settle: 50 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// run follows until the test ends.
func (m *mesh) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.follower.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (m *mesh) now(context.Context) rotation.Fleet {
	m.fleet.Lock()
	defer m.fleet.Unlock()
	return rotation.Fleet{Nodes: slices.Clone(m.fleet.nodes)}
}

// reports has node n say that it trusts what a Keyring does, and has a certificate of an issuer.
func (m *mesh) reports(trusts *rotation.Keyring, issuer *x509.Certificate) {
	var roots [][]byte
	for _, root := range trusts.Signing.Roots() {
		sum := sha256.Sum256(root.Raw)
		roots = append(roots, sum[:])
	}
	by := sha256.Sum256(issuer.Raw)
	m.fleet.Lock()
	defer m.fleet.Unlock()
	m.fleet.nodes = []rotation.Node{{Name: "n1", Connected: true, Report: &meshpb.TrustReport{Roots: roots,
		Certificates: []*meshpb.HeldCertificate{{Identity: "spiffe://mesh.test/ns/shop/sa/web", Issuer: by[:]}}}}}
}

func (m *mesh) signs() *x509.Certificate { return m.live.Keyring().Signing.Signing() }

func (m *mesh) trusts(roots ...*x509.Certificate) bool {
	has := m.live.Roots()
	return len(has) == len(roots) && len(minus(roots, has)) == 0
}

// peers verifies what signs by the roots alone, as an agent does.
func (m *mesh) peers(t *testing.T, root *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/web")
	csr, err := identity.NewCSR(key, id)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := m.live.SignCSR(csr, id, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(id.TrustDomain(), []*x509.Certificate{root})); err != nil || got != id {
		t.Errorf("%s, %v: is not below SPIRE's root", got, err)
	}
	if end := m.signs().NotAfter; chain[0].NotAfter.After(end) {
		t.Errorf("ends at %s, after the CA, which ends at %s", chain[0].NotAfter, end)
	}
}

func TestFirstAndRenewal(t *testing.T) {
	s := spiretest.New(t, domain)
	m := begin(t, s, false)
	first := m.signs()
	if identity.IsRoot(first) || !m.trusts(s.Roots()...) {
		t.Fatalf("what signs is %s, and %d roots are trusted", first.Subject, len(m.live.Roots()))
	}
	m.peers(t, s.Roots()[0])
	m.run(t)
	time.Sleep(100 * time.Millisecond)
	if !m.signs().Equal(first) || s.Issued() != 1 {
		t.Errorf("SPIRE was asked %d times for a CA that has half of its life left", s.Issued())
	}
}

// TestHalfLife: a CA that is past it is replaced at once where the root is the same, whoever
// reports what; but not by one that lasts hardly longer.
func TestHalfLife(t *testing.T) {
	s := spiretest.New(t, domain)
	s.SetLife(time.Minute, 30*time.Second)
	m := begin(t, s, false)
	m.fleet.nodes = []rotation.Node{{Name: "gone"}}
	first := m.signs()
	m.run(t)
	testenv.Eventually(t, 10*time.Second, "SPIRE is asked", func() bool { return s.Issued() == 2 })
	time.Sleep(200 * time.Millisecond)
	if !m.signs().Equal(first) || s.Issued() != 2 {
		t.Errorf("replaced by one that lasts no longer, or asked for %d times", s.Issued())
	}
	s.SetLife(time.Minute, time.Hour)
	testenv.Eventually(t, 20*time.Second, "one that lasts signs", func() bool { return time.Until(m.signs().NotAfter) > time.Minute })
	m.peers(t, s.Roots()[0])
}

// TestRootOfSPIRE: a new root of SPIRE's is trusted first, signs when the node trusts it, and
// the old one goes when the node has nothing of it.
func TestRootOfSPIRE(t *testing.T) {
	s := spiretest.New(t, domain)
	m := begin(t, s, false)
	old := s.Roots()[0]
	first := m.signs()
	m.reports(m.live.Keyring(), first)
	m.run(t)
	next := s.Prepare(t)
	testenv.Eventually(t, 10*time.Second, "both are trusted", func() bool { return m.trusts(old, next) })
	s.Activate()
	s.Revoke()
	testenv.Eventually(t, 10*time.Second, "the node holds it", func() bool {
		p := m.follower.Problem()
		return p != nil && strings.Contains(p.Error(), "held by 1, such as node n1")
	})
	time.Sleep(100 * time.Millisecond)
	if !m.signs().Equal(first) || !m.trusts(old, next) {
		t.Error("the new CA signs, or a root went, before the node trusts the new root")
	}
	if got := metric(t, m.follower, "heddle_spire_held"); got != 1 {
		t.Errorf("heddle_spire_held is %v", got)
	}
	m.reports(m.live.Keyring(), first)
	testenv.Eventually(t, 10*time.Second, "the new CA signs", func() bool { return m.live.Keyring().Signing.Root().Equal(next) })
	m.peers(t, next)
	time.Sleep(200 * time.Millisecond)
	if !m.trusts(old, next) {
		t.Error("the old root went while the node has a certificate of it")
	}
	m.reports(m.live.Keyring(), m.signs())
	testenv.Eventually(t, 10*time.Second, "the old root goes", func() bool { return m.trusts(next) })
	if p := m.follower.Problem(); p != nil || s.Issued() != 2 {
		t.Errorf("%v, and SPIRE was asked %d times", p, s.Issued())
	}
}

// TestUrgent: a node that never reports does not take everybody with it.
func TestUrgent(t *testing.T) {
	s := spiretest.New(t, domain)
	s.SetLife(30*time.Second, 14*time.Second) // a quarter is left in 3 s
	m := begin(t, s, false)
	m.fleet.nodes = []rotation.Node{{Name: "gone"}}
	s.SetLife(time.Minute, time.Hour)
	next := s.Prepare(t)
	s.Activate()
	s.Revoke()
	m.run(t)
	testenv.Eventually(t, 10*time.Second, "it is held", func() bool { return m.follower.Problem() != nil })
	testenv.Eventually(t, 10*time.Second, "the new CA signs before the old one ends", func() bool { return m.live.Keyring().Signing.Root().Equal(next) })
	m.peers(t, next)
}

// TestFromOwnRoot: a mesh with a CA of its own comes to SPIRE's by the same steps.
func TestFromOwnRoot(t *testing.T) {
	s := spiretest.New(t, domain)
	m := begin(t, s, true)
	own, root := m.signs(), s.Roots()[0]
	m.reports(m.live.Keyring(), own)
	m.run(t)
	testenv.Eventually(t, 10*time.Second, "both roots are trusted", func() bool { return m.trusts(own, root) })
	if !m.signs().Equal(own) {
		t.Error("SPIRE's CA signs before the node trusts its root")
	}
	m.reports(m.live.Keyring(), own)
	testenv.Eventually(t, 10*time.Second, "SPIRE's CA signs", func() bool { return m.live.Keyring().Signing.Root().Equal(root) })
	m.reports(m.live.Keyring(), m.signs())
	testenv.Eventually(t, 10*time.Second, "the own root goes", func() bool { return m.trusts(root) })
	m.peers(t, root)
}

// TestWithoutSPIRE: what there is signs on, the reason is said, and what SPIRE says later is
// followed.
func TestWithoutSPIRE(t *testing.T) {
	s := spiretest.New(t, domain)
	s.SetLife(time.Hour, time.Minute)
	m := begin(t, s, false)
	s.SetLife(time.Minute, time.Hour)
	s.StopServer()
	m.run(t)
	testenv.Eventually(t, 20*time.Second, "it is said", func() bool {
		p := m.follower.Problem()
		return p != nil && strings.Contains(p.Error(), "ask the SPIRE server at "+s.Server) && strings.Contains(p.Error(), "remedy")
	})
	if got := metric(t, m.follower, "heddle_spire_failing"); got != 1 {
		t.Errorf("heddle_spire_failing is %v", got)
	}
	m.peers(t, s.Roots()[0])
	// Roots are followed meanwhile.
	next := s.Prepare(t)
	testenv.Eventually(t, 10*time.Second, "the new root is trusted", func() bool { return slices.ContainsFunc(m.live.Roots(), next.Equal) })
	s.StartServer(t)
	testenv.Eventually(t, 30*time.Second, "SPIRE is followed again", func() bool {
		return m.follower.Problem() == nil && time.Until(m.signs().NotAfter) > time.Minute
	})
}

func TestAgentIsNotThere(t *testing.T) {
	s := spiretest.New(t, domain)
	m := begin(t, s, true)
	s.StopAgent()
	m.run(t)
	testenv.Eventually(t, 20*time.Second, "it is said", func() bool {
		p := m.follower.Problem()
		return p != nil && strings.Contains(p.Error(), "ask the SPIRE agent at "+s.WorkloadAPI) && strings.Contains(p.Error(), "remedy")
	})
	s.StartAgent(t)
	testenv.Eventually(t, 30*time.Second, "SPIRE is followed", func() bool { return m.live.Keyring().Signing.Root().Equal(s.Roots()[0]) })
}

// TestRefusedAnswers: what is not SPIRE's, or not usable, is taken from nobody.
func TestRefusedAnswers(t *testing.T) {
	s := spiretest.New(t, domain)
	other := spiretest.New(t, domain)
	elsewhere := spiretest.New(t, "elsewhere.test")
	good := Config{TrustDomain: authority().TrustDomain, Server: s.Server, WorkloadAPI: s.WorkloadAPI}
	change := func(f func(*svidpb.NewDownstreamX509CAResponse)) func() { return func() { s.SetAnswer(f) } }
	for name, c := range map[string]struct {
		cfg    Config
		before func()
		says   string
	}{
		"another trust domain's agent": {Config{good.TrustDomain, s.Server, elsewhere.WorkloadAPI}, nil, "says that the operator is spiffe://elsewhere.test/heddle/operator"},
		"another SPIRE's server":       {Config{good.TrustDomain, other.Server, s.WorkloadAPI}, nil, "certificate signed by unknown authority"},
		"a workload as the server":     {good, func() { s.SetServerID("/ns/shop/sa/web") }, "unexpected ID"},
		"an entry without downstream":  {good, func() { s.SetDownstream(false) }, "marked as downstream"},
		"no chain":                     {good, change(func(r *svidpb.NewDownstreamX509CAResponse) { r.CaCertChain = nil }), "chain of 0"},
		"no roots":                     {good, change(func(r *svidpb.NewDownstreamX509CAResponse) { r.X509Authorities = nil }), "authorities of 0"},
		"garbage":                      {good, change(func(r *svidpb.NewDownstreamX509CAResponse) { r.CaCertChain = [][]byte{{1, 2}} }), "chain, certificate 0"},
		"a root as the CA":             {good, change(func(r *svidpb.NewDownstreamX509CAResponse) { r.CaCertChain = r.X509Authorities }), "another key"},
		"another's root": {good, change(func(r *svidpb.NewDownstreamX509CAResponse) {
			r.X509Authorities = [][]byte{other.Roots()[0].Raw}
		}), "none of the 1 authorities"},
		"a long chain": {good, change(func(r *svidpb.NewDownstreamX509CAResponse) {
			r.CaCertChain = slices.Repeat(r.CaCertChain, identity.MaxChain)
		}), "chain of 8"},
		"more roots than nodes take": {good, change(func(r *svidpb.NewDownstreamX509CAResponse) {
			r.X509Authorities = slices.Repeat(r.X509Authorities, identity.MaxBundle+1)
		}), "authorities of 33"},
		"an answer without end": {good, change(func(r *svidpb.NewDownstreamX509CAResponse) {
			r.CaCertChain = append(r.CaCertChain, make([]byte, maxAnswer))
		}), "larger than max"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			s.SetServerID("/spire/server")
			s.SetDownstream(true)
			s.SetAnswer(nil)
			if _, err := First(t.Context(), good); err != nil {
				t.Fatalf("before: %v", err)
			}
			if c.before != nil {
				c.before()
			}
			if _, err := First(t.Context(), c.cfg); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

// TestRefusedCA: one that the authority would refuse leaves the present one where it is.
func TestRefusedCA(t *testing.T) {
	for says, shape := range map[string]func(*x509.Certificate){
		"not a CA certificate": func(c *x509.Certificate) { c.IsCA = false },
		"certificate signing":  func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign },
		"is of spiffe://elsewhere.test": func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "elsewhere.test"}}
		},
		"is not valid": func(c *x509.Certificate) {
			c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"elsewhere.test"}, true
		},
	} {
		t.Run(strings.ReplaceAll(says, " ", "_"), func(t *testing.T) {
			s := spiretest.New(t, domain)
			m := begin(t, s, true)
			own := m.signs()
			s.SetTemplate(shape)
			m.run(t)
			testenv.Eventually(t, 20*time.Second, "it is refused", func() bool {
				p := m.follower.Problem()
				return p != nil && strings.Contains(p.Error(), says)
			})
			if !m.signs().Equal(own) {
				t.Error("it signs")
			}
			s.SetTemplate(nil)
			testenv.Eventually(t, 30*time.Second, "the next signs", func() bool { return m.follower.Problem() == nil && !m.signs().Equal(own) })
		})
	}
}

// TestRotationUnderWay: it is not written into.
func TestRotationUnderWay(t *testing.T) {
	s := spiretest.New(t, domain)
	m := begin(t, s, true)
	rotator, err := rotation.NewRotator(rotation.RotatorConfig{Live: m.live, Fleet: m.now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := rotator.Begin(t.Context(), rotation.KindRoot, false); err != nil {
		t.Fatal(err)
	}
	m.run(t)
	testenv.Eventually(t, 20*time.Second, "it is said", func() bool {
		p := m.follower.Problem()
		return p != nil && strings.Contains(p.Error(), "heddle certs rotate --abort")
	})
	if _, _, err := rotator.Abort(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, "SPIRE is followed", func() bool { return m.live.Keyring().Signing.Root().Equal(s.Roots()[0]) })
}

// TestLeavingSPIRE: without a Follower, a rotation makes a root of Heddle's own, below which
// an intermediate signs as before.
func TestLeavingSPIRE(t *testing.T) {
	s := spiretest.New(t, domain)
	m := begin(t, s, false)
	rotator, err := rotation.NewRotator(rotation.RotatorConfig{Live: m.live, Fleet: m.now, Interval: 10 * time.Millisecond, Settle: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := rotator.Begin(t.Context(), rotation.KindRoot, false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- rotator.Run(ctx) }()
	testenv.Eventually(t, 20*time.Second, "it is complete", func() bool { return m.live.Keyring().How == "completed" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	root := m.live.Keyring().Signing.Root()
	if root.Equal(s.Roots()[0]) || !m.trusts(root) || identity.IsRoot(m.signs()) {
		t.Errorf("%d roots are trusted, and SPIRE's may be among them", len(m.live.Roots()))
	}
	m.peers(t, root)
}

func metric(t *testing.T, f *Follower, name string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(f.Collector()); err != nil {
		t.Fatal(err)
	}
	if n, err := testutil.GatherAndCount(registry, "heddle_spire_failing", "heddle_spire_held"); err != nil || n != 2 {
		t.Fatalf("%d metrics, %v", n, err)
	}
	all, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range all {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// FuzzParseCA: what a server answers is an error, or a CA of this very key below a root.
func FuzzParseCA(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	root := spiretest.New(f, domain).Roots()[0]
	f.Add(root.Raw, root.Raw, uint8(1), uint8(1))
	f.Add([]byte{0x30}, root.Raw, uint8(9), uint8(40))
	f.Fuzz(func(t *testing.T, cert, authority []byte, chain, roots uint8) {
		answer := &svidpb.NewDownstreamX509CAResponse{CaCertChain: slices.Repeat([][]byte{cert}, int(chain)), X509Authorities: slices.Repeat([][]byte{authority}, int(roots))}
		ca, err := parseCA(answer, key)
		if (ca == nil) != (err != nil) {
			t.Fatalf("%v and %v", ca, err)
		}
		if ca != nil && (!bytes.Equal(ca.Cert.Raw, cert) || !identity.IsRoot(ca.Root)) {
			t.Fatal(fmt.Sprint("taken: ", ca.Cert.Subject))
		}
	})
}
