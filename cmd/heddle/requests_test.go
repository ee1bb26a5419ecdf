package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// fakeWaypoint has shown one request, whatever it is asked, unless a filter does not want it.
type fakeWaypoint struct {
	meshpb.UnimplementedFlowsServer
}

// Watch implements meshpb.FlowsServer.
func (fakeWaypoint) Watch(req *meshpb.WatchFlowsRequest, stream grpc.ServerStreamingServer[meshpb.WatchFlowsResponse]) error {
	r := flow.Request{Start: time.Now().Add(-500 * time.Millisecond), Duration: 20 * time.Millisecond, Service: "shop/db:80", Verdict: mesh.VerdictAllow, Reason: "BackendReset", Rule: -1,
		Source:      flow.Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "web"}},
		Destination: flow.Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "db"}},
		HTTP:        flow.HTTP{Method: "GET", Path: "/items/*", Status: 502, Route: "HTTPRoute shop/db rules[0]", Backend: "shop/db:80", Tries: 2, First: "status 503"}}
	filter, err := flow.FilterFromProto(req.GetFilter())
	if err != nil || !filter.MatchRequest(&r) {
		return err
	}
	return stream.Send(&meshpb.WatchFlowsResponse{Flow: r.ToProto(1, "waypoint-1", mesh.Key{Namespace: "shop", Name: "waypoint"})})
}

// serveWaypoint runs one at a socket until the test ends.
func serveWaypoint(t *testing.T, path string) {
	t.Helper()
	serveFlows(t, path, fakeWaypoint{})
}

func serveFlows(t *testing.T, path string, flows meshpb.FlowsServer) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- admin.Serve(ctx, path, func(g *grpc.Server) { meshpb.RegisterFlowsServer(g, flows) }, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	awaitSocket(t, path)
}

// requestLine is what a table has of the request.
const requestLine = "GET /items/* 502 after 2 tries by shop/db"

// TestRequestsOfAWaypoint: they are among the flows of a local mesh, at the socket that is named.
func TestRequestsOfAWaypoint(t *testing.T) {
	state, rings := world(t, &fakeAgent{node: "n1"})
	for _, r := range rings {
		r.Add(sampleFlow("n1", mesh.VerdictDeny, mesh.ReasonPolicyDeny))
	}
	socket := filepath.Join(t.TempDir(), "w")
	serveWaypoint(t, socket)
	for _, c := range []struct {
		args           string
		code           int
		request, agent bool
	}{
		{"", exitOK, true, true}, {"--direction request", exitOK, true, false}, {"--direction inbound", exitOK, false, true}, {"--direction inbound,request", exitOK, true, true},
		{"--status 5xx", exitOK, true, false}, {"--status 404", exitOK, false, false}, {"--method GET --route shop/db", exitOK, true, false}, {"--verdict deny", exitOK, false, true},
		{"--workload shop/web", exitOK, true, true}, {"--reason PolicyDeny", exitOK, false, true},
	} {
		code, out, log := heddle(t, append([]string{"flows", "--state-dir", state, "--waypoint-socket", socket}, strings.Fields(c.args)...)...)
		if code != c.code || strings.Contains(out, requestLine) != c.request || strings.Contains(out, "PolicyDeny shop/only-api[0]") != c.agent {
			t.Errorf("flows %s: exit %d:\n%s%s", c.args, code, out, log)
		}
	}
	if code, out, log := heddle(t, "flows", "--state-dir", state, "--waypoint-socket", socket, "--wide", "--status", "502"); code != exitOK || !strings.Contains(out, "HTTPRoute shop/db rules[0], shop/db:80, status 503") {
		t.Errorf("wide: exit %d:\n%s%s", code, out, log)
	}
	want := `"request":{"method":"GET","path":"/items/*","status":502,"route":"HTTPRoute shop/db rules[0]","backend":"shop/db:80","tries":2,"firstError":"status 503"}`
	if code, out, log := heddle(t, "flows", "--state-dir", state, "--waypoint-socket", socket, "-o", "json"); code != exitOK || !strings.Contains(out, want) || strings.Count(out, `"request":`) != 1 {
		t.Errorf("json: exit %d:\n%s%s", code, out, log)
	}
	if code, _, log := heddle(t, "flows", "--state-dir", state, "--status", "5xx"); code != exitUnreachable || !strings.Contains(log, "--waypoint-socket") {
		t.Errorf("no waypoint: exit %d: %s", code, log)
	}
	if code, out, log := heddle(t, "flows", "--state-dir", state, "--waypoint-socket", socket+"x"); code != exitUnreachable || !strings.Contains(log, "waypoint: ") || !strings.Contains(out, "PolicyDeny") {
		t.Errorf("a waypoint that does not answer: exit %d:\n%s%s", code, out, log)
	}
	if code, _, log := heddle(t, "flows", "--state-dir", state, "--status", "6xx"); code != exitUsage || !strings.Contains(log, "5xx") {
		t.Errorf("no status: exit %d: %s", code, log)
	}
}

