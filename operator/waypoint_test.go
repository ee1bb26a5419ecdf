package operator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
	"github.com/heddle-mesh/heddle/operator/keys"
	"github.com/heddle-mesh/heddle/waypoint/feed"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
)

func gate() mesh.Key { return mesh.Key{Namespace: "shop", Name: "gate"} }

// waypoint is a waypoint's feed in this process.
type waypoint struct {
	*feed.Feed
	store *snapshot.Store
	stop  func()
}

func startFeed(t testing.TB, cfg feed.Config) *waypoint {
	t.Helper()
	if cfg.Waypoint == (mesh.Key{}) {
		cfg.Waypoint = gate()
	}
	w := &waypoint{store: snapshot.NewStore(cfg.Waypoint)}
	cfg.Store, cfg.Logger = w.store, slog.New(slog.DiscardHandler)
	var err error
	if w.Feed, err = feed.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(w.stop)
	return w
}

func (w *waypoint) await(t testing.TB, what string, is func(*snapshot.Snapshot) bool) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("the waypoint: %+v", w.Status())
		}
	}()
	testenv.Eventually(t, 20*time.Second, what, func() bool { return is(w.store.Load()) })
}

func (w *waypoint) awaitRefused(t testing.TB, why string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("the waypoint: %+v", w.Status())
		}
	}()
	testenv.Eventually(t, 20*time.Second, "refused: "+why, func() bool { return strings.Contains(w.Status().LastError, why) })
	if w.Synced() == nil || w.store.Load().Synced() {
		t.Error("a waypoint that is refused has a configuration")
	}
}

