package controlplane

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator"
	"github.com/heddle-mesh/heddle/operator/routing"
	"github.com/heddle-mesh/heddle/operator/waypoints"
)

// right is one verb on one resource, cluster-wide or in the operator's namespace.
type right struct {
	verb, group, resource, name string
	here                        bool // in the operator's namespace only
}

// gates is what is kept of who is behind a gate.
const gates = "heddle-gates"

// String is how an API server names what it refuses. Of the ConfigMaps this one is told from the others.
func (r right) String() string {
	if r.name == gates {
		return fmt.Sprintf(`%s \"%s\" is forbidden: User \"system:serviceaccount:heddle-system:heddle-operator\" cannot %s resource`, r.resource, r.name, r.verb)
	}
	return fmt.Sprintf(`cannot %s resource \"%s\" in API group \"%s\"`, r.verb, r.resource, r.group)
}

// steps are all rights, in the order in which an operator comes to need them:
// each step's are found missing while those of the steps before are there.
func steps() [][]right {
	const heddle, gateway = "heddle.dev", "gateway.networking.k8s.io"
	var lists, watches []right
	for group, resources := range map[string][]string{"": {"namespaces", "nodes", "pods", "services"}, "discovery.k8s.io": {"endpointslices"},
		"networking.k8s.io": {"networkpolicies"},
		heddle:              {"meshes", "workloads", "peerauthentications", "authorizationpolicies"},
		gateway:             {"gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "tcproutes", "referencegrants"}} {
		for _, resource := range resources {
			lists = append(lists, right{verb: "list", group: group, resource: resource})
			watches = append(watches, right{verb: "watch", group: group, resource: resource})
		}
	}
	own := func(verb, group, resource, name string) right { return right{verb, group, resource, name, true} }
	var kept []right
	for _, name := range append(routing.Names(), routing.ThroughName) {
		kept = append(kept, own("get", "", "configmaps", name))
	}
	all := [][]right{
		// An API server that streams lists does so by the verb watch alone: list is
		// asked for where it does not.
		lists, watches,
		{own("get", "", "secrets", "heddle-ca")},
		{own("create", "", "secrets", "")},
		kept,
		{own("get", "coordination.k8s.io", "leases", "heddle-operator"), own("get", "", "configmaps", "heddle-federation"), {verb: "create", group: "authentication.k8s.io", resource: "tokenreviews"}},
		{own("create", "coordination.k8s.io", "leases", "")},
		{own("get", "", "configmaps", "heddle-roots"), own("get", "", "configmaps", gates), {verb: "create", resource: "events"},
			{verb: "patch", group: heddle, resource: "meshes/status", name: "default"}, {verb: "patch", group: heddle, resource: "workloads/status"},
			{verb: "patch", group: heddle, resource: "peerauthentications/status"}, {verb: "patch", group: heddle, resource: "authorizationpolicies/status"},
			{verb: "patch", group: gateway, resource: "httproutes/status"}, {verb: "patch", group: gateway, resource: "grpcroutes/status"},
			{verb: "patch", group: gateway, resource: "tlsroutes/status"}, {verb: "patch", group: gateway, resource: "tcproutes/status"},
			{verb: "create", group: gateway, resource: "gatewayclasses"},
			own("update", "coordination.k8s.io", "leases", "heddle-operator")},
		{{verb: "patch", group: gateway, resource: "gatewayclasses/status"}, {verb: "patch", group: gateway, resource: "gateways/status"},
			{verb: "get", group: "apps", resource: "deployments"}},
	}
	// What a waypoint consists of is made one after the other.
	for _, r := range []right{{group: "", resource: "serviceaccounts"}, {group: "", resource: "services"}, {group: "policy", resource: "poddisruptionbudgets"},
		{group: "apps", resource: "deployments"}, {group: "autoscaling", resource: "horizontalpodautoscalers"}} {
		for _, verb := range []string{"get", "patch", "create"} {
			if r.verb = verb; r.resource != "deployments" || verb != "get" {
				all = append(all, []right{r})
			}
		}
	}
	return append(all,
		[]right{{verb: "delete", group: "autoscaling", resource: "horizontalpodautoscalers"}},
		[]right{own("create", "", "configmaps", "")},
		[]right{own("patch", "", "configmaps", "heddle-roots"), own("patch", "", "configmaps", "heddle-federation")},
		[]right{own("update", "", "secrets", "heddle-ca"), own("update", "", "configmaps", routing.Names()[shard]), own("update", "", "configmaps", gates)},
	)
}

// shard is the ConfigMap of shop/web, of which the others stand for.
const shard = 3

const gatewayPath = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/"

// putRoutes makes routes, a grant, and a Gateway of a waypoint that scales.
func (s *server) putRoutes(t testing.TB) {
	t.Helper()
	s.installGatewayAPI(t)
	const from = "apiVersion: gateway.networking.k8s.io/v1, "
	s.must(t, http.MethodPost, "/api/v1/namespaces/shop/services", `{apiVersion: v1, kind: Service, metadata: {name: cart}, spec: {selector: {app: cart}, ports: [{name: http, port: 80}, {name: grpc, port: 81}, {name: tls, port: 82}, {name: tcp, port: 83}]}}`)
	s.must(t, http.MethodPost, gatewayPath+"httproutes", `{`+from+`kind: HTTPRoute, metadata: {name: web},
  spec: {parentRefs: [{group: "", kind: Service, name: cart, port: 80}], rules: [{backendRefs: [{name: cart, port: 80}]}]}}`)
	s.must(t, http.MethodPost, gatewayPath+"grpcroutes", `{`+from+`kind: GRPCRoute, metadata: {name: calls},
  spec: {parentRefs: [{group: "", kind: Service, name: cart, port: 81}], rules: [{backendRefs: [{name: cart, port: 81}]}]}}`)
	s.must(t, http.MethodPost, gatewayPath+"tlsroutes", `{`+from+`kind: TLSRoute, metadata: {name: names},
  spec: {parentRefs: [{group: "", kind: Service, name: cart, port: 82}], hostnames: [cart.example.com], rules: [{backendRefs: [{name: cart, port: 82}]}]}}`)
	s.must(t, http.MethodPost, gatewayPath+"tcproutes", `{`+from+`kind: TCPRoute, metadata: {name: bytes},
  spec: {parentRefs: [{group: "", kind: Service, name: cart, port: 83}], rules: [{backendRefs: [{name: cart, port: 83}]}]}}`)
	s.must(t, http.MethodPost, gatewayPath+"gateways", `{`+from+`kind: Gateway, metadata: {name: waypoint, annotations: {heddle.dev/autoscale: 2-3}},
  spec: {gatewayClassName: heddle-waypoint, listeners: [{name: mesh, port: 15009, protocol: heddle.dev/mesh}]}}`)
}

// grant makes the operator's roles consist of these rights.
func (s *server) grant(t testing.TB, rights []right) {
	t.Helper()
	type rule struct {
		APIGroups     []string `json:"apiGroups"`
		Resources     []string `json:"resources"`
		ResourceNames []string `json:"resourceNames,omitempty"`
		Verbs         []string `json:"verbs"`
	}
	all, here := []rule{}, []rule{}
	for _, r := range rights {
		one := rule{[]string{r.group}, []string{r.resource}, nil, []string{r.verb}}
		if r.name != "" {
			one.ResourceNames = []string{r.name}
		}
		if r.here {
			here = append(here, one)
		} else {
			all = append(all, one)
		}
	}
	for path, rules := range map[string][]rule{"/apis/rbac.authorization.k8s.io/v1/clusterroles/heddle-operator": all,
		"/apis/rbac.authorization.k8s.io/v1/namespaces/heddle-system/roles/heddle-operator": here} {
		text, err := json.Marshal(map[string]any{"rules": rules})
		if err != nil {
			t.Fatal(err)
		}
		s.must(t, http.MethodPatch, path, string(text))
	}
}

// prepare makes a cluster of one node with a mesh, an agent's pod, an enrolled
// pod, a refused one, and one object of each of Heddle's kinds.
func (s *server) prepare(t testing.TB) {
	t.Helper()
	s.installKinds(t)
	post := func(path, body string) { t.Helper(); s.must(t, http.MethodPost, path, body) }
	post("/api/v1/namespaces", `{apiVersion: v1, kind: Namespace, metadata: {name: heddle-system}}`)
	post("/api/v1/namespaces", `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}`)
	post("/api/v1/nodes", `{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}}`)
	for _, account := range []string{"heddle-operator", "heddle-agent"} {
		post("/api/v1/namespaces/heddle-system/serviceaccounts", `{apiVersion: v1, kind: ServiceAccount, metadata: {name: `+account+`}}`)
	}
	const roles = "/apis/rbac.authorization.k8s.io/v1"
	post(roles+"/clusterroles", `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: heddle-operator}, rules: []}`)
	post(roles+"/namespaces/heddle-system/roles", `{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: heddle-operator}, rules: []}`)
	subject := `subjects: [{kind: ServiceAccount, name: heddle-operator, namespace: heddle-system}]`
	post(roles+"/clusterrolebindings", `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: heddle-operator},
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: heddle-operator}, `+subject+`}`)
	post(roles+"/namespaces/heddle-system/rolebindings", `{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: heddle-operator},
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: heddle-operator}, `+subject+`}`)
	// Of when policies could name UDP: to be taken back.
	post("/api/v1/namespaces/heddle-system/configmaps", `{apiVersion: v1, kind: ConfigMap, metadata: {name: `+gates+`}, data: {of: before}, binaryData: {gates: AAAA}}`)
	s.pod(t, "heddle-system", "agent-n1", "heddle-agent", "192.0.2.11", true)
	s.pod(t, "shop", "web", "web", "10.244.1.2", false)
	s.pod(t, "shop", "exporter", "default", "192.0.2.11", true)
	const kinds = "/apis/heddle.dev/v1alpha1"
	post(kinds+"/meshes", `{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default},
  spec: {trustDomain: test.example, clusterRanges: ["10.244.0.0/16", "10.96.0.0/16"],
  federation: [{trustDomain: other.example, endpoint: "https://127.0.0.1:1/", profile: https_web, bundle: '`+foreignBundle(t)+`'}]}}`)
	post(kinds+"/namespaces/shop/peerauthentications", `{apiVersion: heddle.dev/v1alpha1, kind: PeerAuthentication, metadata: {name: strict, namespace: shop}, spec: {mode: STRICT}}`)
	post(kinds+"/namespaces/shop/authorizationpolicies", `{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: web, namespace: shop},
  spec: {rules: [{from: [{namespaces: [shop]}]}]}}`)
	post(kinds+"/namespaces/shop/workloads", `{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {name: vm, namespace: shop},
  spec: {node: vm1, addresses: ["10.244.9.9"], networkNamespace: /run/netns/vm}}`)
}

// foreignBundle is that of another trust domain, other.example.
func foreignBundle(t testing.TB) string {
	t.Helper()
	a, err := identity.NewAuthority(identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("other.example")})
	if err != nil {
		t.Fatal(err)
	}
	document, err := spiffebundle.FromX509Bundle(a.Bundle()).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(document)
}

