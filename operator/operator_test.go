package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/publish"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const meshYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: test.example
  clusterRanges: ["10.0.0.0/8"]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
`

// workloadYAML is a workload of the service account NAME with the address 10.0.0.LAST.
func workloadYAML(name, node string, last int) string {
	return fmt.Sprintf(`apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: %[1]s, labels: {app: %[1]s}}
spec: {node: %[2]s, serviceAccount: %[1]s, addresses: ["10.0.0.%[3]d"], networkNamespace: /run/netns/%[1]s}
`, name, node, last)
}

// write replaces a file at once, as an editor does.
func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+"~", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"~", path); err != nil {
		t.Fatal(err)
	}
}

func newFolder(t testing.TB) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "mesh")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(folder, "mesh.yaml"), meshYAML)
	write(t, filepath.Join(folder, "web.yaml"), workloadYAML("web", "n1", 1))
	write(t, filepath.Join(folder, "api.yaml"), workloadYAML("api", "n2", 2))
	return folder
}

// running is an operator in this process.
type running struct {
	address string
	admin   meshpb.OperatorAdminClient
	stop    func()
}

func start(t testing.TB, folder, state string, change ...func(*Config)) *running {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "admin.sock")
	cfg := Config{Folder: folder, StateDir: state, Listener: listener, Advertise: listener.Addr().String(), AdminSocket: socket,
		Debounce: 20 * time.Millisecond, Relist: time.Hour, Version: "test", Logger: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	op, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- op.Run(ctx) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r := &running{address: listener.Addr().String(), admin: meshpb.NewOperatorAdminClient(conn)}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, conn.Close()); err != nil {
			t.Errorf("operator: %v", err)
		}
	})
	t.Cleanup(r.stop)
	testenv.Eventually(t, 10*time.Second, "the operator answers", func() bool {
		_, err := r.admin.Status(t.Context(), &meshpb.OperatorStateRequest{})
		return err == nil
	})
	return r
}

func (r *running) status(t testing.TB) *meshpb.OperatorState {
	t.Helper()
	s, err := r.admin.Status(context.Background(), &meshpb.OperatorStateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// join makes a token for a node and trades it for a credential.
func (r *running) join(t testing.TB, name, dir string) *nodeauth.Node {
	t.Helper()
	token, err := r.admin.CreateJoinToken(t.Context(), &meshpb.CreateJoinTokenRequest{Node: name})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n, err := nodeauth.Join(ctx, nodeauth.JoinConfig{NodeConfig: nodeauth.NodeConfig{Dir: dir}, Token: token.GetToken(), Node: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// agent is a discovery client with a node's credential.
type agent struct {
	*discovery.Client
	store *mesh.Store
}

func (r *running) agent(t testing.TB, n *nodeauth.Node, asks string) *agent {
	t.Helper()
	a := &agent{store: mesh.NewStore()}
	creds := nodeauth.NewClientCredentials(n.Certificate, n.Source(), identity.OperatorID(n.TrustDomain()))
	c, err := discovery.NewClient(discovery.ClientConfig{Node: asks, Target: n.Operator(), Credentials: creds, Store: a.store, Keys: n.ConfigurationKeys,
		BackoffMin: 10 * time.Millisecond, BackoffMax: 100 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	a.Client = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

func (a *agent) await(t testing.TB, what string, cond func(*mesh.View) bool) {
	t.Helper()
	testenv.Eventually(t, 10*time.Second, what, func() bool { return cond(a.store.View()) })
}

func has(name string) func(*mesh.View) bool {
	return func(v *mesh.View) bool { _, ok := v.Workload(mesh.Key{Namespace: "shop", Name: name}); return ok }
}

func TestNodesJoinAndFollowTheFolder(t *testing.T) {
	folder := newFolder(t)
	r := start(t, folder, filepath.Join(t.TempDir(), "state"))
	n1 := r.join(t, "n1", filepath.Join(t.TempDir(), "n1"))
	a := r.agent(t, n1, "n1")
	a.await(t, "the folder arrives", has("api"))
	for _, w := range a.store.View().Workloads() {
		if (w.NetNS != "") != (w.Node == "n1") {
			t.Errorf("n1 is told network namespace %q of %v", w.NetNS, w.Key)
		}
	}
	write(t, filepath.Join(folder, "cache.yaml"), workloadYAML("cache", "n1", 3))
	a.await(t, "a new file arrives", has("cache"))
	if err := os.Mkdir(filepath.Join(folder, "more"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(folder, "more", "db.yaml"), workloadYAML("db", "n2", 4))
	a.await(t, "a file in a new folder arrives", has("db"))
	if err := os.RemoveAll(filepath.Join(folder, "more")); err != nil {
		t.Fatal(err)
	}
	a.await(t, "a removal arrives", func(v *mesh.View) bool { return !has("db")(v) })
	testenv.Eventually(t, time.Minute, "the status shows the node", func() bool {
		s := r.status(t)
		return len(s.Nodes) == 1 && s.Nodes[0].Name == "n1" && s.Nodes[0].Connected && s.Nodes[0].Epoch == s.Configuration.Epoch &&
			s.Nodes[0].Revision == s.Configuration.Revision && s.Configuration.Workloads == 3
	})
}

func TestANodeCannotAskForAnother(t *testing.T) {
	r := start(t, newFolder(t), filepath.Join(t.TempDir(), "state"))
	n1 := r.join(t, "n1", filepath.Join(t.TempDir(), "n1"))
	a := r.agent(t, n1, "n2")
	testenv.Eventually(t, 10*time.Second, "refused", func() bool {
		return strings.Contains(a.Status().LastError, `node "n1" may not ask for the configuration of node "n2"`)
	})
	if a.store.View().Synced() {
		t.Error("it received a configuration")
	}
	// Nor is there anything without a certificate, but joining and health.
	conn, err := grpc.NewClient(r.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := meshpb.NewIssuingClient(conn).Sign(t.Context(), &meshpb.SignRequest{}); err == nil {
		t.Error("a call without TLS was answered")
	}
	health, err := grpc_health_v1.NewHealthClient(n1.Conn()).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || health.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v %v", health, err)
	}
}

func TestBadEditsKeepTheLastGoodConfiguration(t *testing.T) {
	folder, state := newFolder(t), filepath.Join(t.TempDir(), "state")
	r := start(t, folder, state)
	good := r.status(t).Configuration
	for name, c := range map[string]struct{ content, says string }{
		"unknown field":  {strings.Replace(workloadYAML("bad", "n1", 9), "node:", "nodde:", 1), "nodde"},
		"wrong type":     {strings.Replace(workloadYAML("bad", "n1", 9), "node: n1", "node: [1]", 1), "spec.node"},
		"address twice":  {workloadYAML("bad", "n1", 1), "10.0.0.1"},
		"same name":      {workloadYAML("web", "n1", 9), "web"},
		"no YAML":        {"{", "bad.yaml"},
		"another domain": {"", "spec.trustDomain"},
	} {
		file := filepath.Join(folder, "bad.yaml")
		if name == "another domain" {
			file = filepath.Join(folder, "mesh.yaml")
			c.content = strings.Replace(meshYAML, "test.example", "other.example", 1)
		}
		write(t, file, c.content)
		testenv.Eventually(t, time.Minute, name+" is refused", func() bool {
			return strings.Contains(strings.Join(r.status(t).Configuration.Problems, "\n"), c.says)
		})
		now := r.status(t).Configuration
		if now.Revision != good.Revision || now.Epoch != good.Epoch || now.RefusedSinceNs == 0 {
			t.Errorf("%s: %v is served, want revision %s still", name, now, good.Revision)
		}
		if name == "another domain" {
			write(t, file, meshYAML)
		} else if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, time.Minute, "in order again", func() bool { return len(r.status(t).Configuration.Problems) == 0 })
	}
	// Also across a restart, until the folder is in order.
	write(t, filepath.Join(folder, "bad.yaml"), "{")
	r.stop()
	r = start(t, folder, state)
	s := r.status(t).Configuration
	if s.Source != "last-good" || s.Revision != good.Revision || s.Epoch != good.Epoch || s.Workloads != 2 || len(s.Problems) == 0 {
		t.Errorf("after a restart with a bad folder: %v", s)
	}
	a := r.agent(t, r.join(t, "n1", filepath.Join(t.TempDir(), "n1")), "n1")
	a.await(t, "a node that joins receives it", has("web"))
	if err := os.Remove(filepath.Join(folder, "bad.yaml")); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "served from the folder", func() bool { return r.status(t).Configuration.Source == "folder" })
}

// TestJWTOverARestart: a node gets tokens of its workloads only, and what was signed before an
// operator restarted is verified by what the next one says.
func TestJWTOverARestart(t *testing.T) {
	folder, state := newFolder(t), filepath.Join(t.TempDir(), "state")
	r := start(t, folder, state)
	dir := filepath.Join(t.TempDir(), "n1")
	n1, n2 := r.join(t, "n1", dir), r.join(t, "n2", filepath.Join(t.TempDir(), "n2"))
	web := spiffeid.RequireFromString("spiffe://" + n1.TrustDomain().Name() + "/ns/shop/sa/web")
	sign := func(n *nodeauth.Node) (token string, err error) {
		testenv.Eventually(t, 20*time.Second, "the operator has a key", func() bool {
			token, _, err = nodeauth.NewClient(n.Conn()).SignJWT(t.Context(), web, []string{"a"})
			return status.Code(err) != codes.Unavailable
		})
		return token, err
	}
	token, err := sign(n1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sign(n2); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node on which it does not run: %v", err)
	}
	r.stop()
	r = start(t, folder, state)
	n1 = r.join(t, "n1", filepath.Join(t.TempDir(), "n1"))
	stream, err := meshpb.NewTrustClient(n1.Conn()).Follow(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	update, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := jwtkeys.Parse(n1.TrustDomain(), update.GetJwt())
	if err != nil {
		t.Fatal(err)
	}
	if svid, err := jwtsvid.ParseAndValidate(token, keys.Bundle, []string{"a"}); err != nil || svid.ID != web {
		t.Errorf("signed before the restart: %v", err)
	}
	all, err := r.admin.Certificates(t.Context(), &meshpb.CertificatesRequest{})
	if err != nil || len(all.GetJwtKeys()) != 1 || all.GetJwtKeys()[0].GetState() != "signs" || all.GetJwtWithheld() != "" {
		t.Errorf("the operator says %v, %v", all, err)
	}
}

func TestRestartKeepsEpochAndIdentity(t *testing.T) {
	folder, state := newFolder(t), filepath.Join(t.TempDir(), "state")
	r := start(t, folder, state)
	before := r.status(t)
	r.stop()
	r = start(t, folder, state)
	after := r.status(t)
	if after.Configuration.Epoch != before.Configuration.Epoch || after.Configuration.Revision != before.Configuration.Revision {
		t.Errorf("nothing changed, and the epoch went from %v to %v", before.Configuration, after.Configuration)
	}
	if !slices.Equal(after.Authority.RootSha256, before.Authority.RootSha256) {
		t.Error("the CA is another one")
	}
	write(t, filepath.Join(folder, "cache.yaml"), workloadYAML("cache", "n1", 3))
	testenv.Eventually(t, time.Minute, "the epoch grows", func() bool { return r.status(t).Configuration.Epoch > before.Configuration.Epoch })
}

func TestFolderThatIsASwappedLink(t *testing.T) {
	one, two := newFolder(t), newFolder(t)
	write(t, filepath.Join(two, "cache.yaml"), workloadYAML("cache", "n1", 3))
	link := filepath.Join(t.TempDir(), "current")
	if err := os.Symlink(one, link); err != nil {
		t.Fatal(err)
	}
	r := start(t, link, filepath.Join(t.TempDir(), "state"))
	swap := func(to string) {
		if err := os.Symlink(to, link+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+".new", link); err != nil {
			t.Fatal(err)
		}
	}
	await := func(n uint32) {
		t.Helper()
		testenv.Eventually(t, time.Minute, "read", func() bool { return r.status(t).Configuration.Workloads == n })
	}
	await(2)
	swap(two)
	await(3)
	write(t, filepath.Join(two, "db.yaml"), workloadYAML("db", "n1", 4)) // the new target is watched
	await(4)
	swap(one)
	await(2)
}

func TestFolderLikeAConfigMap(t *testing.T) {
	folder := newFolder(t)
	volume := func(version string, last int) {
		dir := filepath.Join(folder, ".."+version)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "mounted.yaml"), workloadYAML("mounted", "n1", last))
		if err := os.Symlink(".."+version, filepath.Join(folder, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(folder, "..data_tmp"), filepath.Join(folder, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	volume("1", 11)
	if err := os.Symlink(filepath.Join("..data", "mounted.yaml"), filepath.Join(folder, "mounted.yaml")); err != nil {
		t.Fatal(err)
	}
	r := start(t, folder, filepath.Join(t.TempDir(), "state"))
	before := r.status(t).Configuration
	if before.Workloads != 3 {
		t.Fatalf("%d workloads", before.Workloads)
	}
	volume("2", 12)
	testenv.Eventually(t, time.Minute, "the swap is seen", func() bool { return r.status(t).Configuration.Epoch > before.Epoch })
}

func TestStateDirectoryThatLetsOthersIn(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	r := start(t, newFolder(t), state)
	r.stop()
	for _, name := range []string{".", "ca", "tokens", "state.json", "last-good"} {
		path := filepath.Join(state, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is made with mode %#o", name, info.Mode().Perm())
		}
		if err := os.Chmod(path, info.Mode().Perm()|0o044); err != nil {
			t.Fatal(err)
		}
		s, err := publish.OpenState(state)
		if err == nil {
			err = errors.Join(errors.New("no error"), s.Close())
		}
		if !strings.Contains(err.Error(), "remedy: chmod") || !strings.Contains(err.Error(), filepath.Clean(path)) {
			t.Errorf("%s: got %v, want the path and the remedy", name, err)
		}
		if err := os.Chmod(path, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	held, err := publish.OpenState(state)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := publish.OpenState(state); err == nil || !strings.Contains(err.Error(), "another operator") {
		t.Errorf("two operators on one directory: %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFirstStartNeedsAGoodFolder(t *testing.T) {
	folder := t.TempDir()
	op, err := New(Config{Folder: folder, StateDir: filepath.Join(t.TempDir(), "state"), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := op.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "first time") {
		t.Errorf("got %v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("an empty configuration was taken")
	}
}

func TestJoinTokens(t *testing.T) {
	r := start(t, newFolder(t), filepath.Join(t.TempDir(), "state"))
	for _, bad := range []*meshpb.CreateJoinTokenRequest{{}, {Node: "a/b"}, {Node: "n1", LifetimeSeconds: -1}, {Node: "n1", LifetimeSeconds: 1 << 40}} {
		if _, err := r.admin.CreateJoinToken(t.Context(), bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: got %v", bad, err)
		}
	}
	created, err := r.admin.CreateJoinToken(t.Context(), &meshpb.CreateJoinTokenRequest{Node: "n1", LifetimeSeconds: 60})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin.RevokeJoinToken(t.Context(), &meshpb.RevokeJoinTokenRequest{Id: created.Id}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = nodeauth.Join(ctx, nodeauth.JoinConfig{NodeConfig: nodeauth.NodeConfig{Dir: filepath.Join(t.TempDir(), "n1")}, Token: created.Token})
	if !errors.Is(err, nodeauth.ErrJoinRefused) {
		t.Errorf("a revoked token: %v", err)
	}
	list, err := r.admin.ListJoinTokens(t.Context(), &meshpb.ListJoinTokensRequest{})
	if err != nil || len(list.Tokens) != 1 || list.Tokens[0].State != "revoked" || list.Tokens[0].Node != "n1" {
		t.Errorf("%v %v", list, err)
	}
	if _, err := r.admin.RevokeJoinToken(t.Context(), &meshpb.RevokeJoinTokenRequest{Id: "0123456789ab"}); status.Code(err) != codes.NotFound {
		t.Errorf("revoke an unknown token: %v", err)
	}
}