func write600(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// routed is a mesh of a folder: shop/cart has the waypoint shop/gate, and a route.
const routed = `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: gate}
spec: {clusterIP: 10.1.0.1, selector: {app: gate}, ports: [{port: 15009}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart, labels: {heddle.dev/waypoint: gate}}
spec: {clusterIP: 10.1.0.2, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: apart}
spec: {clusterIP: 10.1.0.3, selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: cart}
spec:
  parentRefs: [{group: "", kind: Service, name: cart}]
  rules:
  - matches: [{path: {type: PathPrefix, value: PATH}}]
    backendRefs: [{name: cart, port: 80}]
`

func newRoutedFolder(t testing.TB) string {
	t.Helper()
	folder := newFolder(t)
	write(t, filepath.Join(folder, "gate.yaml"), workloadYAML("gate", "n1", 3))
	write(t, filepath.Join(folder, "routed.yaml"), strings.ReplaceAll(routed, "PATH", "/cart"))
	return folder
}

// pathOf is what the first rule of the first route matches.
func pathOf(s *snapshot.Snapshot) string {
	if len(s.Routes) == 0 {
		return ""
	}
	return s.Routes[0].Rules[0].Matches[0].Path.Value
}

// TestWaypointOfAFolder: a waypoint joins by a token that names it, is told what it needs,
// follows, and goes on without an operator, also after a restart.
func TestWaypointOfAFolder(t *testing.T) {
	folder, state := newRoutedFolder(t), filepath.Join(t.TempDir(), "state")
	r := start(t, folder, state)
	made, err := r.admin.CreateJoinToken(t.Context(), &meshpb.CreateJoinTokenRequest{Node: "waypoint/shop/gate"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := feed.Config{TokenFile: write600(t, filepath.Join(dir, "token"), made.GetToken()+"\n"), StateDir: filepath.Join(dir, "state")}
	w := startFeed(t, cfg)
	if w.Synced() == nil {
		t.Error("synced before there is a configuration")
	}
	w.await(t, "the route is there", func(s *snapshot.Snapshot) bool { return pathOf(s) == "/cart" })
	view := w.store.Load().View
	var services, workloads []string
	for _, s := range view.Services() {
		services = append(services, s.Key.String())
	}
	for _, one := range view.Workloads() {
		workloads = append(workloads, one.Key.String())
	}
	if !slices.Equal(services, []string{"shop/cart", "shop/gate"}) || !slices.Equal(workloads, []string{"shop/gate", "shop/web"}) {
		t.Errorf("told of the services %v and the workloads %v", services, workloads)
	}
	if err := w.Synced(); err != nil {
		t.Error(err)
	}

	write(t, filepath.Join(folder, "routed.yaml"), strings.ReplaceAll(routed, "PATH", "/basket"))
	w.await(t, "the route has changed", func(s *snapshot.Snapshot) bool { return pathOf(s) == "/basket" })
	// A route that cannot be served refuses the folder, and what was good goes on.
	write(t, filepath.Join(folder, "routed.yaml"), strings.ReplaceAll(routed, "PATH", "//"))
	testenv.Eventually(t, 10*time.Second, "the folder is refused", func() bool {
		problems := r.status(t).GetConfiguration().GetProblems()
		return len(problems) == 1 && strings.Contains(problems[0], "routed.yaml:") && strings.Contains(problems[0], "HTTPRoute shop/cart") && strings.Contains(problems[0], "spec.rules[0].matches[0].path.value")
	})
	if got := pathOf(w.store.Load()); got != "/basket" {
		t.Errorf("after a bad folder the path is %q", got)
	}
	// A waypoint is no node: neither the status nor a rotation counts it.
	if nodes := r.status(t).GetNodes(); len(nodes) != 0 {
		t.Errorf("nodes %v", nodes)
	}
	if all := r.status(t).GetWaypoints(); len(all) != 1 || all[0].GetName() != "shop/gate/"+made.GetId() || all[0].GetRevision() != w.Status().Revision {
		t.Errorf("waypoints %v", all)
	}

	// Whoever has the token after it was used is nobody.
	thief := startFeed(t, feed.Config{TokenFile: cfg.TokenFile, StateDir: t.TempDir()})
	thief.awaitRefused(t, "used already")
	thief.stop()

	// An operator that restarts with a folder that it refuses goes on with its own last good.
	r.stop()
	testenv.Eventually(t, 10*time.Second, "disconnected", func() bool { return !w.Status().Connected })
	if pathOf(w.store.Load()) != "/basket" || w.Synced() != nil {
		t.Error("without the operator nothing is left")
	}
	w.stop()
	again := startFeed(t, cfg)
	again.await(t, "booted", func(s *snapshot.Snapshot) bool { return pathOf(s) == "/basket" })
	if !again.Status().FromLastGood {
		t.Errorf("%+v", again.Status())
	}
	again.stop()
	cfg.Operator = start(t, folder, state).address
	again = startFeed(t, cfg)
	testenv.Eventually(t, 20*time.Second, "connected to the operator that has begun anew", func() bool { return again.Status().Current })
	if pathOf(again.store.Load()) != "/basket" {
		t.Errorf("%+v", again.store.Load())
	}
}

// TestWaypointsTokenIsNoNodes: it lets nobody have a certificate.
func TestWaypointsTokenIsNoNodes(t *testing.T) {
	r := start(t, newRoutedFolder(t), filepath.Join(t.TempDir(), "state"))
	made, err := r.admin.CreateJoinToken(t.Context(), &meshpb.CreateJoinTokenRequest{Node: "waypoint/shop/gate"})
	if err != nil {
		t.Fatal(err)
	}
	token, err := jointoken.Parse(made.GetToken())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"waypoint/shop/gate", "gate", "n1"} {
		conn, err := grpc.NewClient(r.address, grpc.WithTransportCredentials(nodeauth.NewPinnedCredentials(token.CASHA256, identity.OperatorID(token.TrustDomain), func(error) {})))
		if err != nil {
			t.Fatal(err)
		}
		_, err = meshpb.NewIssuingClient(conn).Join(t.Context(), &meshpb.JoinRequest{Secret: token.Secret[:], Node: name, Csr: csrOf(t, "spiffe://test.example/node/n1")})
		if code := status.Code(err); code != codes.InvalidArgument && code != codes.PermissionDenied {
			t.Errorf("joining as %s: %v", name, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

func csrOf(t testing.TB, id string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSR(key, spiffeid.RequireFromString(id))
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// newGatedCluster is newCluster with the waypoint shop/gate, of one pod, for shop/cart.
func newGatedCluster(t testing.TB) *clustertest.Server {
	t.Helper()
	s := newCluster(t)
	pod := podObject("shop", "gate", "n1", "10.0.0.3")
	pod["metadata"].(object)["uid"] = "uid-gate"
	s.Put(t, core+"/namespaces/shop/pods", pod)
	for i, name := range []string{"gate", "cart"} {
		labels := object{}
		if name == "cart" {
			labels["heddle.dev/waypoint"] = "gate"
		}
		s.Put(t, core+"/namespaces/shop/services", object{"apiVersion": "v1", "kind": "Service", "metadata": meta("shop", name, labels),
			"spec": object{"clusterIP": []string{"10.1.0.1", "10.1.0.2"}[i], "selector": object{"app": []string{"gate", "web"}[i]}, "ports": []any{object{"port": 80, "targetPort": []int{15009, 8080}[i]}}}})
	}
	// A token is POD/UID@AUDIENCE of a pod of the namespace shop, and is what it says; without
	// a UID it is a node's.
	agents := s.Review
	s.Review = func(token string, audiences []string) object {
		pod, audience, _ := strings.Cut(token, "@")
		name, uid, ok := strings.Cut(pod, "/")
		if !ok {
			return agents(token, audiences)
		}
		if audience != audiences[0] {
			return object{"authenticated": false, "error": "token audiences are invalid for the target audiences"}
		}
		return object{"authenticated": true, "audiences": []string{audience}, "user": object{"username": "system:serviceaccount:shop:" + name,
			"extra": object{"authentication.kubernetes.io/pod-name": []string{name}, "authentication.kubernetes.io/pod-uid": []string{uid}, "authentication.kubernetes.io/node-name": []string{"n1"}}}}
	}
	return s
}

// mounted are the files of a waypoint's pod.
func mounted(t testing.TB, s *clustertest.Server, r *replica, token string) feed.Config {
	t.Helper()
	testenv.Eventually(t, 10*time.Second, "roots are published", func() bool { return s.Get(core+"/namespaces/heddle-system/configmaps", keys.RootsName) != nil })
	roots := s.Get(core+"/namespaces/heddle-system/configmaps", keys.RootsName)["data"].(map[string]any)[keys.RootsKey].(string)
	dir := t.TempDir()
	return feed.Config{Operator: r.address, StateDir: filepath.Join(dir, "state"),
		TokenFile: write600(t, filepath.Join(dir, "token"), token), RootsFile: write600(t, filepath.Join(dir, "roots.pem"), roots)}
}

// TestWaypointOfACluster: a pod of a waypoint proves who it is by its token, follows, and goes
// on where it was when the operator is another one.
func TestWaypointOfACluster(t *testing.T) {
	s := newGatedCluster(t)
	address := freeAddress(t)
	r := startReplicaOn(t, s.Config(), "operator-1", address)
	r.awaitReady(t)
	cfg := mounted(t, s, r, "gate/uid-gate@heddle-operator")
	w := startFeed(t, cfg)
	web := mesh.Key{Namespace: "shop", Name: "web"}
	w.await(t, "web is known and ready", func(s *snapshot.Snapshot) bool { w, ok := s.View.Workload(web); return ok && w.Ready })
	if _, known := w.store.Load().View.Workload(mesh.Key{Namespace: "shop", Name: "api"}); known {
		t.Error("the waypoint is told of a workload that it sends nothing to")
	}
	pod := podObject("shop", "web", "n1", "10.0.0.1")
	pod["status"].(object)["conditions"] = []any{object{"type": "Ready", "status": "False"}}
	s.Put(t, core+"/namespaces/shop/pods", pod)
	w.await(t, "web is not ready", func(s *snapshot.Snapshot) bool { w, ok := s.View.Workload(web); return ok && !w.Ready })

	before := w.Status()
	r.stop()
	http.DefaultClient.CloseIdleConnections()
	r = startReplicaOn(t, s.Config(), "operator-2", address)
	r.awaitReady(t)
	testenv.Eventually(t, 40*time.Second, "connected again", func() bool { now := w.Status(); return now.Current && now.Connects > before.Connects })
	if now := w.Status(); now.Revision != before.Revision || now.AppliedAt != before.AppliedAt && now.Epoch == before.Epoch {
		t.Errorf("%+v, before it was %+v", now, before)
	}
	// Without the right pod's token, nothing of a waypoint's comes, and no certificate ever does.
	for token, why := range map[string]string{
		"web/uid-web@heddle-operator":  "pod shop/web is no endpoint of Service shop/gate",
		"gate/uid-old@heddle-operator": "pod shop/gate is no endpoint of Service shop/gate",
		"gate/uid-gate@vault":          "the API server does not accept the token",
		"":                             "a waypoint proves who it is by a token",
	} {
		impostor := startFeed(t, mounted(t, s, r, token))
		impostor.awaitRefused(t, why)
		impostor.stop()
	}
	// A Service that nobody wants for a waypoint is none, though the pod is its endpoint.
	s.Put(t, core+"/namespaces/shop/services", object{"apiVersion": "v1", "kind": "Service", "metadata": meta("shop", "plain", object{}),
		"spec": object{"clusterIP": "10.1.0.9", "selector": object{"app": "gate"}, "ports": []any{object{"port": 80, "targetPort": 8080}}}})
	claims := mounted(t, s, r, "gate/uid-gate@heddle-operator")
	claims.Waypoint = mesh.Key{Namespace: "shop", Name: "plain"}
	impostor := startFeed(t, claims)
	impostor.awaitRefused(t, "nobody asks for Service shop/plain as a waypoint")
	impostor.stop()
	bundle, err := nodeauth.ReadRoots(cfg.RootsFile)
	if err != nil {
		t.Fatal(err)
	}
	none := func() (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	conn, err := grpc.NewClient(r.address, grpc.WithTransportCredentials(nodeauth.NewClientCredentials(none, bundle, identity.OperatorID(bundle.TrustDomain()))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	issuing := meshpb.NewIssuingClient(conn)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer gate/uid-gate@heddle-operator")
	if _, err := issuing.Join(ctx, &meshpb.JoinRequest{Node: "n1", Csr: csrOf(t, "spiffe://test.example/node/n1")}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("joining by a waypoint's token: %v", err)
	}
	if _, err := issuing.Sign(ctx, &meshpb.SignRequest{Identity: "spiffe://test.example/ns/shop/sa/gate", Csr: csrOf(t, "spiffe://test.example/ns/shop/sa/gate")}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a certificate by a waypoint's token: %v", err)
	}
}

// TestPolicyAboutRequestsIsLiveAtItsWaypoint: who enforces a policy about requests is the waypoint,
// so that without it the policy is not live, whatever the nodes have.
func TestPolicyAboutRequestsIsLiveAtItsWaypoint(t *testing.T) {
	s := newGatedCluster(t)
	policies := heddle + "/namespaces/shop/authorizationpolicies"
	for name, to := range map[string]object{"readers": {"methods": []any{"GET"}}, "port": {"ports": []any{8080}}} {
		s.Put(t, policies, object{"apiVersion": "heddle.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": meta("shop", name, nil),
			"spec": object{"selector": object{"matchLabels": object{"app": "web"}}, "rules": []any{object{"to": []any{to}}}}})
	}
	r := startReplica(t, s, "heddle-operator-0")
	r.awaitReady(t)
	r.agent(t, r.mustJoin(t, s, "n1"), "n1")
	says := func(name, want string) {
		t.Helper()
		testenv.Eventually(t, 30*time.Second, name+" is "+want, func() bool { return condition(s.Get(policies, name), v1alpha1.ConditionLive) == want })
	}
	const nobodyThere = "False Pending: on 1 of 2 nodes and pods of waypoints; not on waypoint shop/gate (none of its pods is connected)"
	says("port", "True Live: on all of 1 nodes")
	says("readers", nobodyThere)
	w := startFeed(t, mounted(t, s, r, "gate/uid-gate@heddle-operator"))
	says("readers", "True Live: on all of 2 nodes and pods of waypoints")
	s.Put(t, policies, object{"apiVersion": "heddle.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": meta("shop", "writers", nil),
		"spec": object{"selector": object{"matchLabels": object{"app": "web"}}, "rules": []any{object{"to": []any{object{"methods": []any{"PUT"}}}}}}})
	says("writers", "True Live: on all of 2 nodes and pods of waypoints")
	w.stop()
	says("readers", nobodyThere)
	says("port", "True Live: on all of 1 nodes")
}

// TestWaypointLearnsOfRoots: one that joined learns of a new root at once, before it signs,
// and a rotation gives it the time.
func TestWaypointLearnsOfRoots(t *testing.T) {
	r := start(t, newRoutedFolder(t), filepath.Join(t.TempDir(), "state"))
	made, err := r.admin.CreateJoinToken(t.Context(), &meshpb.CreateJoinTokenRequest{Node: "waypoint/shop/gate"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	w := startFeed(t, feed.Config{TokenFile: write600(t, filepath.Join(dir, "token"), made.GetToken()), StateDir: filepath.Join(dir, "state")})
	w.await(t, "the route is there", func(s *snapshot.Snapshot) bool { return pathOf(s) == "/cart" })
	roots := func() int {
		var known struct {
			Roots [][]byte `json:"roots"`
		}
		text, err := os.ReadFile(filepath.Join(dir, "state", "operator.json"))
		if err == nil {
			err = json.Unmarshal(text, &known)
		}
		if err != nil {
			t.Fatal(err)
		}
		return len(known.Roots)
	}
	if n := roots(); n != 1 {
		t.Fatalf("the waypoint knows %d roots", n)
	}
	if _, err := r.admin.RotateCertificates(t.Context(), &meshpb.RotateCertificatesRequest{Action: meshpb.RotateCertificatesRequest_ACTION_BEGIN, Kind: "root"}); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "the waypoint knows both roots", func() bool { return roots() == 2 })
	testenv.Eventually(t, 10*time.Second, "the waypoint follows again", func() bool { return w.Status().Current })
	answer, err := r.admin.Certificates(t.Context(), &meshpb.CertificatesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if waits := answer.GetRotation().GetWaiting(); len(waits) != 1 || waits[0].GetPart() != "waypoint" {
		t.Errorf("the rotation waits for %v", waits)
	}
}