// pod makes a pod that says it runs.
func (s *server) pod(t testing.TB, namespace, name, account, address string, host bool) {
	t.Helper()
	path := "/api/v1/namespaces/" + namespace + "/pods"
	s.must(t, http.MethodPost, path, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s, labels: {app: %s}},
  spec: {nodeName: n1, serviceAccountName: %s, hostNetwork: %v, containers: [{name: main, image: none}]}}`, name, namespace, name, account, host))
	s.must(t, http.MethodPatch, path+"/"+name+"/status", fmt.Sprintf(
		`{status: {phase: Running, podIP: %[1]s, podIPs: [{ip: %[1]s}], conditions: [{type: Ready, status: "True"}]}}`, address))
}

// startOperator runs an operator as its own service account until the test ends.
func startOperator(t testing.TB, s *server, replica string) (address, health string, log *logBuffer) {
	t.Helper()
	return startOperatorAt(t, s, replica, "")
}

// startOperatorAt has it answer on an admin socket.
func startOperatorAt(t testing.TB, s *server, replica, socket string) (address, health string, log *logBuffer) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	health, log = fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)), &logBuffer{}
	op, err := operator.New(operator.Config{Kubernetes: &operator.Kubernetes{Rest: s.config(s.token(t, "heddle-operator", "", "")), Replica: replica,
		Waypoints: waypoints.Program{Image: "none"}},
		Listener: listener, Health: health, AdminSocket: socket, Version: "test", Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- op.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
		if t.Failed() {
			text := log.String()
			t.Logf("log of the operator: ...%s", text[max(0, len(text)-6000):])
		}
	})
	return listener.Addr().String(), health, log
}

func ready(health string) bool {
	resp, err := http.Get("http://" + health + "/readyz")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// join trades a token for a node's credential, given the mesh's roots.
func join(t testing.TB, operator, roots, token string, limit time.Duration) (*nodeauth.Node, error) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"roots.pem": roots, "token": token} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return nodeauth.JoinByAccount(ctx, nodeauth.AccountConfig{NodeConfig: nodeauth.NodeConfig{Dir: filepath.Join(dir, "state"), Operator: operator},
		Node: "n1", TokenFile: filepath.Join(dir, "token"), RootsFile: filepath.Join(dir, "roots.pem")})
}

// TestEachRightIsNeeded gives an operator one step of rights after the other. At
// each it finds the next one missing, and says so; with all of them everything
// that it is for has happened.
func TestEachRightIsNeeded(t *testing.T) {
	s := startServer(t)
	s.prepare(t)
	s.putRoutes(t)
	socket := filepath.Join(t.TempDir(), "admin.sock")
	address, health, log := startOperatorAt(t, s, "replica-0", socket)
	var granted []right
	for i, step := range steps() {
		for _, r := range step {
			if r.resource == "secrets" && r.verb == "update" {
				if err := rotate(t, socket); err == nil || !strings.Contains(err.Error(), "heddle upgrade") {
					t.Errorf("without %v a rotation begins, or not for that reason: %v", r, err)
				}
			}
			if r.resource == "tokenreviews" {
				awaitRoots := s.caRoots(t)
				if _, err := join(t, address, awaitRoots, s.token(t, "heddle-agent", operator.DefaultAudience, "agent-n1"), 2*time.Second); err == nil || !strings.Contains(err.Error(), "cannot have the token reviewed") {
					t.Errorf("without %v a node joins, or not for that reason: %v", r, err)
				}
			}
			if r.verb == "delete" { // it is to scale no more
				s.must(t, http.MethodPatch, gatewayPath+"gateways/waypoint", `{metadata: {annotations: {heddle.dev/autoscale: null}}}`)
			}
			if r.verb == "update" && r.resource == "configmaps" && r.name != gates { // a route is good that was not before
				testenv.Eventually(t, 60*time.Second, "routes are kept", func() bool {
					_, o := s.do(http.MethodGet, "/api/v1/namespaces/heddle-system/configmaps/"+routing.Names()[shard], nil)
					return o["binaryData"] != nil
				})
				s.must(t, http.MethodPatch, gatewayPath+"httproutes/web", `{spec: {rules: [{timeouts: {request: 10s}, backendRefs: [{name: cart, port: 80}]}]}}`)
			}
			testenv.Eventually(t, 60*time.Second, fmt.Sprintf("step %d: %v", i, r), func() bool { return log.has(r.String()) })
		}
		granted = append(granted, step...)
		s.grant(t, granted)
		if i == len(steps())-3 { // the ConfigMap is there: somebody changes it
			testenv.Eventually(t, 60*time.Second, "roots are published", func() bool { return s.roots() != "" })
			s.must(t, http.MethodPatch, "/api/v1/namespaces/heddle-system/configmaps/heddle-roots", `{data: {roots.pem: "spoiled"}}`)
		}
	}
	testenv.Eventually(t, 60*time.Second, "the operator is ready", func() bool { return ready(health) })
	testenv.Eventually(t, 90*time.Second, "the roots are put right", func() bool { return strings.Contains(s.roots(), "BEGIN CERTIFICATE") })
	testenv.Eventually(t, 60*time.Second, "a rotation begins", func() bool { return rotate(t, socket) == nil })
	testenv.Eventually(t, 60*time.Second, "both roots are published", func() bool { return strings.Count(s.roots(), "BEGIN CERTIFICATE") == 2 })
	n, err := join(t, address, s.roots(), s.token(t, "heddle-agent", operator.DefaultAudience, "agent-n1"), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ path, says string }{
		{"/apis/heddle.dev/v1alpha1/meshes/default", "Accepted"},
		{"/apis/heddle.dev/v1alpha1/namespaces/shop/workloads/vm", "Accepted"},
		{"/apis/heddle.dev/v1alpha1/namespaces/shop/peerauthentications/strict", "on 0 of 2 nodes; not on n1, vm1"},
		{"/apis/heddle.dev/v1alpha1/namespaces/shop/authorizationpolicies/web", "on 0 of 2 nodes; not on n1, vm1"},
		{"/api/v1/namespaces/shop/events", "hostNetwork"},
		{gatewayPath + "httproutes/web", "heddle.dev/operator"},
		{gatewayPath + "grpcroutes/calls", "heddle.dev/operator"},
		{gatewayPath + "tlsroutes/names", "heddle.dev/operator"},
		{gatewayPath + "tcproutes/bytes", "heddle.dev/operator"},
		{gatewayPath + "gateways/waypoint", "no replica is ready"},
		{"/apis/apps/v1/namespaces/shop/deployments/waypoint", "maxUnavailable:0"},
		{"/apis/coordination.k8s.io/v1/namespaces/heddle-system/leases/heddle-operator", "replica-0"},
	} {
		testenv.Eventually(t, 60*time.Second, c.path+" says "+c.says, func() bool {
			_, o := s.do(http.MethodGet, c.path, nil)
			return strings.Contains(fmt.Sprint(o), c.says)
		})
	}
}

// rotate has an operator begin the rotation of its root.
func rotate(t testing.TB, socket string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	client, err := admin.Dial(ctx, socket)
	if err != nil {
		return err
	}
	_, err = meshpb.NewOperatorAdminClient(client.Conn()).RotateCertificates(ctx, &meshpb.RotateCertificatesRequest{
		Action: meshpb.RotateCertificatesRequest_ACTION_BEGIN, Kind: "root"})
	return errors.Join(err, client.Close())
}

// roots returns what agents would mount; "" when it is not there.
func (s *server) roots() string {
	_, o := s.do(http.MethodGet, "/api/v1/namespaces/heddle-system/configmaps/heddle-roots", nil)
	data, _ := o["data"].(map[string]any)
	text, _ := data["roots.pem"].(string)
	return text
}

// caRoots returns the root from the operator's Secret: for a time at which roots
// are not published yet.
func (s *server) caRoots(t testing.TB) string {
	t.Helper()
	var roots []byte
	testenv.Eventually(t, 60*time.Second, "the Secret is made", func() bool {
		_, o := s.do(http.MethodGet, "/api/v1/namespaces/heddle-system/secrets/heddle-ca", nil)
		data, _ := o["data"].(map[string]any)
		text, _ := data["tls.crt"].(string)
		var err error
		roots, err = base64.StdEncoding.DecodeString(text)
		return err == nil && len(roots) > 0
	})
	return string(roots)
}
