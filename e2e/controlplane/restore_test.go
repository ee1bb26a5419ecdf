package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator"
	"github.com/heddle-mesh/heddle/operator/routing"
)

// shell runs the commands of documents on one cluster after the other.
type shell struct {
	t   *testing.T
	dir string // where backups lie
	bin string // kubectl and heddle
}

func newShell(t *testing.T) *shell {
	t.Helper()
	s := &shell{t: t, dir: t.TempDir(), bin: t.TempDir()}
	if err := os.Symlink(filepath.Join(filepath.Dir(kubeProgram(t)), "kubectl"), filepath.Join(s.bin, "kubectl")); err != nil {
		t.Fatal(err)
	}
	testenv.Build(t, ".", s.bin, "../../cmd/heddle")
	return s
}

// on runs a script as the administrator of a cluster.
func (s *shell) on(to *server, script string) {
	s.t.Helper()
	config := filepath.Join(s.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {token: %s}}],
  clusters: [{name: c, cluster: {server: "https://%s", insecure-skip-tls-verify: true}}]}`, adminToken, to.address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "KUBECONFIG="+config, "PATH="+s.bin+":"+os.Getenv("PATH"), "HOME="+s.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%v\n%s\n%s", err, script, out)
	}
}

// drill returns the commands of the document: those that back up, and those that
// restore.
func drill(t *testing.T) (backup, restore string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(page), "## Back up, and restore\n")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := strings.Split(section, "```")
	if !found || len(blocks) != 9 {
		t.Fatalf("operations.md has no drill of four blocks: %d parts", len(blocks))
	}
	both := func(first, second string) string {
		return strings.TrimPrefix(first, "sh\n") + strings.TrimPrefix(second, "sh\n")
	}
	return both(blocks[1], blocks[3]), both(blocks[5], blocks[7])
}

// machines are what a cluster has that is not lost with its objects: a node and
// the pods on it.
func (s *server) machines(t *testing.T) {
	t.Helper()
	s.pod(t, "heddle-system", "agent-n1", "heddle-agent", "192.0.2.11", true)
	s.pod(t, "shop", "web", "web", "10.244.1.2", false)
}

const nodeN1 = `{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}`

// agentOf is what an agent of node n1 keeps on its disk.
type agentOf struct{ dir string }

