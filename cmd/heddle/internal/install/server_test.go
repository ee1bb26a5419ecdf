package install

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/cluster/build"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// server is a real API server with its etcd, and nothing else: no controller
// does what it is asked for. It returns a kubeconfig.
func server(t *testing.T) string {
	t.Helper()
	root, err := build.FindRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	programs, err := build.Ensure(t.Context(), root, func(text string) { t.Log(text) })
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	etcd, peer, port := freePort(t), freePort(t), freePort(t)
	key := filepath.Join(dir, "sa.key")
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey(t))}))
	write(t, filepath.Join(dir, "tokens"), []byte("admin-token,admin,1,system:masters\nguest-token,guest,2\n"))
	start(t, dir, programs.Kube(), "etcd", "--data-dir="+dir+"/etcd", fmt.Sprintf("--listen-client-url=http://127.0.0.1:%d", etcd), fmt.Sprintf("--listen-peer-url=http://127.0.0.1:%d", peer))
	start(t, dir, programs.Kube(), "kube-apiserver", fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", etcd), "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port), "--cert-dir="+dir, "--token-auth-file="+dir+"/tokens", "--authorization-mode=RBAC",
		"--service-account-issuer=https://test", "--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		"--service-cluster-ip-range=10.96.0.0/16", "--disable-admission-plugins=ServiceAccount", "--advertise-address=127.0.0.1", "--allow-privileged=true")
	config := filepath.Join(dir, "kubeconfig")
	write(t, config, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%d", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: admin-token}}, {name: guest, user: {token: guest-token}}]
contexts: [{name: admin, context: {cluster: c, user: admin}}, {name: guest, context: {cluster: c, user: guest}}]
current-context: admin
`, port))
	testenv.Eventually(t, time.Minute, "the API server answers", func() bool {
		c, err := Connect(config, "")
		if err != nil {
			return false
		}
		for _, last := range []ref{{Version: "v1", Kind: "Namespace", Name: "kube-node-lease"}, {Version: "v1", Kind: "Service", Namespace: "default", Name: "kubernetes"}} {
			if o, err := c.get(t.Context(), last.kind(), last.Namespace, last.Name); o == nil || err != nil {
				return false
			}
		}
		return ready(t, port)
	})
	return config
}

// ready asks whether the built-in roles are there, too.
func ready(t *testing.T, port int) bool {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} // on loopback
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/readyz", port), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer admin-token")
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// start runs a program until the test ends.
func start(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background()) // t's ends before its cleanups
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			text := log.String()
			t.Logf("%s:\n%s", args[0], text[max(0, len(text)-1000):])
		}
	})
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func write(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
