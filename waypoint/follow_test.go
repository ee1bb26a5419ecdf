package waypoint_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator"
	"github.com/heddle-mesh/heddle/waypoint"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const mesh = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: test.example
  clusterRanges: ["10.0.0.0/8"]
  defaults: {peerAuthentication: PERMISSIVE}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: cart, labels: {app: cart}}
spec: {node: n1, serviceAccount: cart, addresses: [10.0.0.1], networkNamespace: /run/netns/cart}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: gate}
spec: {clusterIP: 10.1.0.1, selector: {app: gate}, ports: [{port: 15009}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart, labels: {heddle.dev/waypoint: gate}}
spec: {clusterIP: 10.1.0.2, selector: {app: cart}, ports: [{port: 80, targetPort: 8080}]}
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

// startOperator serves a folder until stop is called. Token is one for the waypoint shop/gate.
func startOperator(t *testing.T, folder, state, address string) (token string, stop func()) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	op, err := operator.New(operator.Config{Folder: folder, StateDir: state, Listen: address, Advertise: address, AdminSocket: socket,
		Debounce: 10 * time.Millisecond, Relist: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	stop = running(t, op.Run)
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}()
	testenv.Eventually(t, 20*time.Second, "the operator answers", func() bool {
		made, err := meshpb.NewOperatorAdminClient(conn).CreateJoinToken(t.Context(), &meshpb.CreateJoinTokenRequest{Node: "waypoint/shop/gate"})
		token = made.GetToken()
		return err == nil
	})
	return token, stop
}

// running runs something until stop is called, or the test ends.
func running(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// TestFollowsAnOperator: requests go by what the operator says, as soon as it says it, while
// it is away, and after a restart without it; before there is anything, the waypoint is not ready.
func TestFollowsAnOperator(t *testing.T) {
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })}
	go func() { _ = server.Serve(app) }() // it ends when it is closed
	t.Cleanup(func() { _ = server.Close() })

	dir := t.TempDir()
	folder, state := filepath.Join(dir, "mesh"), filepath.Join(dir, "operator")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+"~", []byte(text), 0o600), os.Rename(path+"~", path)); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(folder, "mesh.yaml"), strings.ReplaceAll(mesh, "PATH", "/a"))
	address, listen, metrics := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)), fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)), fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	token, stopOperator := startOperator(t, folder, state, address)
	stopOperator()
	write(filepath.Join(dir, "token"), token)

	cfg := waypoint.Defaults()
	cfg.Waypoint, cfg.Listen, cfg.Metrics, cfg.Direct, cfg.Reach = "shop/gate", listen, metrics, "10.1.0.2:80", map[string]string{"10.0.0.1:8080": app.Addr().String()}
	cfg.Follow = waypoint.Follow{JoinTokenFile: filepath.Join(dir, "token"), StateDir: filepath.Join(dir, "state")}
	cfg.Serve.Loops = 1
	start := func() (stop func()) {
		t.Helper()
		w, err := waypoint.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return running(t, w.Run)
	}
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	get := func(url string) string {
		resp, err := client.Get("http://" + url)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%d %s", resp.StatusCode, strings.TrimSpace(string(text)))
	}
	until := func(url, want string) {
		t.Helper()
		testenv.Eventually(t, 40*time.Second, url+" answers "+want, func() bool { return strings.HasPrefix(get(url), want) })
	}
	stop := start()
	until(metrics+"/readyz", "503 no configuration yet: connect to operator")
	_, stopOperator = startOperator(t, folder, state, address)
	until(metrics+"/readyz", "200 ready")
	until(listen+"/a/x", "200 /a/x")
	until(listen+"/b/x", "404")
	write(filepath.Join(folder, "mesh.yaml"), strings.ReplaceAll(mesh, "PATH", "/b"))
	until(listen+"/b/x", "200 /b/x")
	until(listen+"/a/x", "404")
	if text := get(metrics + "/metrics"); !strings.Contains(text, "heddle_discovery_current 1") || !strings.Contains(text, "heddle_operator_connected 1") {
		t.Errorf("the metrics say nothing of the operator:\n%s", text)
	}
	stopOperator()
	until(metrics+"/metrics", "200")
	testenv.Eventually(t, 20*time.Second, "disconnected", func() bool { return strings.Contains(get(metrics+"/metrics"), "heddle_operator_connected 0") })
	until(listen+"/b/x", "200 /b/x")
	until(metrics+"/readyz", "200 ready")
	client.CloseIdleConnections()
	stop()
	stop = start()
	until(listen+"/b/x", "200 /b/x")
	until(metrics+"/readyz", "200 ready")
	client.CloseIdleConnections()
	stop()
}

// TestFlagsOfAnOperator: what does not go together is said by the names of the flags.
func TestFlagsOfAnOperator(t *testing.T) {
	for want, follow := range map[string]waypoint.Follow{
		"--config is not given":                      {},
		"--token-file is not given":                  {Operator: "o:1"},
		"--token-file needs --operator":              {TokenFile: "t", Operator: "o:1"},
		"--token-file and --join-token-file exclude": {TokenFile: "t", JoinTokenFile: "j"},
		"--join-token-file and --roots-file exclude": {JoinTokenFile: "j", RootsFile: "r"},
		"--state-dir is empty":                       {JoinTokenFile: "j"},
	} {
		cfg := waypoint.Defaults()
		cfg.Waypoint, cfg.Follow = "shop/gate", follow
		if _, err := waypoint.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	cfg := waypoint.Defaults()
	cfg.Waypoint, cfg.Folder, cfg.Follow.Operator = "shop/gate", "mesh", "o:1"
	if _, err := waypoint.New(cfg); err == nil || !strings.Contains(err.Error(), "exclude each other") {
		t.Error(err)
	}
	cfg.Folder, cfg.Follow.TokenFile, cfg.Follow.RootsFile = "", "t", "r"
	w, err := waypoint.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Check(); err == nil || !strings.Contains(err.Error(), "heddle check") {
		t.Error(err)
	}
}
