package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/apiserver"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/cmd/internal/startup"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// onCluster is a cluster of a real API server, with Heddle installed; its nodes'
// kubelets run the programs' own admin-pipe, to the sockets of fakes.
type onCluster struct {
	t *testing.T
	*apiserver.Server
	sockets string
	rings   map[string]*flow.Ring
	config  []string // flags
	// following are the agents, where they are such.
	following []*followingAgent
}

// newCluster makes nodes with an agent each, and one replica of the operator.
func newCluster(t *testing.T, agents ...admin.Agent) *onCluster {
	t.Helper()
	sockets, err := os.MkdirTemp("/tmp", "heddle-cli") // sockets' paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { awaitHeartbeats(t) })
	w := &onCluster{t: t, Server: apiserver.Start(t), sockets: sockets, rings: map[string]*flow.Ring{}}
	w.config = []string{"--kubeconfig", w.Kubeconfig, "--state-dir", sockets + "/none"}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, len(agents)+1)
	t.Cleanup(func() {
		cancel()
		for range len(agents) + 1 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(sockets); err != nil {
			t.Error(err)
		}
	})
	for i := range agents {
		w.Kubelet(t, fmt.Sprintf("n%d", i+1), w.exec)
	}
	var log strings.Builder
	root := (&app{out: io.Discard, log: &log}).root()
	root.SetArgs([]string{"install", "--wait", "0", "--kubeconfig", w.Kubeconfig})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	for i, a := range agents {
		pod := fmt.Sprintf("heddle-agent-%d", i+1)
		w.pod("agent", pod, fmt.Sprintf("n%d", i+1))
		ring := flow.NewRing(64)
		w.rings[pod] = ring
		server, err := admin.NewServer(admin.Config{Node: fmt.Sprintf("n%d", i+1), Socket: filepath.Join(sockets, pod), Ring: ring, Agent: a, Log: slog.New(slog.DiscardHandler),
			History: (&fakeAgent{node: fmt.Sprintf("n%d", i+1)}).history(t)})
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- server.Run(ctx) }()
		awaitSocket(t, filepath.Join(sockets, pod))
	}
	w.pod("operator", "heddle-operator-1", "n1")
	go func() {
		done <- admin.Serve(ctx, filepath.Join(sockets, "heddle-operator-1"), func(s *grpc.Server) { meshpb.RegisterOperatorAdminServer(s, fakeOperator{}) }, slog.New(slog.DiscardHandler))
	}()
	awaitSocket(t, filepath.Join(sockets, "heddle-operator-1"))
	return w
}

// awaitHeartbeats waits for goroutines of client-go that see only at their next
// turn, within 5 s, that their websocket is closed.
func awaitHeartbeats(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, 15*time.Second, "the heartbeats of closed websockets end", func() bool {
		stacks := make([]byte, 4<<20)
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "remotecommand.(*heartbeat).start")
	})
}

