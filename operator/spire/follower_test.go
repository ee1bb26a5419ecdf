package spire

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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

const (
	domain = "mesh.test"
	retry  = 500 * time.Millisecond
)

// mesh is an authority that follows SPIRE, and the nodes that matter to it.
type mesh struct {
	spire    *spiretest.SPIRE
	live     *rotation.Live
	follower *Follower
	dir      string
	replica  *rotation.Live // nil when there is no other

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

func (m *mesh) first(ctx context.Context) (map[string][]byte, error) { return First(ctx, m.config()) }

func liveConfig() rotation.LiveConfig {
	return rotation.LiveConfig{Authority: authority(), Poll: time.Hour, Logger: slog.New(slog.DiscardHandler)}
}

// open opens the authority of the directory.
func (m *mesh) open(t *testing.T, first func(context.Context) (map[string][]byte, error)) {
	t.Helper()
	cfg := liveConfig()
	cfg.First = first
	var err error
	if m.live, err = rotation.OpenDir(t.Context(), m.dir, cfg); err != nil {
		t.Fatal(err)
	}
}

// settle makes what follows SPIRE, with a Settle.
func (m *mesh) settle(t *testing.T, settle time.Duration) {
	t.Helper()
	var err error
	m.follower, err = NewFollower(FollowerConfig{SPIRE: m.config(), Live: m.live, Fleet: m.now, Interval: 10 * time.Millisecond, Settle: settle, Leave: 100 * time.Millisecond, Retry: retry,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
}

// begin opens the authority of a directory, of SPIRE or, with own, a root.
func begin(t *testing.T, s *spiretest.SPIRE, own bool) *mesh {
	t.Helper()
	m := &mesh{spire: s, dir: filepath.Join(t.TempDir(), "ca")}
	first := m.first
	if own {
		first = nil
	}
	m.open(t, first)
	m.settle(t, 50*time.Millisecond)
	return m
}

// beginTwo opens the authority of two replicas, of which the other polls.
func beginTwo(t *testing.T, s *spiretest.SPIRE, poll time.Duration) (*mesh, *rotation.Live) {
	t.Helper()
	m := &mesh{spire: s}
	texts, err := m.first(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.AddConfigurationKey(texts, nil); err != nil {
		t.Fatal(err)
	}
	cfg := liveConfig()
	cfg.Store = &memory{texts: texts}
	if m.live, err = rotation.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Poll = poll
	if m.replica, err = rotation.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	m.settle(t, 50*time.Millisecond)
	start(t, m.replica.Run)
	return m, m.replica
}

// memory is a Store of this process.
type memory struct {
	mu      sync.Mutex
	texts   rotation.Texts
	version int
}

func (m *memory) String() string { return "memory" }

func (m *memory) Keeper() string { return "" }

func (m *memory) Load(context.Context) (rotation.Texts, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.texts), strconv.Itoa(m.version), nil
}

func (m *memory) Save(_ context.Context, texts rotation.Texts, version string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if version != strconv.Itoa(m.version) {
		return rotation.ErrConflict
	}
	m.texts, m.version = texts, m.version+1
	return nil
}

// replaceRoot has SPIRE sign by a new root, and give the one before up.
func (m *mesh) replaceRoot(t *testing.T) *x509.Certificate {
	t.Helper()
	next := m.spire.Prepare(t)
	m.spire.Activate()
	m.spire.Revoke()
	return next
}

func (m *mesh) problem(says string) bool {
	p := m.follower.Problem()
	return p != nil && strings.Contains(p.Error(), says)
}

// run follows until the test ends.
func (m *mesh) run(t *testing.T) { start(t, m.follower.Run) }

func start(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
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
	f := rotation.Fleet{Nodes: slices.Clone(m.fleet.nodes)}
	if m.replica != nil {
		signing := m.replica.Keyring().Signing
		f.Replicas = []rotation.Replica{{Name: "other", Roots: sums(signing.Roots()...), Issuer: sums(signing.Signing())[0], Err: m.replica.Problem()}}
	}
	return f
}

func sums(certs ...*x509.Certificate) (all [][]byte) {
	for _, c := range certs {
		sum := sha256.Sum256(c.Raw)
		all = append(all, sum[:])
	}
	return all
}

// absent has the agents' connections end.
func (m *mesh) absent() {
	m.fleet.Lock()
	defer m.fleet.Unlock()
	for i := range m.fleet.nodes {
		m.fleet.nodes[i].Connected = false
	}
}

// reports has node n say that it trusts what a Keyring does, and has a certificate of an issuer.
func (m *mesh) reports(trusts *rotation.Keyring, issuer *x509.Certificate) {
	m.fleet.Lock()
	defer m.fleet.Unlock()
	m.fleet.nodes = []rotation.Node{{Name: "n1", Connected: true, Report: &meshpb.TrustReport{Roots: sums(trusts.Signing.Roots()...),
		Certificates: []*meshpb.HeldCertificate{{Identity: "spiffe://mesh.test/ns/shop/sa/web", Issuer: sums(issuer)[0]}}}}}
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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

// TestUrgent: an agent that is not connected does not take everybody with it, and one that is
// connected is waited for.
func TestUrgent(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, domain)
	s.SetLife(time.Hour, 3*time.Minute) // less than a tenth is left, and more than a fiftieth
	m := begin(t, s, false)
	first, old := m.signs(), m.live.Keyring()
	s.SetLife(time.Minute, time.Hour)
	m.reports(old, first)
	next := m.replaceRoot(t)
	m.run(t)
	testenv.Eventually(t, 10*time.Second, "the connected node holds it", func() bool { return m.problem("held by 1, such as node n1") })
	time.Sleep(200 * time.Millisecond) // several times Settle
	if !m.signs().Equal(first) {
		t.Error("the new CA signs before a connected node trusts its root")
	}
	m.absent()
	testenv.Eventually(t, 10*time.Second, "the new CA signs", func() bool { return m.live.Keyring().Signing.Root().Equal(next) })
	m.peers(t, next)
}

// TestLastMoment: when the present CA is about to end nobody is waited for, but no sooner
// than they could have learned of the root.
func TestLastMoment(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, domain)
	s.SetLife(time.Hour, 40*time.Second)
	m := begin(t, s, false)
	m.settle(t, 2*time.Second)
	first, old := m.signs(), m.live.Keyring()
	s.SetLife(time.Minute, time.Hour)
	m.reports(old, first)
	next := m.replaceRoot(t)
	m.run(t)
	testenv.Eventually(t, 10*time.Second, "the new root is trusted", func() bool { return len(m.live.Roots()) == 2 })
	trusted := time.Now()
	testenv.Eventually(t, 20*time.Second, "the new CA signs", func() bool { return m.live.Keyring().Signing.Root().Equal(next) })
	if took := time.Since(trusted); took < 1500*time.Millisecond {
		t.Errorf("the new CA signs %s after its root was trusted", took)
	}
}

// TestReplicasInTime: a replica that polls sees each state, however urgent the change is.
func TestReplicasInTime(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, domain)
	s.SetLife(time.Hour, 3*time.Minute)
	m, other := beginTwo(t, s, 500*time.Millisecond)
	m.fleet.nodes = []rotation.Node{{Name: "gone"}}
	s.SetLife(time.Minute, time.Hour)
	next := m.replaceRoot(t)
	m.run(t)
	testenv.Eventually(t, 10*time.Second, "the other replica signs by the new CA", func() bool { return other.Keyring().Signing.Root().Equal(next) })
	if problem := other.Problem(); problem != nil {
		t.Error(problem)
	}
}

// TestAfterTheEnd: when the CA has ended, running replicas take SPIRE's, with its root.
func TestAfterTheEnd(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, domain)
	s.SetLife(time.Minute, 2*time.Second)
	m, other := beginTwo(t, s, 100*time.Millisecond)
	s.SetLife(time.Minute, time.Hour)
	s.Publish(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	next := m.replaceRoot(t)
	time.Sleep(time.Until(m.signs().NotAfter) + 100*time.Millisecond)
	m.run(t)
	testenv.Eventually(t, 10*time.Second, "both sign by the new CA", func() bool {
		return m.live.Keyring().Signing.Root().Equal(next) && other.Keyring().Signing.Root().Equal(next)
	})
	m.peers(t, next)
	if !m.trusts(next) || other.Problem() != nil {
		t.Errorf("%d roots are trusted; %v", len(m.live.Roots()), other.Problem())
	}
}

// TestRestartAfterTheEnd: an authority that has ended gives way to SPIRE's at the start; the
// configuration key, which agents know, stays.
func TestRestartAfterTheEnd(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, domain)
	s.SetLife(time.Minute, 2*time.Second)
	m := begin(t, s, false)
	s.SetLife(time.Minute, time.Hour)
	next, ended := m.replaceRoot(t), m.signs()
	before, err := os.ReadFile(filepath.Join(m.dir, "configuration.key"))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(ended.NotAfter) + 100*time.Millisecond)
	m.open(t, m.first)
	if m.signs().Equal(ended) || !m.trusts(next) {
		t.Errorf("signs: %s; %d roots are trusted", m.signs().NotAfter, len(m.live.Roots()))
	}
	m.peers(t, next)
	after, err := os.ReadFile(filepath.Join(m.dir, "configuration.key"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("another configuration key: %v", err)
	}
	signs := m.signs()
	m.open(t, m.first)
	if !m.signs().Equal(signs) {
		t.Error("one that has not ended was replaced")
	}
}