// follow runs the agent's client, as a restarted agent does, until the returned
// function is called.
func (a agentOf) follow(t *testing.T, n *nodeauth.Node, address string) (client *discovery.Client, store *mesh.Store, stop func()) {
	t.Helper()
	store = mesh.NewStore()
	client, err := discovery.NewClient(discovery.ClientConfig{Node: "n1", Target: address,
		Credentials: nodeauth.NewClientCredentials(n.Certificate, n.Source(), identity.OperatorID(n.TrustDomain())),
		Store:       store, LastGood: filepath.Join(a.dir, "last-good"), Keys: n.ConfigurationKeys, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	return client, store, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// join opens what the agent kept, or joins by its token when there is nothing; a
// token of "" can join nothing.
func (a agentOf) join(t *testing.T, address, roots, token string) *nodeauth.Node {
	t.Helper()
	for name, content := range map[string]string{"roots.pem": roots, "token": token} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	n, err := nodeauth.JoinByAccount(ctx, nodeauth.AccountConfig{NodeConfig: nodeauth.NodeConfig{Dir: filepath.Join(a.dir, "state"), Operator: address},
		Node: "n1", TokenFile: filepath.Join(a.dir, "token"), RootsFile: filepath.Join(a.dir, "roots.pem")})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// workloadCertificate has a certificate signed for the pod shop/web.
func workloadCertificate(t *testing.T, n *nodeauth.Node) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://test.example/ns/shop/sa/web")
	csr, err := identity.NewCSR(key, id)
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	testenv.Eventually(t, 60*time.Second, "a certificate is signed", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		chain, _, err = n.Sign(ctx, id, csr)
		return err == nil
	})
	return chain[0]
}

func awaitCurrent(t *testing.T, what string, c *discovery.Client, store *mesh.Store, holds func(*mesh.View) bool) {
	t.Helper()
	testenv.Eventually(t, 60*time.Second, what, func() bool { return c.Status().Current && holds(store.View()) })
}

func hasPolicy(name string) func(*mesh.View) bool {
	return func(v *mesh.View) bool {
		for _, p := range v.Policies() {
			if p.Name == name {
				return true
			}
		}
		return false
	}
}

// revision is the resource version of an object or a list: of one etcd, they are in
// the order of what was written.
func revision(t *testing.T, object map[string]any) uint64 {
	t.Helper()
	text, _, err := unstructured.NestedString(object, "metadata", "resourceVersion")
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// enrolledAfterPolicies fails when the namespace shop had its label, at any time since
// a revision, before one of its policies was there. No operator may run yet: it writes
// policies anew, with their status.
func (s *server) enrolledAfterPolicies(t *testing.T, since uint64) {
	t.Helper()
	list, _ := s.must(t, http.MethodGet, policies, "")["items"].([]any)
	if len(list) != 3 {
		t.Fatalf("%d policies are restored, want 3", len(list))
	}
	enrolled := s.labelled(t, "shop", since)
	for _, item := range list {
		policy, _ := item.(map[string]any)
		if written := revision(t, policy); written > enrolled {
			t.Errorf("shop is enrolled at revision %d, before a policy of its is written, at %d", enrolled, written)
		}
	}
}

// labelled returns the first revision, after one, at which a namespace has the label
// that enrolls it.
func (s *server) labelled(t *testing.T, namespace string, since uint64) uint64 {
	t.Helper()
	url := fmt.Sprintf("https://%s/api/v1/namespaces?watch=true&timeoutSeconds=5&resourceVersion=%d&fieldSelector=metadata.name=%s", s.address, since, namespace)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for events := json.NewDecoder(resp.Body); ; {
		var event struct{ Object map[string]any }
		if err := events.Decode(&event); err != nil {
			t.Fatalf("namespace %s has no label after the restore: %v", namespace, err)
		}
		if (&unstructured.Unstructured{Object: event.Object}).GetLabels()[v1alpha1.LabelMesh] == v1alpha1.MeshEnabled {
			return revision(t, event.Object)
		}
	}
}

const policies = "/apis/heddle.dev/v1alpha1/namespaces/shop/authorizationpolicies"

// writtenForWaypoints is what people write to have a waypoint.
const writtenForWaypoints = `kubectl apply -f - <<'E'
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {heddle.dev/waypoint: waypoint}}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: heddle-waypoint, listeners: [{name: mesh, port: 15009, protocol: heddle.dev/mesh}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{group: "", kind: Service, name: web, port: 80}], rules: [{backendRefs: [{name: web, port: 80}]}]}
E`

// through has waypoints that are in force, as operators keep them.
func through(t *testing.T, s *server) *routing.Store {
	t.Helper()
	client, err := kubernetes.NewForConfig(s.config(adminToken))
	if err != nil {
		t.Fatal(err)
	}
	return routing.NewStore(client.CoreV1(), "heddle-system", slog.New(slog.DiscardHandler))
}

// TestBackupAndRestore is the drill of operations.md, command by command: the
// objects of a cluster are lost, its nodes go on, and what was backed up is put
// onto an empty one.
func TestBackupAndRestore(t *testing.T) {
	sh := newShell(t)
	backup, restore := drill(t)
	agent := agentOf{t.TempDir()}
	var certificate *x509.Certificate
	var epoch uint64
	inForce := map[mesh.Key]mesh.Key{{Namespace: "shop", Name: "web"}: {Namespace: "shop", Name: "waypoint"}}
	t.Run("before", func(t *testing.T) {
		s := startServer(t)
		s.must(t, http.MethodPost, "/api/v1/nodes", nodeN1)
		sh.on(s, `heddle install --gateway-api --wait 0 --set mesh.trustDomain=test.example --set 'mesh.clusterRanges={10.244.0.0/16,10.96.0.0/16}'
kubectl create namespace shop && kubectl label namespace shop heddle.dev/mesh=enabled
`+writtenForWaypoints)
		if err := through(t, s).SaveThrough(t.Context(), inForce); err != nil {
			t.Fatal(err)
		}
		s.machines(t)
		address, health, _ := startOperator(t, s, "replica-0")
		testenv.Eventually(t, 60*time.Second, "the operator is ready", func() bool { return ready(health) })
		testenv.Eventually(t, 60*time.Second, "roots are published", func() bool { return s.roots() != "" })
		n := agent.join(t, address, s.roots(), s.token(t, "heddle-agent", operator.DefaultAudience, "agent-n1"))
		defer n.Close()
		client, store, stop := agent.follow(t, n, address)
		defer stop()
		// Versions that a new cluster does not come to soon.
		s.must(t, http.MethodPost, "/api/v1/namespaces/shop/configmaps", `{apiVersion: v1, kind: ConfigMap, metadata: {name: counted, namespace: shop}}`)
		for i := range 1000 {
			s.must(t, http.MethodPatch, "/api/v1/namespaces/shop/configmaps/counted", fmt.Sprintf(`{data: {i: "%d"}}`, i))
		}
		for i := range 3 {
			s.must(t, http.MethodPost, policies, fmt.Sprintf(`{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: before-%d, namespace: shop}, spec: {rules: [{from: [{namespaces: [shop]}]}]}}`, i))
		}
		awaitCurrent(t, "the agent has the policies", client, store, hasPolicy("before-2"))
		epoch = client.Status().Epoch
		certificate = workloadCertificate(t, n)
		sh.on(s, backup)
	})
	if t.Failed() {
		return
	}
	s := startServer(t)
	s.must(t, http.MethodPost, "/api/v1/nodes", nodeN1)
	empty := revision(t, s.must(t, http.MethodGet, "/api/v1/namespaces", ""))
	sh.on(s, restore)
	s.enrolledAfterPolicies(t, empty)
	sh.on(s, "kubectl -n shop get gateway/waypoint httproute/web")
	if got, err := through(t, s).LoadThrough(t.Context()); err != nil || !maps.Equal(got, inForce) {
		t.Errorf("waypoints in force: %v, %v, want %v", got, err, inForce)
	}
	s.machines(t)
	address, health, log := startOperator(t, s, "replica-0")
	testenv.Eventually(t, 60*time.Second, "the operator is ready", func() bool { return ready(health) })
	testenv.Eventually(t, 60*time.Second, "roots are published", func() bool { return s.roots() != "" })
	n := agent.join(t, address, s.roots(), "") // it cannot join: it need not
	defer n.Close()
	client, store, stop := agent.follow(t, n, address)
	defer stop()
	awaitCurrent(t, "the agent from before follows the restored operator", client, store, hasPolicy("before-2"))
	s.must(t, http.MethodPost, policies, `{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: after, namespace: shop}, spec: {rules: [{from: [{namespaces: [shop]}]}]}}`)
	awaitCurrent(t, "a policy from after is in force", client, store, hasPolicy("after"))
	if now := client.Status(); now.Epoch <= epoch || now.Refused > 0 {
		t.Errorf("epoch %d after %d, %d refused", now.Epoch, epoch, now.Refused)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(s.roots())) {
		t.Fatal("no roots")
	}
	if _, err := certificate.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("a workload's certificate from before: %v", err)
	}
	workloadCertificate(t, n) // and new ones are had
	if log.has("made a new") {
		t.Error("the operator made another CA")
	}
}
