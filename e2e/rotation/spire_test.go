package rotation_test

import (
	"crypto/x509"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/agent/uplink"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator"
	"github.com/heddle-mesh/heddle/operator/spire/spiretest"
)

// issuer is a SPIRE of the trust domain test.example, with the operator's entry.
type issuer interface {
	where() *operator.SPIRE
	roots() []*x509.Certificate
	// prepare adds a root, activate has it sign, revoke takes the one before out.
	prepare()
	activate()
	revoke()
	// stop ends server and agent.
	stop()
}

// TestSPIRE is what e2e/rotation's TestTrueSPIRE is, with SPIRE's two APIs in this process.
func TestSPIRE(t *testing.T) {
	spireIssues(t, &spireInProcess{t, spiretest.New(t, "test.example")})
}

type spireInProcess struct {
	t     *testing.T
	spire *spiretest.SPIRE
}

func (s *spireInProcess) where() *operator.SPIRE {
	return &operator.SPIRE{Server: s.spire.Server, WorkloadAPI: s.spire.WorkloadAPI}
}
func (s *spireInProcess) roots() []*x509.Certificate { return s.spire.Roots() }
func (s *spireInProcess) prepare()                   { s.spire.Prepare(s.t) }
func (s *spireInProcess) activate()                  { s.spire.Activate() }
func (s *spireInProcess) revoke()                    { s.spire.Revoke() }
func (s *spireInProcess) stop()                      { s.spire.StopServer(); s.spire.StopAgent() }

// spireIssues has SPIRE issue for two nodes whose workloads connect to each other, replaces
// SPIRE's root, and then does without SPIRE.
func spireIssues(t *testing.T, s issuer) {
	w := newWorldBelow(t, s.where())
	one, _ := w.node(1, filepath.Join(t.TempDir(), "n1"))
	two, _ := w.node(2, filepath.Join(t.TempDir(), "n2"))
	first := s.roots()[0]
	if has := rootsOf(t, one); len(has) != 1 || !has[0].Equal(first) {
		t.Fatalf("the node trusts %d roots, and not SPIRE's", len(has))
	}
	below(t, one, first)
	load := newLoad(t, one, two)
	trust := func(what string, is func([]*x509.Certificate) bool) {
		t.Helper()
		testenv.Eventually(t, patience, what, func() bool { return is(rootsOf(t, one)) && is(rootsOf(t, two)) })
	}
	_, err := w.admin.RotateCertificates(t.Context(), &meshpb.RotateCertificatesRequest{Action: begin, Kind: "root"})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "SPIRE") {
		t.Errorf("the operator rotates what is SPIRE's: %v", err)
	}

	s.prepare()
	trust("both nodes trust both roots", func(has []*x509.Certificate) bool { return len(has) == 2 })
	s.activate()
	s.revoke()
	next := s.roots()[0]
	trust("both nodes trust the new root only", func(has []*x509.Certificate) bool { return len(has) == 1 && has[0].Equal(next) })
	below(t, one, next)
	below(t, two, next)

	s.stop()
	w.stop()
	w.start()
	three, _ := w.node(3, filepath.Join(t.TempDir(), "n3"))
	below(t, three, next)
	testenv.Eventually(t, patience, "it is said that SPIRE is away", func() bool {
		return strings.Contains(w.certificates().GetProblem(), "SPIRE")
	})
	for made := load.made.Load(); load.made.Load() < made+200 && load.failed.Load() == 0; {
		time.Sleep(time.Millisecond) // the load's own pace
	}
	load.stop()
	t.Logf("%d connections, %d failed; %d pairs of leaves", load.made.Load(), load.failed.Load(), load.leaves())
	if load.failed.Load() > 0 {
		testenv.ForGood(t, "%d of %d connections failed, such as: %v", load.failed.Load(), load.made.Load(), *load.example.Load())
	}
	if load.leaves() < 2 {
		t.Errorf("the connections saw %d pairs of leaves only", load.leaves())
	}
}

func rootsOf(t *testing.T, u *uplink.Uplink) []*x509.Certificate {
	t.Helper()
	bundle, err := u.Source().GetX509BundleForTrustDomain(workload(1).TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	return bundle.X509Authorities()
}

// below verifies that an uplink's certificate is below a root alone, by nothing of the mesh's.
func below(t *testing.T, u *uplink.Uplink, root *x509.Certificate) {
	t.Helper()
	i := slices.IndexFunc([]int{1, 2, 3}, func(i int) bool { _, err := u.Source().Certificate(workload(i)); return err == nil })
	cert, err := u.Source().Certificate(workload(i + 1))
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("%s: %v", cert.Leaf.URIs[0], err)
	}
}