// TestRevokedRoot: who holds a root that SPIRE gave up is said; and an agent that is not
// connected does so for Leave at most.
func TestRevokedRoot(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, domain)
	m := begin(t, s, false)
	old, first := s.Roots()[0], m.signs()
	next := m.replaceRoot(t)
	m.run(t)
	testenv.Eventually(t, 10*time.Second, "the new CA signs", func() bool { return m.live.Keyring().Signing.Root().Equal(next) })
	m.reports(m.live.Keyring(), first)
	says := "the end of root " + old.SerialNumber.Text(16) + ", which SPIRE gave up, is held by 1, such as node n1"
	testenv.Eventually(t, 10*time.Second, "the node is said to hold it", func() bool { return m.problem(says) })
	time.Sleep(300 * time.Millisecond) // more than Leave
	if got := metric(t, m.follower, "heddle_spire_held"); got != 1 || !m.trusts(old, next) {
		t.Errorf("heddle_spire_held is %v, %d roots are trusted while a connected node has a certificate of the old one", got, len(m.live.Roots()))
	}
	m.absent()
	testenv.Eventually(t, 10*time.Second, "the root goes without the node", func() bool { return m.trusts(next) })
	testenv.Eventually(t, 10*time.Second, "nobody holds anything", func() bool { return m.follower.Problem() == nil })
}

