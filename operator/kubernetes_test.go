package operator

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
	"github.com/heddle-mesh/heddle/operator/keys"
)

const (
	core   = "/api/v1"
	heddle = "/apis/heddle.dev/v1alpha1"
)

type object = clustertest.Object

func meta(namespace, name string, labels object) object {
	m := object{"name": name}
	if namespace != "" {
		m["namespace"] = namespace
	}
	if labels != nil {
		m["labels"] = labels
	}
	return m
}

func podObject(namespace, name, node, address string) object {
	return object{"apiVersion": "v1", "kind": "Pod", "metadata": meta(namespace, name, object{"app": name}),
		"spec": object{"nodeName": node, "serviceAccountName": name, "containers": []any{object{"name": "main"}}},
		"status": object{"phase": "Running", "podIPs": []any{object{"ip": address}},
			"conditions": []any{object{"type": "Ready", "status": "True"}}}}
}

// newCluster is an API server with a mesh of two nodes: shop/web on n1, shop/api
// on n2, and an agent's pod on each.
func newCluster(t testing.TB) *clustertest.Server {
	t.Helper()
	s := clustertest.Start(t)
	s.Put(t, heddle+"/meshes", object{"apiVersion": "heddle.dev/v1alpha1", "kind": "Mesh", "metadata": meta("", "default", nil),
		"spec": object{"trustDomain": "test.example", "clusterRanges": []any{"10.0.0.0/8"}}})
	for name, labels := range map[string]object{"shop": {"heddle.dev/mesh": "enabled"}, "heddle-system": nil} {
		s.Put(t, core+"/namespaces", object{"apiVersion": "v1", "kind": "Namespace", "metadata": meta("", name, labels)})
	}
	for i, node := range []string{"n1", "n2"} {
		s.Put(t, core+"/nodes", object{"apiVersion": "v1", "kind": "Node", "metadata": meta("", node, object{"topology.kubernetes.io/zone": fmt.Sprintf("z%d", i)})})
	}
	s.Put(t, core+"/namespaces/shop/pods", podObject("shop", "web", "n1", "10.0.0.1"))
	s.Put(t, core+"/namespaces/shop/pods", podObject("shop", "api", "n2", "10.0.0.2"))
	// A token is NODE@AUDIENCE, and is what it says.
	s.Review = func(token string, audiences []string) object {
		node, audience, ok := strings.Cut(token, "@")
		if !ok || audience != audiences[0] {
			return object{"authenticated": false, "error": "token audiences are invalid for the target audiences"}
		}
		return object{"authenticated": true, "audiences": []string{audience}, "user": object{
			"username": "system:serviceaccount:heddle-system:heddle-agent", "extra": object{"authentication.kubernetes.io/node-name": []string{node}}}}
	}
	return s
}

// replica is an operator on a cluster, in this process.
type replica struct {
	*running
	health string
	log    *testenv.Log
}

func freeAddress(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(testenv.FreePort(t)))
}

func startReplica(t testing.TB, s *clustertest.Server, name string) *replica {
	t.Helper()
	return startReplicaBy(t, s.Config(), name)
}

// startReplicaBy starts one whose way to the API server is the caller's.
func startReplicaBy(t testing.TB, way *rest.Config, name string) *replica {
	t.Helper()
	return startReplicaOn(t, way, name, "127.0.0.1:0")
}

