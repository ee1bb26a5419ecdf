package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestInterrupted has a signal come while the API server owes an answer. A script must not go on
// as if it had one: `heddle simulate -f change.yaml && kubectl apply -f change.yaml`.
func TestInterrupted(t *testing.T) {
	asked := make(chan struct{}, 1000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/version" {
			fmt.Fprint(w, `{"major": "1", "minor": "34", "gitVersion": "v1.34.0"}`)
			return
		}
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer server.Close()
	dir := t.TempDir()
	config, policy := filepath.Join(dir, "config"), filepath.Join(dir, "policy.yaml")
	for path, text := range map[string]string{
		config: "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"" + server.URL + "\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n",
		policy: "apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: none, namespace: shop}\nspec: {action: ALLOW}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{
		"simulate -f " + policy, "suggest shop", "explain shop/a shop/b", "analyze", "history", "flows", "prove", "status", "certs", "enroll shop",
	} {
		t.Run(strings.Fields(line)[0], func(t *testing.T) {
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			var out, log strings.Builder
			done := make(chan int, 1)
			go func() {
				args := append([]string{"heddle"}, strings.Fields(line)...)
				done <- run(ctx, append(args, "--kubeconfig", config, "--state-dir", filepath.Join(dir, "none")), &out, &log, false)
			}()
			select {
			case <-asked:
			case code := <-done:
				t.Fatalf("it asked nothing: %d, %s", code, &log)
			case <-time.After(20 * time.Second):
				t.Fatal("it asked nothing")
			}
			interrupt()
			if code := <-done; code != exitInterrupted || !strings.Contains(log.String(), "interrupted") {
				t.Errorf("exit status %d, want %d: %s", code, exitInterrupted, &log)
			}
			if out.Len() > 0 {
				t.Errorf("it printed an answer: %s", &out)
			}
		})
	}
}