// TestUnusableRoots: they are named, and hold no renewal up.
func TestUnusableRoots(t *testing.T) {
	t.Parallel()
	for name, publish := range map[string]func(*spiretest.SPIRE) *x509.Certificate{
		"no key usage": func(s *spiretest.SPIRE) *x509.Certificate {
			return s.Publish(t, func(c *x509.Certificate) { c.KeyUsage = 0 })
		},
		"another trust domain": func(s *spiretest.SPIRE) *x509.Certificate {
			return s.Publish(t, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "elsewhere.test"}} })
		},
		"too many": func(s *spiretest.SPIRE) (last *x509.Certificate) {
			for range identity.MaxBundle {
				last = s.Publish(t, nil)
			}
			return last
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			s := spiretest.New(t, domain)
			s.SetLife(time.Hour, 30*time.Minute)
			bad := publish(s)
			m := begin(t, s, false)
			s.SetLife(time.Minute, 10*time.Hour)
			m.run(t)
			testenv.Eventually(t, 10*time.Second, "the next CA signs", func() bool { return time.Until(m.signs().NotAfter) > time.Hour })
			testenv.Eventually(t, 10*time.Second, "the root is named", func() bool { return m.problem(bad.SerialNumber.Text(16)) })
			if slices.ContainsFunc(m.live.Roots(), bad.Equal) || !slices.ContainsFunc(m.live.Roots(), s.Roots()[0].Equal) {
				t.Error("the root is trusted, or the one that signs is not")
			}
		})
	}
}

// TestRevokedWhilePending: a CA whose root SPIRE gave up before it signed never does.
func TestRevokedWhilePending(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, domain)
	m := begin(t, s, false)
	first := m.signs()
	m.reports(m.live.Keyring(), first)
	m.run(t)
	one := m.replaceRoot(t)
	testenv.Eventually(t, 10*time.Second, "it is held", func() bool { return s.Issued() == 2 && m.problem("is held by 1") })
	two := m.replaceRoot(t)
	testenv.Eventually(t, 20*time.Second, "another is asked for", func() bool { return s.Issued() == 3 && slices.ContainsFunc(m.live.Roots(), two.Equal) })
	m.reports(m.live.Keyring(), first)
	testenv.Eventually(t, 10*time.Second, "a new CA signs", func() bool { return !m.signs().Equal(first) })
	if root := m.live.Keyring().Signing.Root(); root.Equal(one) || !root.Equal(two) {
		t.Error("it is below the root that SPIRE gave up")
	}
}

