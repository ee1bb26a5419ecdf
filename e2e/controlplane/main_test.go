// Package controlplane runs operators against a real API server: etcd and
// kube-apiserver as processes of the test's own on loopback, with RBAC on and no
// node, scheduler or controller beside them.
package controlplane

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/e2e/cluster/build"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// adminToken is that of the test itself, on an API server that ends with it.
const adminToken = "test-admin"

// server is a running API server.
type server struct {
	address string // host:port
	client  *http.Client
}

// kubeProgram is the binary that has etcd and kube-apiserver in it, built when it is not.
func kubeProgram(t testing.TB) string {
	t.Helper()
	root, err := build.FindRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	programs, err := build.Ensure(t.Context(), root, func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	return programs.Kube()
}

// run starts a program that ends with the test, and shows the end of what it said
// when the test has failed.
func run(t testing.TB, program string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// It has nothing to save; it may have ended by itself.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text := out.String()
			t.Logf("%s: ...%s", args[0], text[max(0, len(text)-2000):])
		}
	})
}

func startServer(t testing.TB) *server {
	t.Helper()
	dir, kube := t.TempDir(), kubeProgram(t)
	etcd, peers := fmt.Sprintf("http://127.0.0.1:%d", testenv.FreePort(t)), fmt.Sprintf("http://127.0.0.1:%d", testenv.FreePort(t))
	port := testenv.FreePort(t)
	key := writeKey(t, dir)
	tokens := filepath.Join(dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte(adminToken+",admin,admin,\"system:masters\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, kube, "etcd", "--data-dir="+filepath.Join(dir, "etcd"), "--listen-client-url="+etcd, "--listen-peer-url="+peers)
	run(t, kube, "kube-apiserver", "--etcd-servers="+etcd, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port), "--advertise-address=192.0.2.1",
		"--cert-dir="+filepath.Join(dir, "certs"), "--token-auth-file="+tokens, "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		// Nobody here makes the tokens that pods would mount, and nothing runs.
		"--disable-admission-plugins=ServiceAccount")
	s := &server{address: fmt.Sprintf("127.0.0.1:%d", port)}
	transport, err := rest.TransportFor(s.config(adminToken))
	if err != nil {
		t.Fatal(err)
	}
	s.client = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	t.Cleanup(s.client.CloseIdleConnections)
	testenv.Eventually(t, 4*time.Minute, "the API server is ready", func() bool {
		code, _ := s.do(http.MethodGet, "/readyz", nil)
		return code == http.StatusOK
	})
	return s
}

func writeKey(t testing.TB, dir string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sa.key")
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// config is how to reach the server with a token. Its certificate is its own,
// made at the start on loopback.
func (s *server) config(token string) *rest.Config {
	return &rest.Config{Host: "https://" + s.address, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// do sends a request as the administrator; the code is 0 when there is no answer.
func (s *server) do(method, path string, body []byte) (int, map[string]any) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+s.address+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil
	}
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	var object map[string]any
	// What is not JSON, as the answer of /readyz, is looked at by its code alone.
	_ = json.NewDecoder(resp.Body).Decode(&object)
	return resp.StatusCode, object
}

// must sends a request that has to be answered by success.
func (s *server) must(t testing.TB, method, path, body string) map[string]any {
	t.Helper()
	text, err := yaml.YAMLToJSON([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	code, object := s.do(method, path, text)
	if code < 200 || code > 299 {
		t.Fatalf("%s %s: %d %v", method, path, code, object)
	}
	return object
}

// installGatewayAPI creates the definitions of the Gateway API's kinds.
func (s *server) installGatewayAPI(t testing.TB) {
	t.Helper()
	s.define(t, "../../manifests/gateway-api/*.yaml")
	for _, resource := range []string{"gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "tcproutes", "referencegrants"} {
		testenv.Eventually(t, 30*time.Second, resource+" are served", func() bool {
			code, _ := s.do(http.MethodGet, "/apis/gateway.networking.k8s.io/v1/"+resource, nil)
			return code == http.StatusOK
		})
	}
}

// define creates definitions.
func (s *server) define(t testing.TB, pattern string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no definitions: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s.must(t, http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", string(text))
	}
}

// installKinds creates the definitions of Heddle's kinds.
func (s *server) installKinds(t testing.TB) {
	t.Helper()
	s.define(t, "../../manifests/heddle/crds/*.yaml")
	for _, resource := range []string{"meshes", "workloads", "peerauthentications", "authorizationpolicies"} {
		testenv.Eventually(t, 30*time.Second, resource+" are served", func() bool {
			code, _ := s.do(http.MethodGet, "/apis/heddle.dev/v1alpha1/"+resource, nil)
			return code == http.StatusOK
		})
	}
}

// token returns a service account's token; bound is a pod's name, or "".
func (s *server) token(t testing.TB, account, audience, bound string) string {
	t.Helper()
	spec := "spec: {expirationSeconds: 3600"
	if audience != "" {
		spec += ", audiences: [" + audience + "]"
	}
	if bound != "" {
		spec += ", boundObjectRef: {apiVersion: v1, kind: Pod, name: " + bound + "}"
	}
	o := s.must(t, http.MethodPost, "/api/v1/namespaces/heddle-system/serviceaccounts/"+account+"/token",
		"apiVersion: authentication.k8s.io/v1\nkind: TokenRequest\n"+spec+"}")
	return o["status"].(map[string]any)["token"].(string)
}

// logBuffer is a log that tests search.
type logBuffer struct{ testenv.Log }

func (b *logBuffer) has(text string) bool { return strings.Contains(b.String(), text) }