// TestRequestsOfACluster: the waypoints of all namespaces are asked, in their pods.
func TestRequestsOfACluster(t *testing.T) {
	w := newCluster(t, &fakeAgent{node: "n1"})
	for _, ring := range w.rings {
		ring.Add(sampleFlow("n1", mesh.VerdictDeny, mesh.ReasonPolicyDeny))
	}
	w.expect(3, "there is no waypoint", "flows", "--direction", "request")
	w.expect(0, "Heddle", "install", "--wait", "0", "--gateway-api")
	w.Put(t, "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")
	w.Put(t, "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: heddle-waypoint}, spec: {controllerName: heddle.dev/operator}}")
	set := w.replicaSet("waypoint", "waypoint", "heddle-waypoint")
	w.replica("heddle-waypoint-1", "Running", "waypoint", set)
	w.replica("heddle-waypoint-2", "Succeeded", "waypoint", set)
	serveWaypoint(t, filepath.Join(w.sockets, "shop", "heddle-waypoint-1"))
	out := w.expect(0, requestLine, "flows")
	if !strings.Contains(out, "PolicyDeny shop/only-api[0]") {
		t.Errorf("the agents' are missing:\n%s", out)
	}
	w.expect(0, requestLine, "flows", "--direction", "request", "-n", "shop")
	if out := w.expect(0, "PolicyDeny", "flows", "--node", "n1"); strings.Contains(out, requestLine) {
		t.Errorf("one node is meant:\n%s", out)
	}
	// What tries an image is a Deployment of its own, and the same waypoint.
	w.replica("heddle-waypoint-canary", "Running", "waypoint", w.replicaSet("waypoint", "waypoint-canary", "heddle-waypoint"))
	serveWaypoint(t, filepath.Join(w.sockets, "shop", "heddle-waypoint-canary"))
	if out := w.expect(0, requestLine, "flows", "--direction", "request"); strings.Count(out, requestLine) != 2 {
		t.Errorf("the canary's are missing:\n%s", out)
	}
	// Labels are anybody's: who has nothing else is named, and not asked.
	w.replica("heddle-waypoint-bare", "Running", "waypoint", "")
	w.replica("heddle-waypoint-forged", "Running", "waypoint", "0e1f7d0a-0000-4000-8000-000000000000")
	w.replica("heddle-waypoint-account", "Running", "default", set)
	w.replica("heddle-waypoint-foreign", "Running", "other", w.replicaSet("other", "other", "somebodys"))
	out = w.expect(0, requestLine, "flows", "--direction", "request")
	if strings.Count(out, requestLine) != 2 {
		t.Errorf("more than the waypoint's are shown:\n%s", out)
	}
	_, _, log := w.heddle("flows")
	for _, says := range []string{"pod shop/heddle-waypoint-bare: no ReplicaSet of a waypoint has made it", "pod shop/heddle-waypoint-forged: no ReplicaSet", "pod shop/heddle-waypoint-account: its service account is \"default\"",
		"pod shop/heddle-waypoint-foreign: its Deployment other is of no Gateway of Heddle's"} {
		if !strings.Contains(log, "has a waypoint's labels and is none: "+says) {
			t.Errorf("nothing says %q in\n%s", says, log)
		}
	}
}

// owner is an ownerReference of a controller.
func owner(apiVersion, kind, name, uid string) string {
	if uid == "" {
		return ""
	}
	return fmt.Sprintf("ownerReferences: [{apiVersion: %s, kind: %s, name: %s, uid: %s, controller: true}]", apiVersion, kind, name, uid)
}

// replicaSet puts a Gateway of a class into namespace shop, and a Deployment as an operator
// makes of it; it returns the UID of the ReplicaSet of that.
func (w *onCluster) replicaSet(gateway, deployment, class string) string {
	w.t.Helper()
	put := func(apiVersion, kind, name, owner, spec string) string {
		w.t.Helper()
		w.Put(w.t, fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {namespace: shop, name: %s, labels: {app.kubernetes.io/part-of: heddle, app.kubernetes.io/component: waypoint}, %s}, spec: %s}", apiVersion, kind, name, owner, spec))
		return string(w.Get(w.t, apiVersion, kind, "shop", name).GetUID())
	}
	const pods = "{selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: waypoint, image: x}]}}}"
	uid := put("gateway.networking.k8s.io/v1", "Gateway", gateway, "", "{gatewayClassName: "+class+", listeners: [{name: mesh, port: 15009, protocol: heddle.dev/mesh}]}")
	uid = put("apps/v1", "Deployment", deployment, owner("gateway.networking.k8s.io/v1", "Gateway", gateway, uid), pods)
	return put("apps/v1", "ReplicaSet", deployment, owner("apps/v1", "Deployment", deployment, uid), pods)
}

