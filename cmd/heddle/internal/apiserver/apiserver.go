// Package apiserver is a real Kubernetes API server for tests, with its etcd, and
// with kubelets that run nothing but the commands of pods/exec. No controller
// does what it is asked for: what a controller would say, a test puts there.
//
// It is imported by tests only. A Server is safe for concurrent use; what takes a
// testing.TB is for the test's goroutine.
package apiserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/e2e/cluster/build"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// Server is a running API server.
type Server struct {
	// Kubeconfig has the contexts admin, who may do everything, and guest, who
	// may do nothing.
	Kubeconfig string
	// API may do everything.
	API dynamic.Interface

	mapper *restmapper.DeferredDiscoveryRESTMapper
}

// Start runs an API server until the test ends.
func Start(t testing.TB) *Server {
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
	etcd, peer, port := testenv.FreePort(t), testenv.FreePort(t), testenv.FreePort(t)
	key := filepath.Join(dir, "sa.key")
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey(t))}))
	write(t, filepath.Join(dir, "tokens"), []byte("admin-token,admin,1,system:masters\nguest-token,guest,2\n"))
	run(t, dir, programs.Kube(), "etcd", "--data-dir="+dir+"/etcd", fmt.Sprintf("--listen-client-url=http://127.0.0.1:%d", etcd), fmt.Sprintf("--listen-peer-url=http://127.0.0.1:%d", peer))
	run(t, dir, programs.Kube(), "kube-apiserver", fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", etcd), "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port), "--cert-dir="+dir, "--token-auth-file="+dir+"/tokens", "--authorization-mode=RBAC",
		"--service-account-issuer=https://test", "--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		"--service-cluster-ip-range=10.96.0.0/16", "--disable-admission-plugins=ServiceAccount", "--advertise-address=127.0.0.1", "--allow-privileged=true")
	s := &Server{Kubeconfig: filepath.Join(dir, "kubeconfig")}
	write(t, s.Kubeconfig, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%d", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: admin-token}}, {name: guest, user: {token: guest-token}}]
contexts: [{name: admin, context: {cluster: c, user: admin}}, {name: guest, context: {cluster: c, user: guest}}]
current-context: admin
`, port))
	s.await(t)
	return s
}

// await waits until the server is ready, its built-in roles and objects, too.
func (s *Server) await(t testing.TB) {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS = -1 // on loopback
	if s.API, err = dynamic.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	found, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(found))
	testenv.Eventually(t, 4*time.Minute, "the API server answers", func() bool {
		for _, path := range []string{"/readyz", "/api/v1/namespaces/kube-node-lease", "/api/v1/namespaces/default/services/kubernetes"} {
			if err := found.RESTClient().Get().AbsPath(path).Do(t.Context()).Error(); err != nil {
				time.Sleep(100 * time.Millisecond)
				return false
			}
		}
		return true
	})
}

// Put applies documents of YAML, and the statuses that are in them.
func (s *Server) Put(t testing.TB, text string) {
	t.Helper()
	for document := range strings.SplitSeq(text, "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		client := s.client(t, o)
		force := true
		data, err := json.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range [][]string{nil, {"status"}} {
			if _, has := o.Object["status"]; part != nil && !has {
				continue
			}
			if _, err := client.Patch(t.Context(), o.GetName(), types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: "test", Force: &force}, part...); err != nil {
				t.Fatalf("put %s %s/%s: %v", o.GetKind(), o.GetNamespace(), o.GetName(), err)
			}
		}
	}
}

// Get returns an object by "APIVERSION KIND NAMESPACE/NAME", or nil.
func (s *Server) Get(t testing.TB, apiVersion, kind, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"namespace": namespace, "name": name}}}
	got, err := s.client(t, o).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return got
}

// Delete deletes what documents of YAML name, at once.
func (s *Server) Delete(t testing.TB, text string) {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	now := int64(0)
	if err := s.client(t, o).Delete(t.Context(), o.GetName(), metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) client(t testing.TB, o *unstructured.Unstructured) dynamic.ResourceInterface {
	t.Helper()
	kind := o.GroupVersionKind()
	mapping, err := s.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	for deadline := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond) // its definition may be new
		s.mapper.Reset()
		mapping, err = s.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		t.Fatal(err)
	}
	if mapping.Scope.Name() == "namespace" {
		return s.API.Resource(mapping.Resource).Namespace(o.GetNamespace())
	}
	return s.API.Resource(mapping.Resource)
}

// run runs a program until the test ends.
func run(t testing.TB, dir, program string, args ...string) {
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

func rsaKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func write(t testing.TB, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