// pod puts a running pod of Heddle on a node.
func (w *onCluster) pod(component, name, node string) {
	w.t.Helper()
	w.Put(w.t, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {namespace: heddle-system, name: %[2]s, labels: {app.kubernetes.io/part-of: heddle, app.kubernetes.io/component: %[1]s}}
spec: {nodeName: %[3]s, containers: [{name: %[1]s, image: x}]}
status: {phase: Running, conditions: [{type: Ready, status: "True"}]}
`, component, name, node))
}

// exec is what a kubelet does: it runs the program's subcommand.
func (w *onCluster) exec(ctx context.Context, pod string, command []string, in io.Reader, out, errOut io.Writer) error {
	name := strings.TrimPrefix(pod, "heddle-system/")
	if name == "heddle-agent-hangs" {
		_, err := io.Copy(io.Discard, in) // until whoever asks gives up
		return err
	}
	if program := "/heddle-" + strings.Split(name, "-")[1]; len(command) != 2 || command[0] != program {
		return fmt.Errorf("%v: executable file not found", command)
	}
	cmd := startup.AdminPipe(filepath.Join(w.sockets, name), func(string) (string, bool) { return "", false }, in, out)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(command[2:])
	if command[1] != cmd.Name() {
		return fmt.Errorf("%v: unknown command", command)
	}
	err := cmd.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(errOut, err)
	}
	return err
}

// heddle runs a command line against the cluster.
func (w *onCluster) heddle(args ...string) (code int, out, log string) {
	w.t.Helper()
	config := w.config
	if i := slices.Index(config, "--state-dir"); i >= 0 && (slices.Contains([]string{"install", "upgrade", "uninstall"}, args[0]) || slices.Contains(args, "--cluster")) {
		config = slices.Delete(slices.Clone(config), i, i+2) // which do not look there
	}
	return heddle(w.t, append(slices.Clone(config), args...)...) // those of args win
}

// expect runs a command line and compares exit status and what it says.
func (w *onCluster) expect(code int, says string, args ...string) string {
	w.t.Helper()
	got, out, log := w.heddle(args...)
	if got != code || !strings.Contains(out+log, says) {
		w.t.Errorf("heddle %s: exit %d, want %d with %q:\n%s%s", strings.Join(args, " "), got, code, says, out, log)
	}
	return out
}

// TestAgentsOfACluster: what asks agents reaches those of all nodes, one that
// does not answer is named, and the others go on.
func TestAgentsOfACluster(t *testing.T) {
	w := newCluster(t, &fakeAgent{node: "n1"}, &fakeAgent{node: "n2"})
	for pod, ring := range w.rings {
		for range 3 {
			ring.Add(sampleFlow(strings.Replace(pod, "heddle-agent-", "n", 1), mesh.VerdictDeny, mesh.ReasonPolicyDeny))
		}
	}
	out := w.expect(0, "PolicyDeny shop/only-api[0]", "flows", "-n", "shop", "--last", "5")
	if lines := strings.Count(out, "\n"); lines != 6 {
		t.Errorf("want a header and 5 flows:\n%s", out)
	}
	if out = w.expect(0, "n2", "flows", "--node", "n2", "-o", "json"); strings.Count(out, "\n") != 3 {
		t.Errorf("want the 3 flows of n2:\n%s", out)
	}
	w.expect(0, "", "flows", "-n", "other")
	w.expect(0, "shop/db", "connections")
	w.expect(0, "shop/n2", "prove")
	w.expect(0, "shop/n2", "prove", "shop/n2")
	w.expect(1, "heddle check", "prove", "shop/none")
	w.expect(2, "there are n1, n2", "flows", "--node", "n9")
	w.expect(2, "no join tokens on Kubernetes", "join-token", "list")
	w.expect(3, "--system-namespace", "flows", "--system-namespace", "default")
	w.expect(1, "ask an administrator", "flows", "--context", "guest")
	w.expect(1, "agents: could not look", "check", "--context", "guest") // and the rest is looked at
	w.expect(1, "may not list", "explain", "shop/n1", "shop/n2:80", "--context", "guest")
	w.expect(2, "unknown command", "waypoint", "none")
	w.mayOnlyLook()
	w.follow()
	w.expect(0, "shop/n2", "prove", "shop/n2", "--kubeconfig", w.withoutWebsockets())

	w.Kubelet(t, "n3", w.exec)
	w.pod("agent", "heddle-agent-hangs", "n3")
	out = w.expect(3, "agent of node n3: ", "flows", "--timeout", "2s")
	if lines := strings.Count(out, "\n"); lines != 9 {
		t.Errorf("the other nodes' flows are missing:\n%s", out)
	}
	w.expect(3, "no answer in time", "check", "--timeout", "2s")
	w.pod("agent", "heddle-agent-none", "n1") // its socket is not there: it is younger, and asked first
	w.Delete(t, `{apiVersion: v1, kind: Pod, metadata: {namespace: heddle-system, name: heddle-agent-1}}`)
	w.expect(3, "no such socket: is the program running?", "prove", "--node", "n1")
	w.Put(t, `apiVersion: v1
kind: Pod
metadata: {namespace: heddle-system, name: heddle-agent-none, labels: {app.kubernetes.io/part-of: heddle, app.kubernetes.io/component: agent}}
spec: {nodeName: n1, containers: [{name: agent, image: x}]}
status: {phase: Pending, containerStatuses: [{name: agent, image: x, imageID: "", ready: false, restartCount: 0, state: {waiting: {reason: ErrImagePull, message: not found}}}]}`)
	w.expect(3, "ErrImagePull: not found; remedy: kubectl -n heddle-system describe pod heddle-agent-none", "prove", "--node", "n1")
}

// mayOnlyLook: a guest who may read Heddle's pods, and may not execute anything in them, is told to ask for that right,
// and not to start what runs.
func (w *onCluster) mayOnlyLook() {
	w.t.Helper()
	w.Put(w.t, `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: looks}, rules: [{apiGroups: ["*"], resources: ["*"], verbs: [list]}]}`)
	w.Put(w.t, `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: looks}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: looks}, subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: guest}]}`)
	out := w.expect(3, "", "check", "--context", "guest", "--output", "json")
	var said health.Report
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
	asked := 0
	for _, f := range said.Findings {
		if f.Name != "agent" && f.Name != "operator" || f.Part == "cluster" {
			continue
		}
		if asked++; !strings.Contains(f.Detail, `cannot create resource "pods/exec"`) || !strings.HasPrefix(f.Remedy, "ask an administrator for this right") {
			w.t.Errorf("of a program that a guest may not ask: %+v", f)
		}
	}
	if asked < 3 {
		w.t.Errorf("two agents and an operator may not be asked, and of %d it is said:\n%s", asked, out)
	}
}

// withoutWebsockets is a kubeconfig by which the API server is reached through a
// proxy that knows no websockets: SPDY is left.
func (w *onCluster) withoutWebsockets() string {
	t := w.t
	t.Helper()
	text, err := os.ReadFile(w.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	server := regexp.MustCompile(`https://127\.0\.0\.1:\d+`).FindString(string(text))
	behind, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int32
	proxy := httputil.NewSingleHostReverseProxy(behind)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true} // on loopback
	front := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			refused.Add(1)
			http.Error(rw, "no websockets here", http.StatusBadRequest)
			return
		}
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
		if refused.Load() == 0 {
			t.Error("no websocket was tried")
		}
	})
	config := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(string(text), server, front.URL)), 0o600); err != nil {
		t.Fatal(err)
	}
	return config
}

