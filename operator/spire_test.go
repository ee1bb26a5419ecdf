package operator

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/keys"
	"github.com/heddle-mesh/heddle/operator/spire/spiretest"
)

// TestReplicasBelowSPIRE: replicas wait for a first CA, and sign by one that one of them gets;
// a new root of SPIRE's comes to agents without an SVID that another agent would refuse; and
// each replica says when SPIRE is away.
func TestReplicasBelowSPIRE(t *testing.T) {
	spire := spiretest.New(t, "test.example")
	spire.StopAgent()
	s := newCluster(t)
	_, port, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	below := func(c *Config) { c.SPIRE = &SPIRE{Server: spire.Server, WorkloadAPI: spire.WorkloadAPI} }
	var replicas []*replica
	for name, address := range map[string]string{"heddle-operator-0": "127.0.0.1", "heddle-operator-1": "127.0.0.2"} {
		pod := podObject("heddle-system", name, "n1", address)
		pod["spec"].(object)["serviceAccountName"] = "heddle-operator"
		s.Put(t, core+"/namespaces/heddle-system/pods", pod)
		replicas = append(replicas, startReplicaOn(t, s.Config(), name, net.JoinHostPort(address, port), below))
	}
	for _, r := range replicas {
		testenv.Eventually(t, 20*time.Second, "it says what it waits for", func() bool {
			return strings.Contains(r.readiness(), "there is no CA yet") && strings.Contains(r.readiness(), spire.WorkloadAPI)
		})
	}
	if secret := s.Get(core+"/namespaces/heddle-system/secrets", keys.SecretName); secret != nil {
		t.Error("a CA was made without SPIRE")
	}
	spire.StartAgent(t)
	for _, r := range replicas {
		r.awaitReady(t)
	}
	root := spire.Roots()[0]
	signs := func(r *replica) []byte {
		c, err := r.admin.Certificates(t.Context(), &meshpb.CertificatesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range c.GetAuthority() {
			if a.GetSigns() && a.GetKind() == "intermediate" && c.GetIssuer() == "SPIRE" {
				return a.GetSha256()
			}
		}
		t.Fatalf("no intermediate signs: %v", c)
		return nil
	}
	first := signs(replicas[0])
	if !bytes.Equal(first, signs(replicas[1])) {
		t.Error("the two sign differently")
	}
	web := follow(t, replicas[0].mustJoin(t, s, "n1"), "spiffe://test.example/ns/shop/sa/web")
	api := follow(t, replicas[1].mustJoin(t, s, "n2"), "spiffe://test.example/ns/shop/sa/api")
	trusts := func(roots int) func() bool {
		return func() bool {
			for _, source := range []*identity.Source{web, api} {
				if has, held := source.Holdings(); len(has) != roots || len(held) != 1 {
					return false
				}
			}
			return true
		}
	}
	testenv.Eventually(t, 20*time.Second, "both nodes have a certificate", trusts(1))
	if has, _ := web.Holdings(); !has[0].Equal(root) {
		t.Error("the node does not trust SPIRE's root")
	}

	// Its JWT-SVIDs are SPIRE's, as each replica says.
	for _, r := range replicas {
		_, _, err := nodeauth.NewClient(r.mustJoin(t, s, "n1").Conn()).SignJWT(t.Context(), spiffeid.RequireFromString("spiffe://test.example/ns/shop/sa/web"), []string{"a"})
		if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "SPIRE") {
			t.Errorf("asked for a JWT-SVID: %v", err)
		}
	}

	next := spire.Prepare(t)
	testenv.Eventually(t, 30*time.Second, "both nodes trust both roots", trusts(2))
	spire.Activate()
	spire.Revoke()
	testenv.Eventually(t, 60*time.Second, "both nodes trust the new root only", trusts(1))
	if has, _ := api.Holdings(); !has[0].Equal(next) || bytes.Equal(first, signs(replicas[1])) {
		t.Error("it is not the new root, or the CA is the same")
	}

	// Its SVID ends in an hour: what makes it miss SPIRE at once is a root that it must leave.
	spire.StopServer()
	spire.Prepare(t)
	spire.Activate()
	spire.Revoke()
	for _, r := range replicas {
		testenv.Eventually(t, 30*time.Second, "each says that SPIRE is away", func() bool {
			c, err := r.admin.Certificates(t.Context(), &meshpb.CertificatesRequest{})
			return err == nil && strings.Contains(c.GetProblem(), "ask the SPIRE server at "+spire.Server)
		})
	}
}
