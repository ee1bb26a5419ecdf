package operator

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/report"
)

// policies are what an operator says of them, each a line.
func (r *running) policies(t testing.TB) (lines []string) {
	t.Helper()
	s, err := r.admin.Status(t.Context(), &meshpb.OperatorStateRequest{Policies: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.GetPolicies() {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s/%s %v %d/%d %v %s", p.GetKind(), p.GetNamespace(), p.GetName(), p.GetAccepted(), p.GetLive(), p.GetNodes(), p.GetPending(), p.GetMessage())))
	}
	return lines
}

// say waits until an operator says just this of policies: the beginnings of lines.
func (r *running) say(t testing.TB, want ...string) {
	t.Helper()
	var got []string
	defer func() {
		if t.Failed() {
			t.Logf("the operator says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}()
	testenv.Eventually(t, 15*time.Second, "the operator says of policies "+fmt.Sprint(want), func() bool {
		got = r.policies(t)
		for i := range got {
			if len(got) != len(want) || !strings.HasPrefix(got[i], want[i]) {
				return false
			}
		}
		return len(got) == len(want)
	})
}

func TestPoliciesOfAFolder(t *testing.T) {
	folder := newFolder(t)
	write(t, filepath.Join(folder, "policies.yaml"), `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: web}, spec: {podSelector: {matchLabels: {app: web}}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: all}, spec: {podSelector: {}, ingress: [{}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: nobody}, spec: {podSelector: {matchLabels: {app: nobody}}}}
---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: api}, spec: {selector: {matchLabels: {app: api}}, rules: [{}]}}
---
{apiVersion: heddle.dev/v1alpha1, kind: PeerAuthentication, metadata: {namespace: shop, name: web}, spec: {selector: {matchLabels: {app: web}}, mode: PERMISSIVE}}
`)
	r := start(t, folder, filepath.Join(t.TempDir(), "state"))
	const unpicked = `NetworkPolicy shop/nobody true 0/0 [] in use, but: spec.podSelector: picks no workload of namespace "shop"`
	r.say(t, "AuthorizationPolicy shop/api true 0/1 [n2]", "Mesh /default true 0/2 [n1 n2]", "NetworkPolicy shop/all true 0/2 [n1 n2]", unpicked,
		"NetworkPolicy shop/web true 0/1 [n1]", "PeerAuthentication shop/web true 0/1 [n1]")
	a := r.agent(t, r.join(t, "n1", filepath.Join(t.TempDir(), "n1")), "n1")
	a.await(t, "n1 applies it", has("web"))
	r.say(t, "AuthorizationPolicy shop/api true 0/1 [n2]", "Mesh /default true 1/2 [n2]", "NetworkPolicy shop/all true 1/2 [n2]", unpicked,
		"NetworkPolicy shop/web true 1/1 []", "PeerAuthentication shop/web true 1/1 []")
	// What is refused is named with the reason; what was in force is.
	bad := filepath.Join(folder, "bad.yaml")
	write(t, bad, `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: bad}, spec: {ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]}}`)
	r.say(t, "AuthorizationPolicy shop/api true 0/1 [n2]", "Mesh /default true 1/2 [n2]", "NetworkPolicy shop/all true 1/2 [n2]",
		`NetworkPolicy shop/bad false 0/0 [] spec.ingress[0].from[0].ipBlock.cidr: "010.0.0.0/8" is not an address block`, unpicked,
		"NetworkPolicy shop/web true 1/1 []", "PeerAuthentication shop/web true 1/1 []")
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(folder, "policies.yaml")); err != nil {
		t.Fatal(err)
	}
	r.say(t, "Mesh /default true 1/2 [n2]")
	if s := r.status(t); len(s.GetPolicies()) != 0 {
		t.Error("policies are told of unasked")
	}
}

// withStatus are the kinds of the API whose objects have a status of ours.
func withStatus(t *testing.T) map[string]bool {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for kind, of := range scheme.KnownTypes(v1alpha1.GroupVersion()) {
		if field, ok := of.FieldByName("Status"); ok && field.Type == reflect.TypeFor[v1alpha1.Status]() {
			kinds[kind] = true
		}
	}
	return kinds
}

// TestEveryKindHasAStatus: an object of each of Heddle's kinds says whether it is
// accepted, or which field is refused, and on how many nodes agents have it in
// force; what its status says, and of NetworkPolicies what no status could, the
// replica that leads says too.
func TestEveryKindHasAStatus(t *testing.T) {
	web := object{"matchLabels": object{"app": "web"}}
	kinds := map[string]struct {
		resource  string
		good, bad object
		says      string
	}{
		"Workload": {"workloads", object{"node": "n1", "serviceAccount": "vm", "addresses": []any{"10.0.0.9"}, "networkNamespace": "/run/netns/vm"},
			object{"node": "n1", "serviceAccount": "vm", "addresses": []any{"10.0.0.300"}, "networkNamespace": "/run/netns/other"}, "spec.addresses[0]"},
		"PeerAuthentication":  {"peerauthentications", object{"selector": web, "mode": "PERMISSIVE"}, object{"selector": object{"matchLabels": object{"app": "none"}}, "mode": "LOUD"}, "spec.mode"},
		"AuthorizationPolicy": {"authorizationpolicies", object{"selector": web, "rules": []any{object{}}}, object{"rules": []any{object{"from": []any{object{"ipBlocks": []any{"10.0.0.1/8"}}}}}}, "spec.rules[0].from[0].ipBlocks[0]"},
		"Mesh":                {"meshes", object{"trustDomain": "test.example", "clusterRanges": []any{"10.0.0.0/8"}}, object{"trustDomain": "test.example", "clusterRanges": []any{"10.0.0.1/8"}}, "spec.clusterRanges[0]"},
	}
	for kind := range withStatus(t) {
		if _, ok := kinds[kind]; !ok {
			t.Errorf("kind %s has a status, and is not tested here", kind)
		}
	}
	s := newCluster(t)
	put := func(kind, name string, spec object) {
		path, namespace := heddle+"/namespaces/shop/"+kinds[kind].resource, "shop"
		if kind == "Mesh" {
			path, namespace = heddle+"/meshes", ""
		}
		s.Put(t, path, object{"apiVersion": "heddle.dev/v1alpha1", "kind": kind, "metadata": meta(namespace, name, nil), "spec": spec})
	}
	says := func(kind, name, which, want string) {
		t.Helper()
		path := heddle + "/namespaces/shop/" + kinds[kind].resource
		if kind == "Mesh" {
			path = heddle + "/meshes"
		}
		testenv.Eventually(t, 15*time.Second, kind+" "+name+" "+which+" says "+want, func() bool { return strings.HasPrefix(condition(s.Get(path, name), which), want) })
	}
	for kind, c := range kinds {
		if kind != "Mesh" {
			put(kind, "good", c.good)
			put(kind, "bad", c.bad)
		}
	}
	for name, spec := range map[string]object{"good": {"podSelector": web}, "bad": {"podSelector": web, "egress": []any{object{"ports": []any{object{"protocol": "ICMP"}}}}}} {
		s.Put(t, "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies", object{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta("shop", name, nil), "spec": spec})
	}
	r := startReplica(t, s, "heddle-operator-0")
	r.awaitReady(t)
	for _, node := range []string{"n1", "n2"} {
		a := r.agent(t, r.mustJoin(t, s, node), node)
		a.await(t, node+" applies it", func(v *mesh.View) bool { return len(v.Policies()) > 0 })
	}
	for kind, c := range kinds {
		name, nodes := "good", 1
		if kind == "Mesh" {
			name, nodes = "default", 2
		}
		says(kind, name, v1alpha1.ConditionAccepted, "True Accepted: in use")
		says(kind, name, v1alpha1.ConditionLive, fmt.Sprintf("True Live: on all of %d nodes", nodes))
		if kind != "Mesh" {
			says(kind, "bad", v1alpha1.ConditionAccepted, "False Invalid: "+c.says)
		}
	}
	says("AuthorizationPolicy", "bad", v1alpha1.ConditionLive, "True Live: on all of 2 nodes, but not as it says: what is in force in place of what is refused lets nobody in")
	const networkPolicies = "NetworkPolicy shop/bad false 1/1 [] spec.egress[0].ports[0].protocol"
	r.say(t, "AuthorizationPolicy shop/bad false 2/2 [] spec.rules[0].from[0].ipBlocks[0]", "AuthorizationPolicy shop/good true 1/1 []", "Mesh /default true 2/2 []", networkPolicies,
		"NetworkPolicy shop/good true 1/1 []", "PeerAuthentication shop/bad false 0/0 [] spec.mode", "PeerAuthentication shop/good true 1/1 []")
	// A Mesh that is refused changes nothing, and says why.
	put("Mesh", "default", kinds["Mesh"].bad)
	says("Mesh", "default", v1alpha1.ConditionAccepted, "False Invalid: "+kinds["Mesh"].says)
}

// TestPoliciesThatNoWaypointSees: a policy about requests whose workloads have no waypoint any
// more says so in its status, and stays in force: it lets nobody in there.
func TestPoliciesThatNoWaypointSees(t *testing.T) {
	s := newCluster(t)
	const gatewayGroup = "gateway.networking.k8s.io/v1"
	s.Serve(gatewayGroup, "gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "tcproutes", "referencegrants")
	service := func(name string, labels object) {
		s.Put(t, core+"/namespaces/shop/services", object{"apiVersion": "v1", "kind": "Service", "metadata": meta("shop", name, labels),
			"spec": object{"clusterIP": map[string]any{"api": "10.96.0.7", "web": "10.96.0.8"}[name], "selector": object{"app": name}, "ports": []any{object{"name": "http", "port": 80, "targetPort": map[string]any{"api": 8080, "web": mesh.WaypointPort}[name]}}}})
	}
	service("web", nil) // is the waypoint
	service("api", object{v1alpha1.LabelWaypoint: "web"})
	policies := heddle + "/namespaces/shop/authorizationpolicies"
	s.Put(t, policies, object{"apiVersion": "heddle.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": meta("shop", "readers", nil),
		"spec": object{"selector": object{"matchLabels": object{"app": "api"}}, "rules": []any{object{"to": []any{object{"methods": []any{"GET"}, "headers": []any{object{"name": "X-Role"}}}}}}}})
	r := startReplica(t, s, "heddle-operator-0")
	r.awaitReady(t)
	n := r.mustJoin(t, s, "n2")
	a := r.agent(t, n, "n2")
	says := func(accepted, live string) {
		t.Helper()
		for which, want := range map[string]string{v1alpha1.ConditionAccepted: accepted, v1alpha1.ConditionLive: live} {
			testenv.Eventually(t, 30*time.Second, "the status says "+want, func() bool { return strings.HasPrefix(condition(s.Get(policies, "readers"), which), want) })
		}
		a.await(t, "n2 lets in nobody whose request it does not know", func(v *mesh.View) bool {
			w, ok := v.Workload(mesh.Key{Namespace: "shop", Name: "api"})
			if !ok {
				return false
			}
			_, d := v.Authorize(mesh.Connection{Source: netip.MustParseAddr("10.0.0.9"), Peer: mustIdentity(t, "guest"), Destination: w, Port: 8080})
			return d.Reason == mesh.ReasonRequestUnseen
		})
	}
	const nobodyThere = "False Pending: on 1 of 2 nodes and pods of waypoints; not on waypoint shop/web (none of its pods is connected)"
	says("True Accepted: in use", nobodyThere)
	service("api", nil)
	says("False Invalid: spec.rules[0].to[0]: is about requests to workload shop/api, and no waypoint sees these: what it names is refused there",
		"True Live: on all of 1 nodes, but not as it says: what is in force in place of what is refused lets nobody in")
	service("api", object{v1alpha1.LabelWaypoint: "web"})
	says("True Accepted: in use", nobodyThere)
	// A route that has connections passed on as they are, with the requests in them.
	for resource, spec := range map[string]object{"tcproutes": {"kind": "TCPRoute"}, "tlsroutes": {"kind": "TLSRoute", "hostnames": []any{"api.example.com"}}} {
		kind := spec["kind"]
		delete(spec, "kind")
		spec["parentRefs"] = []any{object{"group": "", "kind": "Service", "name": "api", "port": 80}}
		spec["rules"] = []any{object{"backendRefs": []any{object{"name": "api", "port": 80}}}}
		routes := "/apis/" + gatewayGroup + "/namespaces/shop/" + resource
		s.Put(t, routes, object{"apiVersion": gatewayGroup, "kind": kind, "metadata": meta("shop", "api", nil), "spec": spec})
		says("False Invalid: spec.rules[0].to[0]: is about requests to workload shop/api, and no waypoint sees these: what it names is refused there", nobodyThere)
		s.Delete(routes, "api")
		says("True Accepted: in use", nobodyThere)
	}
}

func mustIdentity(t *testing.T, account string) spiffeid.ID {
	t.Helper()
	id, err := mesh.IdentityFor(spiffeid.RequireTrustDomainFromString("test.example"), "shop", account)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestPodsAmiss: a node has a policy in force only while its pods are as its agent has
// acknowledged; the status says which node it is, and so does what `heddle status` asks.
func TestPodsAmiss(t *testing.T) {
	s := newCluster(t)
	policies := heddle + "/namespaces/shop/authorizationpolicies"
	s.Put(t, policies, object{"apiVersion": "heddle.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": meta("shop", "good", nil),
		"spec": object{"rules": []any{object{"from": []any{object{"namespaces": []any{"shop"}}}}}}})
	r := startReplica(t, s, "heddle-operator-0")
	r.awaitReady(t)
	var amiss atomic.Int32
	for _, node := range []string{"n1", "n2"} {
		n := r.mustJoin(t, s, node)
		r.agent(t, n, node)
		if node == "n2" {
			followWith(t, n, "spiffe://test.example/ns/shop/sa/api", func() int { return int(amiss.Load()) })
		}
	}
	says := func(want string, live uint32, pending ...string) {
		t.Helper()
		testenv.Eventually(t, 15*time.Second, "the status says "+want, func() bool { return condition(s.Get(policies, "good"), v1alpha1.ConditionLive) == want })
		state, err := r.admin.Status(t.Context(), &meshpb.OperatorStateRequest{Policies: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range state.GetPolicies() {
			if p.GetName() == "good" && (p.GetLive() != live || p.GetNodes() != 2 || !slices.Equal(p.GetPending(), pending)) {
				t.Errorf("while the status says %q, the operator says %v", want, p)
			}
		}
	}
	says("True Live: on all of 2 nodes", 2)
	amiss.Store(3)
	says("False Pending: on 1 of 2 nodes; not on n2 (3 of its pods not as they should be: `heddle check` there says why)", 1, "n2")
	amiss.Store(0)
	says("True Live: on all of 2 nodes", 2)
}

// TestNewestReportCounts: agents that have gone to another replica leave their old
// reports behind.
func TestNewestReportCounts(t *testing.T) {
	nodes := []*meshpb.OperatorNode{{Name: "n1", Epoch: 7, Connected: true}, {Name: "n2", Epoch: 7}, {Name: "n3", Epoch: 7}}
	pods := []*meshpb.NodePods{{Node: "n1", Amiss: 2, ReportedNs: 1}, {Node: "n2", ReportedNs: 1, Gone: true}, {Node: "n1", ReportedNs: 2, Gone: true}, {Node: "n2", Amiss: 1, ReportedNs: 2, Gone: true}, {Node: "n2", ReportedNs: 1, Gone: true}}
	want := []report.Node{{Name: "n1", Epoch: 7, Connected: true, Reports: true}, {Name: "n2", Epoch: 7, Amiss: 1}, {Name: "n3", Epoch: 7}}
	if got := acknowledged(nodes, pods); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