// follow follows flows until one of each node has come.
func (w *onCluster) follow() {
	t := w.t
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := &lines{added: make(chan struct{}, 64)}
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, append([]string{"heddle", "flows", "-f", "--last", "1"}, w.config...), seen, seen, false)
	}()
	for range 3 { // the header, and what each node had
		select {
		case <-seen.added:
		case <-time.After(20 * time.Second):
			t.Fatal("nothing came")
		}
	}
	for pod, ring := range w.rings {
		ring.Add(sampleFlow(pod, mesh.VerdictAllow, mesh.ReasonNoPolicy))
	}
	for range 2 {
		select {
		case <-seen.added:
		case <-time.After(10 * time.Second):
			t.Fatal("no new flow came")
		}
	}
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("interrupted: exit %d", code)
	}
}

// TestWhichMesh is the rule by which a cluster is meant, or not.
func TestWhichMesh(t *testing.T) {
	local, _ := world(t, &fakeAgent{node: "n1"})
	none, home := t.TempDir(), t.TempDir()
	config := filepath.Join(home, "config")
	if err := os.WriteFile(config, []byte("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"http://127.0.0.1:1\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		env, args string
		code      int
		want      string
	}{
		{"", "flows --state-dir " + none, 3, "no such mesh"},
		{config, "flows --state-dir " + none, 3, "no cluster answers"},
		{config, "flows --name m --state-dir " + none, 3, "no such mesh"},
		{config, "flows --socket " + none + "/s --state-dir " + none, 3, "no such socket"},
		{config, "flows --state-dir " + local, 0, "TIME"},
		{"", "flows --state-dir " + local + " --kubeconfig " + config, 3, "no cluster answers"},
		{config, "flows --state-dir " + local + " --context c", 3, "no cluster answers"},
		{"", "flows --state-dir " + local + " --kubeconfig " + config + "x", 3, "name one with --kubeconfig"},
		{config, "check --state-dir " + none, 3, "no cluster answers"},
		{config, "check --state-dir " + local, 0, "All is well."},
		{"", "check --state-dir " + none, 3, "none runs on this machine"},
		{"", "check --state-dir " + none, 3, "start a mesh with `heddle local up --file FOLDER --create-pods`, or an agent; or name a cluster with --kubeconfig"},
	} {
		t.Setenv("HOME", none)
		t.Setenv("KUBECONFIG", tc.env)
		code, out, log := heddle(t, strings.Fields(tc.args)...)
		if code != tc.code || !strings.Contains(out+log, tc.want) {
			t.Errorf("KUBECONFIG=%s heddle %s: exit %d, want %d with %q:\n%s%s", tc.env, tc.args, code, tc.code, tc.want, out, log)
		}
	}
}
