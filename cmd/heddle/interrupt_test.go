package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// heeded is how soon a command ends that a signal interrupts.
const heeded = 2 * time.Second

// answers are what an API server says before it falls silent, by path; a path that ends in *
// stands for all that begin so.
type answers map[string]string

func (a answers) of(path string) (string, bool) {
	if text, ok := a[path]; ok {
		return text, true
	}
	for prefix, text := range a {
		if before, ok := strings.CutSuffix(prefix, "*"); ok && strings.HasPrefix(path, before) {
			return text, true
		}
	}
	return "", false
}

// silences are how far an API server comes before it owes an answer.
func silences() map[string]answers {
	version := answers{"/version": `{"major": "1", "minor": "34", "gitVersion": "v1.34.0"}`}
	with := func(before, more answers) answers {
		all := answers{}
		for _, some := range []answers{before, more} {
			for path, text := range some {
				all[path] = text
			}
		}
		return all
	}
	resources := func(version, resources string) string {
		return `{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "` + version + `", "resources": [` + resources + `]}`
	}
	group := func(name string) string {
		return `{"name": "` + name + `", "versions": [{"groupVersion": "` + name + `/v1", "version": "v1"}]}`
	}
	kinds := with(version, answers{
		"/api":  `{"kind": "APIVersions", "versions": ["v1"]}`,
		"/apis": `{"kind": "APIGroupList", "apiVersion": "v1", "groups": [` + group("apps") + `, ` + group("authorization.k8s.io") + `]}`,
		"/api/v1": resources("v1", `{"name": "pods", "namespaced": true, "kind": "Pod"}, {"name": "configmaps", "namespaced": true, "kind": "ConfigMap"},
			{"name": "namespaces", "kind": "Namespace"}, {"name": "nodes", "kind": "Node"}`),
		"/apis/apps/v1":                 resources("apps/v1", `{"name": "daemonsets", "namespaced": true, "kind": "DaemonSet"}`),
		"/apis/authorization.k8s.io/v1": resources("authorization.k8s.io/v1", `{"name": "selfsubjectaccessreviews", "kind": "SelfSubjectAccessReview"}`),
	})
	pod := `{"metadata": {"name": "p", "namespace": "heddle-system"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}`
	object := `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}`
	return map[string]answers{
		"at once":          {},
		"after /version":   version,
		"after discovery":  kinds,
		"at a pod's exec":  with(kinds, answers{"/api/v1/namespaces/heddle-system/pods": `{"kind": "PodList", "apiVersion": "v1", "items": [` + pod + `]}`}),
		"after namespaces": with(kinds, answers{"/api/v1/namespaces/shop": object}),
	}
}

// TestInterrupted has a signal come while the API server owes an answer. It is heeded at once, and a
// script must not go on as if it had one: `heddle simulate -f change.yaml && kubectl apply -f change.yaml`.
func TestInterrupted(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte("apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: none, namespace: shop}\nspec: {action: ALLOW}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, said := range silences() {
		t.Run(name, func(t *testing.T) {
			for _, line := range []string{
				"simulate -f " + policy, "suggest shop", "explain shop/a shop/b", "analyze", "history", "flows", "connections", "prove", "status", "check", "certs",
				"certs rotate --root", "enroll shop", "unenroll shop", "install", "install --dry-run", "upgrade", "uninstall",
				"waypoint apply -n shop", "waypoint list -n shop", "waypoint status -n shop", "waypoint delete -n shop",
			} {
				t.Run(line, func(t *testing.T) { interrupted(t, said, strings.Fields(line)) })
			}
		})
	}
}

// interrupted runs a command until an API server owes it an answer, and then has it interrupted.
func interrupted(t *testing.T, said answers, line []string) {
	asked := make(chan struct{}, 1000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if text, ok := said.of(r.URL.Path); ok {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, text)
			return
		}
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer server.Close()
	config := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"" + server.URL + "\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var out, log strings.Builder
	libraries := captureStderr(t)
	done := make(chan int, 1)
	go func() {
		args := append([]string{"heddle"}, line...)
		if args = append(args, "--kubeconfig", config); !strings.HasSuffix(line[0], "install") && line[0] != "upgrade" {
			args = append(args, "--state-dir", filepath.Join(filepath.Dir(config), "none"))
		}
		done <- run(ctx, args, &out, &log, false)
	}()
	select {
	case <-asked:
	case code := <-done:
		t.Fatalf("it asked nothing: %d, %s", code, &log)
	case <-time.After(20 * time.Second):
		t.Fatal("it asked nothing")
	}
	interrupt()
	at := time.Now()
	code := <-done
	if took := time.Since(at); took > heeded {
		t.Errorf("it went on for %s, want %s at most", took.Round(time.Millisecond), heeded)
	}
	if code != exitInterrupted || !strings.Contains(log.String(), "interrupted") {
		t.Errorf("exit status %d, want %d: %s", code, exitInterrupted, &log)
	}
	if out.Len() > 0 {
		t.Errorf("it printed an answer: %s", &out)
	}
	if logged := libraries(); logged != "" {
		t.Errorf("client-go wrote to standard error: %s", logged)
	}
}

// captureStderr takes the place of this process's standard error until what it returns, which returns
// what was written, is called, or the test ends.
func captureStderr(t *testing.T) func() string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stderr
	os.Stderr = f
	restore := sync.OnceFunc(func() {
		os.Stderr = before
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(restore)
	return func() string {
		restore()
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

// TestVerbosity: what client-go logs is shown where -v asks for it.
func TestVerbosity(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	config := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"" + server.URL + "\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for flags, want := range map[string]string{"": "", " -v 0": "", " -v 8": "/version"} {
		logged := captureStderr(t)
		code, _, log := heddle(t, split("explain shop/a shop/b --kubeconfig "+config+" --state-dir "+t.TempDir()+flags)...)
		if said := logged(); code == exitOK || (want == "") != (said == "") || !strings.Contains(said, want) {
			t.Errorf("explain%s: exit %d, %s, and client-go wrote %q, want %q", flags, code, log, said, want)
		}
	}
	if code, _, log := heddle(t, "version", "-v", "much"); code != exitUsage || !strings.Contains(log, `"much" is no level`) {
		t.Errorf("-v much: exit %d, %s", code, log)
	}
}