// TestBundleLags: a CA below a root that the Workload API does not have yet is asked for once.
func TestBundleLags(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, domain)
	s.SetLag(true)
	next := s.Prepare(t)
	s.Activate()
	m := begin(t, s, true)
	m.run(t)
	testenv.Eventually(t, 10*time.Second, "SPIRE's CA signs", func() bool { return m.live.Keyring().Signing.Root().Equal(next) })
	time.Sleep(3 * retry)
	if s.Issued() != 1 {
		t.Errorf("SPIRE was asked for %d CAs", s.Issued())
	}
	s.SetLag(false)
	s.Revoke()
	testenv.Eventually(t, 10*time.Second, "the older root goes", func() bool { return m.trusts(next) })
	if s.Issued() != 1 {
		t.Errorf("SPIRE was asked for %d CAs", s.Issued())
	}
}

// TestFailureEnds: what failed and is not wanted any more is no problem.
func TestFailureEnds(t *testing.T) {
	t.Parallel()
	s := spiretest.New(t, domain)
	m := begin(t, s, true)
	if err := m.follower.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer m.follower.end()
	if err := m.follower.step(t.Context()); err != nil || m.live.Keyring().Signing.Root().Equal(m.signs()) {
		t.Fatalf("SPIRE's CA does not sign: %v", err)
	}
	m.follower.asked(errors.New("in vain"), time.Now())
	if err := m.follower.step(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestFromOwnRoot: a mesh with a CA of its own comes to SPIRE's by the same steps.
func TestFromOwnRoot(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
		"a CA for another key":         {good, change(func(r *svidpb.NewDownstreamX509CAResponse) { r.CaCertChain = r.X509Authorities }), "another key"},
		"another's root": {good, change(func(r *svidpb.NewDownstreamX509CAResponse) {
			r.X509Authorities = [][]byte{other.Roots()[0].Raw}
		}), "none of the 1 authorities"},
		"a long chain": {good, change(func(r *svidpb.NewDownstreamX509CAResponse) {
			r.CaCertChain = slices.Repeat(r.CaCertChain, identity.MaxChain)
		}), "chain of 8"},
		"more roots than are looked at": {good, change(func(r *svidpb.NewDownstreamX509CAResponse) {
			r.X509Authorities = slices.Repeat(r.X509Authorities, maxRoots+1)
		}), "authorities of 257"},
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
	t.Parallel()
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
			t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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

// below makes a CA for a key: below a root for another one, or for itself.
func below(t testing.TB, key *ecdsa.PrivateKey, itself bool) (ca, root []byte) {
	t.Helper()
	above, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if itself {
		above = key
	}
	make := func(name string, key *ecdsa.PrivateKey) []byte {
		template := func(name string) *x509.Certificate {
			return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
		}
		der, err := x509.CreateCertificate(rand.Reader, template(name), template("root"), key.Public(), above)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	if itself {
		return make("root", key), make("root", key)
	}
	return make("intermediate", key), make("root", above)
}

// TestRootAsCA: a root is no CA below SPIRE's, even for this very key.
func TestRootAsCA(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	answer := func(itself bool) *svidpb.NewDownstreamX509CAResponse {
		ca, root := below(t, key, itself)
		return &svidpb.NewDownstreamX509CAResponse{CaCertChain: [][]byte{ca}, X509Authorities: [][]byte{root}}
	}
	if _, err := parseCA(answer(false), key); err != nil {
		t.Errorf("an intermediate: %v", err)
	}
	if _, err := parseCA(answer(true), key); err == nil || !strings.Contains(err.Error(), "it is a root") {
		t.Errorf("a root: %v", err)
	}
}

// FuzzParseCA: what a server answers is an error, or a CA of this very key below a root.
func FuzzParseCA(f *testing.F) {
	// Of all processes that fuzz, since the seeds are those of one.
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{1}, 32))
	if err != nil {
		f.Fatal(err)
	}
	ca, root := below(f, key, false)
	if taken, err := parseCA(&svidpb.NewDownstreamX509CAResponse{CaCertChain: [][]byte{ca}, X509Authorities: [][]byte{root}}, key); err != nil || !bytes.Equal(taken.Cert.Raw, ca) {
		f.Fatalf("the seed is not taken: %v", err)
	}
	f.Add(ca, root, uint8(1), uint8(1))
	f.Add(root, root, uint8(1), uint8(1))
	f.Add([]byte{0x30}, root, uint8(9), uint8(40))
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
