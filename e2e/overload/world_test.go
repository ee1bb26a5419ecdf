package overload

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// folder is what the waypoint goes by: a service of HTTP/1.1, and one of HTTP/2 behind /two.
const folder = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: example.org
  clusterRanges: [10.0.0.0/8]
  defaults: {peerAuthentication: PERMISSIVE}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: waypoint}
spec: {clusterIP: 10.96.0.9, selector: {app: waypoint}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart}
spec: {clusterIP: 10.96.0.10, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8081}, {name: h2c, appProtocol: kubernetes.io/h2c, port: 82, targetPort: 8081}]}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: cart-1, labels: {app: cart}}
spec: {node: n1, serviceAccount: cart, addresses: [10.1.0.7]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: cart}
spec:
  parentRefs: [{group: "", kind: Service, name: cart, port: 80}]
  rules:
  - matches: [{path: {value: /two}}]
    backendRefs: [{name: cart, port: 82}]
  - backendRefs: [{name: cart, port: 80}]
`

// world is a waypoint that runs, and the workload behind it.
type world struct {
	t           *testing.T
	at, metrics string
	log         string
	ended       <-chan struct{}
	release     chan struct{} // closed when the workload is to answer /hold
}

// built is the path of the program.
func built(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "heddle-waypoint")
	testenv.Build(t, "../..", program, "./cmd/heddle-waypoint")
	return program
}

// start runs a waypoint, which command begins, in front of a workload of this process.
func start(t *testing.T, command []string, flags ...string) *world {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "mesh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mesh/shop.yaml"), []byte(folder), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, log: filepath.Join(dir, "log"), release: make(chan struct{})}
	app := w.workload()
	w.at, w.metrics = fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)), fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	log, err := os.Create(w.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the program has its own
	args := append(command[1:len(command):len(command)], "--waypoint", "shop/waypoint", "--config", filepath.Join(dir, "mesh"), "--listen", w.at, "--metrics", w.metrics, "--admin-socket", filepath.Join(dir, "socket"),
		"--direct", "10.96.0.10:80", "--reach", "10.1.0.7:8081="+app, "--access-log", filepath.Join(dir, "access.log"), "--access-log-sample", "0")
	cmd := exec.Command(command[0], append(args, flags...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	w.ended = testenv.StartBound(t, cmd)
	t.Cleanup(func() {
		if w.lives() {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended meanwhile
		}
		select {
		case <-w.ended:
		case <-time.After(30 * time.Second):
			t.Errorf("the waypoint does not stop")
			_ = cmd.Process.Kill()
			<-w.ended
		}
		if t.Failed() {
			said, _ := os.ReadFile(w.log)
			t.Logf("the waypoint said: %s", said[max(0, len(said)-2000):])
		}
	})
	for _, two := range []bool{false, true} {
		testenv.Eventually(t, 20*time.Second, "it serves", func() bool { return w.get(two) == nil })
	}
	return w
}

// workload serves both versions at one port, which it returns: /hold answers when it is released, and reads nothing before,
// /large has no end, and all else is a few bytes.
func (w *world) workload() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	s := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/hold"):
			select {
			case <-w.release:
			case <-r.Context().Done():
			}
		case strings.HasSuffix(r.URL.Path, "/large"):
			for piece := make([]byte, 64<<10); ; {
				if _, err := out.Write(piece); err != nil {
					return
				}
			}
		default:
			fmt.Fprint(out, "hello")
		}
	})}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(l) }() // until it is closed
	w.t.Cleanup(func() { _ = s.Close(); <-served })
	return l.Addr().String()
}

// lives reports whether the waypoint runs.
func (w *world) lives() bool {
	select {
	case <-w.ended:
		return false
	default:
		return true
	}
}

// patience is how long a client waits for an answer.
const patience = 5 * time.Second

// get asks once, on a connection of its own.
func (w *world) get(two bool) error {
	transport := &http.Transport{DisableKeepAlives: true, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(!two)
	transport.Protocols.SetUnencryptedHTTP2(two)
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://" + w.at + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(body) != "hello" {
		return fmt.Errorf("%d %q %w", resp.StatusCode, body, err)
	}
	return nil
}

// counted is the value of a series of the waypoint's metrics; 0 while it is not there.
func (w *world) counted(series string) (value float64) {
	w.t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + w.metrics + "/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if rest, ok := strings.CutPrefix(string(line), series+" "); ok {
			if value, err = strconv.ParseFloat(strings.TrimSpace(rest), 64); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	return value
}

// refused is how much was refused for a reason.
func (w *world) refused(reason string) float64 {
	return w.counted(fmt.Sprintf("heddle_waypoint_refusals_total{reason=%q}", reason))
}