// startReplicaOn has it listen there, with whatever is changed.
func startReplicaOn(t testing.TB, way *rest.Config, name, address string, change ...func(*Config)) *replica {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "admin.sock")
	r := &replica{running: &running{address: listener.Addr().String()}, health: freeAddress(t), log: &testenv.Log{}}
	cfg := Config{Kubernetes: &Kubernetes{Rest: way, Replica: name}, Listener: listener, AdminSocket: socket, Health: r.health,
		Metrics: "127.0.0.1:0", Settle: 10 * time.Millisecond, Version: "test", Logger: slog.New(slog.NewTextHandler(r.log, nil))}
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
	r.admin = meshpb.NewOperatorAdminClient(conn)
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, conn.Close()); err != nil {
			t.Errorf("operator: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, r.log)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// readiness returns what /readyz says, "ok" when it is.
func (r *replica) readiness() string {
	resp, err := http.Get("http://" + r.health + "/readyz")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

func (r *replica) awaitReady(t testing.TB) {
	t.Helper()
	testenv.Eventually(t, 20*time.Second, "ready", func() bool { return r.readiness() == "ok" })
	testenv.Eventually(t, 20*time.Second, "the admin socket answers", func() bool {
		_, err := r.admin.Status(t.Context(), &meshpb.OperatorStateRequest{})
		return err == nil
	})
}

// joinNode joins by a service account token, as an agent's pod does.
func (r *replica) joinNode(t testing.TB, s *clustertest.Server, node, token string) (*nodeauth.Node, error) {
	t.Helper()
	dir := t.TempDir()
	testenv.Eventually(t, 10*time.Second, "roots are published", func() bool { return s.Get(core+"/namespaces/heddle-system/configmaps", keys.RootsName) != nil })
	roots := s.Get(core+"/namespaces/heddle-system/configmaps", keys.RootsName)["data"].(map[string]any)[keys.RootsKey].(string)
	for name, content := range map[string]string{"roots.pem": roots, "token": token} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n, err := nodeauth.JoinByAccount(ctx, nodeauth.AccountConfig{NodeConfig: nodeauth.NodeConfig{Dir: filepath.Join(dir, "state"), Operator: r.address},
		Node: node, TokenFile: filepath.Join(dir, "token"), RootsFile: filepath.Join(dir, "roots.pem")})
	if err == nil {
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return n, err
}

func (r *replica) mustJoin(t testing.TB, s *clustertest.Server, node string) *nodeauth.Node {
	t.Helper()
	n, err := r.joinNode(t, s, node, node+"@"+DefaultAudience)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestACluster(t *testing.T) {
	s := newCluster(t)
	r := startReplica(t, s, "heddle-operator-0")
	r.awaitReady(t)
	a := r.agent(t, r.mustJoin(t, s, "n1"), "n1")
	a.await(t, "pods arrive", has("api"))
	w, _ := a.store.View().Workload(mesh.Key{Namespace: "shop", Name: "web"})
	if !w.Enrolled || w.UID == "" || w.Zone != "z0" || w.Node != "n1" || !w.Ready {
		t.Errorf("web is %+v", w)
	}
	// Withdrawn at the deletion timestamp, though it still runs.
	dying := podObject("shop", "api", "n2", "10.0.0.2")
	dying["metadata"].(map[string]any)["deletionTimestamp"] = "2026-01-01T00:00:00Z"
	s.Put(t, core+"/namespaces/shop/pods", dying)
	a.await(t, "api gets no new connections", func(v *mesh.View) bool {
		w, ok := v.Workload(mesh.Key{Namespace: "shop", Name: "api"})
		return ok && !w.Ready
	})
	s.Delete(core+"/namespaces/shop/pods", "api")
	a.await(t, "api is gone", func(v *mesh.View) bool { return !has("api")(v) })
	s.Put(t, core+"/namespaces", object{"apiVersion": "v1", "kind": "Namespace", "metadata": meta("", "shop", object{"heddle.dev/mesh": "disabled"})})
	a.await(t, "the label unenrolls", func(v *mesh.View) bool {
		w, ok := v.Workload(mesh.Key{Namespace: "shop", Name: "web"})
		return ok && !w.Enrolled
	})
}

func TestWhoMayJoinAndAsk(t *testing.T) {
	s := newCluster(t)
	r := startReplica(t, s, "heddle-operator-0")
	r.awaitReady(t)
	for name, c := range map[string]struct{ node, token, says string }{
		"another node's agent": {"n1", "n2@" + DefaultAudience, "the token is of an agent on node n2, which may not join as n1"},
		"another audience":     {"n1", "n1@vault", "token audiences are invalid"},
		"no token":             {"n1", "stolen", "does not accept the token"},
	} {
		if _, err := r.joinNode(t, s, c.node, c.token); !errors.Is(err, nodeauth.ErrJoinRefused) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n1 := r.mustJoin(t, s, "n1")
	td := spiffeid.RequireTrustDomainFromString("test.example")
	ask := func(account string) error {
		id, err := mesh.IdentityFor(td, "shop", account)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := newRequest(id)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, _, err = n1.Sign(ctx, id, csr)
		return err
	}
	if err := ask("web"); err != nil {
		t.Errorf("the identity of a pod on the node: %v", err)
	}
	if err := ask("api"); err == nil || !strings.Contains(err.Error(), "no workload on node n1 has identity") {
		t.Errorf("the identity of a pod on another node: %v", err)
	}
	// A pod that is being set up has its certificate before its address.
	s.Put(t, core+"/namespaces/shop/pods", object{"apiVersion": "v1", "kind": "Pod", "metadata": meta("shop", "new", nil),
		"spec": object{"nodeName": "n1", "serviceAccountName": "new", "containers": []any{}}, "status": object{"phase": "Pending"}})
	testenv.Eventually(t, 5*time.Second, "a scheduled pod's identity", func() bool { return ask("new") == nil })
	// A node that has left the cluster does not renew.
	s.Delete(core+"/nodes", "n1")
	testenv.Eventually(t, 5*time.Second, "a node that is gone", func() bool {
		csr, err := newRequest(n1.ID())
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = n1.Sign(t.Context(), n1.ID(), csr)
		return err != nil && strings.Contains(err.Error(), "not, or no more, a node of the cluster")
	})
	// Other replicas' questions are not for nodes.
	if _, err := meshpb.NewOperatorAdminClient(n1.Conn()).Status(t.Context(), &meshpb.OperatorStateRequest{}); err == nil || !strings.Contains(err.Error(), "only spiffe://test.example/operator may ask") {
		t.Errorf("a node asks for everybody's status: %v", err)
	}
	if _, err := meshpb.NewOperatorAdminClient(n1.Conn()).Certificates(t.Context(), &meshpb.CertificatesRequest{}); err == nil || !strings.Contains(err.Error(), "only spiffe://test.example/operator may ask") {
		t.Errorf("a node asks for everybody's certificates: %v", err)
	}
	if _, err := meshpb.NewOperatorAdminClient(n1.Conn()).RotateCertificates(t.Context(), &meshpb.RotateCertificatesRequest{Action: meshpb.RotateCertificatesRequest_ACTION_BEGIN, Kind: "root"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a node rotates the root: %v", err)
	}
}

func TestReplicasAgree(t *testing.T) {
	s := newCluster(t)
	one, two := startReplica(t, s, "heddle-operator-0"), startReplica(t, s, "heddle-operator-1")
	one.awaitReady(t)
	two.awaitReady(t)
	a, b := one.status(t), two.status(t)
	if !bytes.Equal(a.Authority.RootSha256, b.Authority.RootSha256) {
		t.Error("two replicas that began together have two CAs")
	}
	if a.Configuration.Revision != b.Configuration.Revision || a.Configuration.Revision == "" {
		t.Errorf("revisions %q and %q of one cluster", a.Configuration.Revision, b.Configuration.Revision)
	}
	// A node of one is also a node of the other.
	n := one.mustJoin(t, s, "n1")
	first := one.agent(t, n, "n1")
	first.await(t, "from the first", has("web"))
	testenv.Eventually(t, 10*time.Second, "somebody leads", func() bool {
		return s.Get("/apis/coordination.k8s.io/v1/namespaces/heddle-system/leases", "heddle-operator") != nil
	})
}

// condition returns a condition of an object, as "Status Reason: message".
func condition(o object, kind string) string {
	text, err := json.Marshal(o["status"])
	if err != nil {
		return err.Error()
	}
	var s v1alpha1.Status
	if err := json.Unmarshal(text, &s); err != nil {
		return err.Error()
	}
	for _, c := range s.Conditions {
		if c.Type == kind {
			return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
		}
	}
	return ""
}

func TestStatusesAndEvents(t *testing.T) {
	s := newCluster(t)
	policies := heddle + "/namespaces/shop/authorizationpolicies"
	s.Put(t, policies, object{"apiVersion": "heddle.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": meta("shop", "good", nil),
		"spec": object{"selector": object{"matchLabels": object{"app": "web"}}, "rules": []any{object{"from": []any{object{"namespaces": []any{"shop"}}}}}}})
	s.Put(t, policies, object{"apiVersion": "heddle.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": meta("shop", "bad", nil),
		"spec": object{"rules": []any{object{"from": []any{object{"ipBlocks": []any{"10.0.0.1/8"}}}}}}})
	s.Put(t, "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies", object{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta("shop", "in", nil),
		"spec": object{"ingress": []any{object{"from": []any{object{"ipBlock": object{"cidr": "010.0.0.0/8"}}}}}}})
	host := podObject("shop", "exporter", "n1", "192.0.2.1")
	host["spec"].(map[string]any)["hostNetwork"] = true
	s.Put(t, core+"/namespaces/shop/pods", host)
	r := startReplica(t, s, "heddle-operator-0")
	r.awaitReady(t)
	says := func(name, kind, want string) {
		t.Helper()
		testenv.Eventually(t, 15*time.Second, name+" "+kind+" says "+want, func() bool { return strings.Contains(condition(s.Get(policies, name), kind), want) })
	}
	says("good", v1alpha1.ConditionAccepted, "True Accepted")
	says("good", v1alpha1.ConditionLive, "False Pending: on 0 of 1 nodes; not on n1")
	says("bad", v1alpha1.ConditionAccepted, `False Invalid: spec.rules[0].from[0].ipBlocks[0]: "10.0.0.1/8" has bits set after its prefix; write 10.0.0.0/8`)
	a := r.agent(t, r.mustJoin(t, s, "n1"), "n1")
	a.await(t, "n1 applies it", func(v *mesh.View) bool { return len(v.Policies()) > 0 })
	says("good", v1alpha1.ConditionLive, "True Live: on all of 1 nodes")
	testenv.Eventually(t, 10*time.Second, "an event on the network policy", func() bool {
		for _, e := range s.List("events") {
			if about := e["involvedObject"].(map[string]any); about["kind"] == "NetworkPolicy" && about["name"] == "in" {
				return strings.Contains(e["message"].(string), `spec.ingress[0].from[0].ipBlock.cidr: "010.0.0.0/8" is not an address block`) && about["apiVersion"] == "networking.k8s.io/v1"
			}
		}
		return false
	})
	testenv.Eventually(t, 10*time.Second, "an event on the pod in its node's network", func() bool {
		for _, e := range s.List("events") {
			if e["involvedObject"].(map[string]any)["name"] == "exporter" {
				return strings.Contains(e["message"].(string), "in the network of its node a pod cannot be told from the node itself") && e["type"] == "Warning"
			}
		}
		return false
	})
	testenv.Eventually(t, 10*time.Second, "the Mesh is live on one node of two", func() bool {
		return strings.Contains(condition(s.Get(heddle+"/meshes", "default"), v1alpha1.ConditionLive), "on 1 of 2 nodes; not on n2")
	})
	// What is said is not said again.
	quiet := s.Requests()
	time.Sleep(2500 * time.Millisecond)
	for request, n := range s.Requests() {
		if n != quiet[request] && (strings.HasPrefix(request, "patch") || strings.HasPrefix(request, "create events")) {
			t.Errorf("%s: %d times, %d before: nothing changed", request, n, quiet[request])
		}
	}
	// A policy that cannot be read admits nobody: what matches nothing has its rule's place.
	if v := a.store.View(); len(v.Policies()) != 2 || len(v.Policies()[0].Rules) != 1 || !matchesNothing(&v.Policies()[0].Rules[0]) {
		t.Errorf("policies %v", v.Policies())
	}
	if n := a.store.View().Network().Policies(); len(n) != 1 || n[0].Ingress == nil || len(n[0].Ingress.Rules) != 0 {
		t.Errorf("network policies %v", n)
	}
}

// TestFederationInACluster: the Mesh's status says what is known of a federated trust domain,
// once, and its bundle is kept for the next replica.
func TestFederationInACluster(t *testing.T) {
	s := newCluster(t)
	other, err := identity.NewAuthority(identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("other.example")})
	if err != nil {
		t.Fatal(err)
	}
	document, err := spiffebundle.FromX509Bundle(other.Bundle()).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	federate := func(federation ...any) {
		s.Put(t, heddle+"/meshes", object{"apiVersion": "heddle.dev/v1alpha1", "kind": "Mesh", "metadata": meta("", "default", nil),
			"spec": object{"trustDomain": "test.example", "clusterRanges": []any{"10.0.0.0/8"}, "federation": federation}})
	}
	federate(object{"trustDomain": "other.example", "endpoint": "https://127.0.0.1:1/", "profile": "https_web", "bundle": string(document)})
	r := startReplica(t, s, "heddle-operator-0")
	r.awaitReady(t)
	said := func() object {
		status, _ := s.Get(heddle+"/meshes", "default")["status"].(object)
		all, _ := status["federation"].([]any)
		if len(all) != 1 {
			return nil
		}
		return all[0].(object)
	}
	testenv.Eventually(t, 20*time.Second, "the status says that it is not refreshed", func() bool {
		text, _ := said()["error"].(string)
		return said()["trustDomain"] == "other.example" && strings.Contains(text, "connection refused") && said()["rootsExpire"] != nil && said()["lastRefreshed"] == nil
	})
	kept := func() string {
		data, _ := s.Get(core+"/namespaces/heddle-system/configmaps", keys.BundlesName)["data"].(object)
		text, _ := data["other.example"].(string)
		return text
	}
	testenv.Eventually(t, 20*time.Second, "the bundle is kept", func() bool { return strings.Contains(kept(), "x509-svid") })
	source := follow(t, r.mustJoin(t, s, "n1"), "spiffe://test.example/ns/shop/sa/web")
	testenv.Eventually(t, 20*time.Second, "the agent has it", func() bool {
		b, err := source.GetX509BundleForTrustDomain(other.TrustDomain())
		return err == nil && b.Equal(other.Bundle())
	})
	quiet := s.Requests()
	time.Sleep(7 * time.Second) // another attempt
	for request, n := range s.Requests() {
		if n != quiet[request] && strings.HasPrefix(request, "patch") {
			t.Errorf("%s: %d times, %d before: nothing changed", request, n, quiet[request])
		}
	}
	federate()
	testenv.Eventually(t, 20*time.Second, "nothing is known any more", func() bool {
		_, err := source.GetX509BundleForTrustDomain(other.TrustDomain())
		return said() == nil && kept() == "" && err != nil
	})
}

// TestExternalAddresses: what a load balancer has been given leads agents to the service,
// as soon as it is said.
func TestExternalAddresses(t *testing.T) {
	s := newCluster(t)
	services := core + "/namespaces/shop/services"
	balanced := func(ingress ...any) object {
		return object{"apiVersion": "v1", "kind": "Service", "metadata": meta("shop", "api", nil), "status": object{"loadBalancer": object{"ingress": ingress}},
			"spec": object{"type": "LoadBalancer", "selector": object{"app": "api"}, "clusterIP": "10.96.0.1", "externalIPs": []any{"192.0.2.1"}, "ports": []any{object{"port": 80}}}}
	}
	s.Put(t, services, balanced())
	r := startReplica(t, s, "heddle-operator-0")
	r.awaitReady(t)
	a := r.agent(t, r.mustJoin(t, s, "n1"), "n1")
	leads := func(addr string, to bool) func(*mesh.View) bool {
		return func(v *mesh.View) bool {
			src, _ := v.Workload(mesh.Key{Namespace: "shop", Name: "web"})
			route := v.Route(src, netip.MustParseAddrPort(addr+":80"))
			return (route.Service != nil && len(route.Candidates) == 1 && route.Candidates[0].Name == "api") == to && v.Synced()
		}
	}
	a.await(t, "the external IP leads to the service", leads("192.0.2.1", true))
	if !leads("192.0.2.7", false)(a.store.View()) {
		t.Error("an address of nobody's leads to the service")
	}
	s.Put(t, services, balanced(object{"ip": "192.0.2.7"}))
	a.await(t, "the load balancer's address leads to the service", leads("192.0.2.7", true))
	s.Put(t, services, balanced(object{"ip": "192.0.2.7", "ipMode": "Proxy"}))
	a.await(t, "connections are to pass the load balancer", leads("192.0.2.7", false))
}

// TestStartupTaint: it goes when the node's own agent is ready, from no other node, and
// only where that was asked for.
func TestStartupTaint(t *testing.T) {
	s := newCluster(t)
	taintsOf := func(node string) string {
		spec, _ := s.Get(core+"/nodes", node)["spec"].(map[string]any)
		return fmt.Sprint(spec["taints"])
	}
	taints := func() string { return taintsOf("n1") }
	tainted := func(node string) {
		s.Put(t, core+"/nodes", object{"apiVersion": "v1", "kind": "Node", "metadata": meta("", node, nil), "spec": object{"taints": []any{
			object{"key": v1alpha1.TaintAgentNotReady, "effect": "NoSchedule"}, object{"key": "other", "effect": "NoExecute"}, object{"key": v1alpha1.TaintAgentNotReady, "effect": "NoExecute"}}}})
	}
	tainted("n0") // looked at before n1
	tainted("n1")
	agentPod := func(namespace, account, node, ready string) {
		p := podObject(namespace, account, node, "192.0.2.1")
		p["metadata"].(map[string]any)["name"] = account + "-on-" + node
		p["spec"].(map[string]any)["hostNetwork"] = true
		p["status"].(map[string]any)["conditions"] = []any{object{"type": "Ready", "status": ready}}
		s.Put(t, core+"/namespaces/"+namespace+"/pods", p)
	}
	off := startReplica(t, s, "heddle-operator-0")
	off.awaitReady(t)
	others := taintsOf("n0")
	for _, node := range []string{"n0", "n1"} {
		agentPod("shop", "heddle-agent", node, "True") // anybody's
		agentPod("heddle-system", "other", node, "True")
	}
	agentPod("heddle-system", "heddle-agent", "n1", "True")
	a := off.agent(t, off.mustJoin(t, s, "n1"), "n1")
	s.Put(t, core+"/namespaces/shop/pods", podObject("shop", "late", "n2", "10.0.0.3"))
	a.await(t, "what came after the agent is known", has("late"))
	off.stop()
	before := taints()
	agentPod("heddle-system", "heddle-agent", "n1", "False")
	on := startReplicaOn(t, s.Config(), "heddle-operator-1", "127.0.0.1:0", func(c *Config) { c.Kubernetes.StartupTaint = true })
	on.awaitReady(t)
	testenv.Eventually(t, 30*time.Second, "it leads", func() bool { return strings.Contains(on.log.String(), "takes startup taints away") })
	if taints() != before || len(before) < 20 || s.Requests()["patch nodes n1"] > 0 {
		t.Errorf("without a ready agent, or without having been asked, the taints became %s", taints())
	}
	agentPod("heddle-system", "heddle-agent", "n1", "True")
	testenv.Eventually(t, 20*time.Second, "the taint goes", func() bool { return !strings.Contains(taints(), v1alpha1.TaintAgentNotReady) })
	if !strings.Contains(taints(), "other") {
		t.Errorf("left are %s", taints())
	}
	if got := taintsOf("n0"); got != others || len(others) < 20 || s.Requests()["patch nodes n0"] > 0 {
		t.Errorf("with no ready pod but others', the taints became %s", got)
	}
}

// TestAnOversizedMesh: a Mesh that is more than a message holds stops nothing; its status
// and an event say what of it is not in force.
func TestAnOversizedMesh(t *testing.T) {
	s := newCluster(t)
	var revoked []any
	for i := range 4096 {
		revoked = append(revoked, fmt.Sprintf("spiffe://test.example/ns/shop/sa/%0250d", i))
	}
	s.Put(t, heddle+"/meshes", object{"apiVersion": "heddle.dev/v1alpha1", "kind": "Mesh", "metadata": meta("", "default", nil),
		"spec": object{"trustDomain": "test.example", "clusterRanges": []any{"10.0.0.0/8"}, "revokedIdentities": revoked}})
	r := startReplica(t, s, "heddle-operator-0")
	r.awaitReady(t)
	a := r.agent(t, r.mustJoin(t, s, "n1"), "n1")
	a.await(t, "pods arrive", has("api"))
	s.Put(t, core+"/namespaces/shop/pods", podObject("shop", "late", "n2", "10.0.0.3"))
	a.await(t, "and what comes later", has("late"))
	if v := a.store.View(); !v.Revoked(spiffeid.RequireFromString(revoked[0].(string))) || v.Revoked(spiffeid.RequireFromString(revoked[4095].(string))) {
		t.Error("an agent is not told of as many as it takes")
	}
	const says = "come to more than agents take: "
	testenv.Eventually(t, 15*time.Second, "the Mesh's status says so", func() bool {
		return strings.Contains(condition(s.Get(heddle+"/meshes", "default"), v1alpha1.ConditionAccepted), "False Invalid: spec.revokedIdentities: "+says)
	})
	testenv.Eventually(t, 15*time.Second, "an event says so", func() bool {
		for _, e := range s.List("events") {
			if e["involvedObject"].(map[string]any)["kind"] == "Mesh" {
				return strings.Contains(e["message"].(string), says)
			}
		}
		return false
	})
}

func TestWithoutAMesh(t *testing.T) {
	s := newCluster(t)
	s.Delete(heddle+"/meshes", "default")
	r := startReplica(t, s, "heddle-operator-0")
	testenv.Eventually(t, 10*time.Second, "it says what it waits for", func() bool { return strings.Contains(r.readiness(), "Mesh default: is missing") })
	resp, err := http.Get("http://" + r.health + "/livez")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("livez: %v %v", resp, err)
	}
	if err == nil {
		resp.Body.Close()
	}
	s.Put(t, heddle+"/meshes", object{"apiVersion": "heddle.dev/v1alpha1", "kind": "Mesh", "metadata": meta("", "default", nil),
		"spec": object{"trustDomain": "test.example", "clusterRanges": []any{"10.0.0.0/8"}}})
	r.awaitReady(t)
	// One that goes bad later is refused; what is served stays.
	before := r.status(t).Configuration
	s.Put(t, heddle+"/meshes", object{"apiVersion": "heddle.dev/v1alpha1", "kind": "Mesh", "metadata": meta("", "default", nil),
		"spec": object{"trustDomain": "other.example", "clusterRanges": []any{"10.0.0.0/8"}}})
	testenv.Eventually(t, 10*time.Second, "another trust domain is refused", func() bool {
		c := r.status(t).Configuration
		return strings.Contains(strings.Join(c.Problems, " "), "was made for") && c.Revision == before.Revision
	})
}

// Each right is needed: without it, something does not happen that can be seen.
func TestEachRightIsNeeded(t *testing.T) {
	for right, missing := range map[string]string{
		"list pods": "not read yet: pods", "watch nodes": "", "list heddle.dev/meshes": "not read yet: meshes",
		"get secrets heddle-ca": "open Secret", "create secrets": "open Secret",
	} {
		t.Run(right, func(t *testing.T) {
			s := newCluster(t)
			s.Forbid(func(r clustertest.Request) bool {
				verb := strings.Fields(right)[0]
				if verb == "watch" || verb == "list" { // a list may be streamed
					return (r.Verb == "watch" || r.Verb == "list") && strings.Fields(right)[1] == strings.Fields(r.String())[1]
				}
				return strings.HasPrefix(r.String(), right)
			})
			r := startReplica(t, s, "heddle-operator-0")
			if missing == "" {
				missing = "not read yet: nodes"
			}
			testenv.Eventually(t, 10*time.Second, "readiness says "+missing, func() bool { return strings.Contains(r.readiness(), missing) })
			s.Forbid(nil)
			testenv.Eventually(t, 60*time.Second, "it recovers", func() bool { return r.readiness() == "ok" })
		})
	}
}

func newRequest(id spiffeid.ID) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return identity.NewCSR(key, id)
}

// matchesNothing says that the ports of a rule leave none.
func matchesNothing(r *mesh.Rule) bool {
	return len(r.To) == 1 && len(r.To[0].Ports) > 0 && !slices.ContainsFunc(r.To[0].Ports, func(port uint16) bool { return !slices.Contains(r.To[0].NotPorts, port) })
}