// replica puts a pod with a waypoint's labels, of a ReplicaSet or of none.
func (w *onCluster) replica(name, phase, account, set string) {
	w.t.Helper()
	w.Put(w.t, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: %s, labels: {app.kubernetes.io/part-of: heddle, app.kubernetes.io/component: waypoint}, %s}
spec: {nodeName: n1, serviceAccountName: %s, containers: [{name: waypoint, image: x}]}
status: {phase: %s}
`, name, owner("apps/v1", "ReplicaSet", "waypoint", set), account, phase))
}

// TestWhatAWaypointIsBelieved: of requests to services of its own namespace, under its own
// name; everything else is said once, and not shown.
func TestWhatAWaypointIsBelieved(t *testing.T) {
	request := func(direction, service, workload string) *meshpb.Flow {
		return &meshpb.Flow{Direction: direction, Service: service, Waypoint: "bank/waypoint", Node: "somebody", Request: &meshpb.FlowRequest{},
			Source: &meshpb.FlowEndpoint{Workload: "bank/app"}, Destination: &meshpb.FlowEndpoint{Workload: workload}}
	}
	for _, c := range []struct {
		flow *meshpb.Flow
		ok   bool
	}{
		{request("request", "shop/db", "shop/db-1"), true}, {request("request", "shop/db", "bank/db-1"), true}, // a route sends it there
		{request("request", "", ""), true}, {request("request", "", "shop/db-1"), true},
		{request("request", "bank/db", "shop/db-1"), false}, {request("request", "", "bank/db-1"), false}, {request("request", "shopping/db", ""), false}, {request("request", "shop", ""), false},
		{request("inbound", "shop/db", "shop/db-1"), false}, {request("kernel", "", ""), false}, {&meshpb.Flow{Direction: "request", Service: "shop/db"}, false}, {nil, false},
	} {
		var log strings.Builder
		s := source{Target: reach.Target{Node: "shop/waypoint-1", Kind: "waypoint", Waypoint: "shop/waypoint"}, log: &log}
		if got := s.believed(c.flow); got != c.ok || got == strings.Contains(log.String(), "waypoint shop/waypoint-1 speaks of what is not its own") {
			t.Errorf("%v: %v, want %v: %s", c.flow, got, c.ok, log.String())
		}
		if c.ok && (c.flow.GetWaypoint() != "shop/waypoint" || c.flow.GetNode() != "waypoint-1") {
			t.Errorf("it bears a name of its own choice: %v", c.flow)
		}
		before := log.Len()
		if s.believed(c.flow); log.Len() != before {
			t.Errorf("said again: %s", log.String())
		}
	}
	agent := source{Target: reach.Target{Node: "n1", Kind: "agent"}}
	if f := request("inbound", "bank/db", ""); !agent.believed(f) || f.GetWaypoint() != "bank/waypoint" {
		t.Errorf("of an agent: %v", f)
	}
}

// failingFlows refuses whoever asks.
type failingFlows struct {
	meshpb.UnimplementedFlowsServer
}

// Watch implements meshpb.FlowsServer.
func (failingFlows) Watch(*meshpb.WatchFlowsRequest, grpc.ServerStreamingServer[meshpb.WatchFlowsResponse]) error {
	return status.Error(codes.Internal, "it has had enough")
}

// TestFollowGoesOnWithoutOneThatFails: the others' flows come; it ends when nobody is left.
func TestFollowGoesOnWithoutOneThatFails(t *testing.T) {
	state, rings := world(t, &fakeAgent{node: "n1"})
	socket := filepath.Join(t.TempDir(), "w")
	serveFlows(t, socket, failingFlows{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, log testenv.Log
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"heddle", "flows", "-f", "--state-dir", state, "--waypoint-socket", socket}, &out, &log, false)
	}()
	testenv.Eventually(t, time.Minute, "the failure is said", func() bool {
		return strings.Contains(log.String(), "going on without the waypoint: ") && strings.Contains(log.String(), "it has had enough")
	})
	for _, r := range rings {
		r.Add(sampleFlow("n1", mesh.VerdictDeny, mesh.ReasonPolicyDeny))
	}
	testenv.Eventually(t, time.Minute, "the agent's flows come", func() bool { return strings.Contains(out.String(), "PolicyDeny shop/only-api[0]") })
	cancel()
	if code := <-done; code != exitOK {
		t.Errorf("interrupted: exit %d: %s", code, log.String())
	}
	code, _, said := heddle(t, "flows", "-f", "--direction", "request", "--state-dir", state, "--waypoint-socket", socket)
	if code != exitFailed || !strings.Contains(said, "it has had enough") {
		t.Errorf("nobody is left: exit %d: %s", code, said)
	}
}
