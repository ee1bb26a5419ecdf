package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const goodMesh = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {trustDomain: test.example, clusterRanges: ["10.0.0.0/8"]}
`

func folderOf(t *testing.T, content string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func environment(pairs map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := pairs[name]; return v, ok }
}

func TestCheck(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--check", "-f", folderOf(t, goodMesh)}, environment(nil), &out, &out); err != nil || !strings.Contains(out.String(), "in order") {
		t.Errorf("a good folder: %v: %s", err, out.String())
	}
	out.Reset()
	bad := folderOf(t, strings.Replace(goodMesh, "trustDomain", "trustDomian", 1))
	err := run(t.Context(), []string{"--check", "-f", bad}, environment(nil), &out, &out)
	if !errors.Is(err, errRefused) || !strings.Contains(out.String(), "mesh.yaml") || !strings.Contains(out.String(), "trustDomian") {
		t.Errorf("a bad folder: %v: %s", err, out.String())
	}
}

// TestUDPByItsFormerName: the flag of the version before is taken, with a word about it.
func TestUDPByItsFormerName(t *testing.T) {
	udp := folderOf(t, goodMesh+`---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: quic}
spec: {rules: [{to: [{protocol: UDP, ports: [443]}]}]}
`)
	for flag, c := range map[string]struct{ taken, word bool }{"--udp-by-identity": {true, false}, "--experimental-udp": {true, true}, "--udp-by-identity=false": {false, false}} {
		var out strings.Builder
		err := run(t.Context(), []string{"--check", flag, "-f", udp}, environment(nil), &out, &out)
		if taken, word := err == nil, strings.Contains(out.String(), "deprecated"); taken != c.taken || word != c.word {
			t.Errorf("%s: %v\n%s", flag, err, out.String())
		}
	}
}

func TestEnvironmentSetsFlagsAndFlagsWin(t *testing.T) {
	good, bad := folderOf(t, goodMesh), folderOf(t, "{")
	var out bytes.Buffer
	env := environment(map[string]string{"HEDDLE_FOLDER": bad, "HEDDLE_CHECK": "true"})
	if err := run(t.Context(), nil, env, &out, &out); !errors.Is(err, errRefused) {
		t.Errorf("folder from the environment: %v", err)
	}
	if err := run(t.Context(), []string{"--folder", good}, env, &out, &out); err != nil {
		t.Errorf("the flag does not win: %v", err)
	}
	if err := run(t.Context(), nil, environment(map[string]string{"HEDDLE_RELIST": "soon"}), &out, &out); err == nil || !strings.Contains(err.Error(), "HEDDLE_RELIST") {
		t.Errorf("a bad value: %v", err)
	}
}

func TestServeUntilToldToStop(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	var out bytes.Buffer
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"-f", folderOf(t, goodMesh), "--state-dir", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0",
			"--admin-socket", filepath.Join(dir, "admin.sock"), "--metrics", "127.0.0.1:0", "--log-format", "json"}, environment(nil), &out, &out)
	}()
	testenv.Eventually(t, 10*time.Second, "the admin socket is there", func() bool {
		_, err := os.Stat(filepath.Join(dir, "admin.sock"))
		return err == nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("%v: %s", err, out.String())
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for _, c := range []struct{ args, says string }{
		{"", "--folder or --kubernetes is needed"},
		{"--kubernetes --check", "--check is about a --folder"},
		{"--kubernetes --folder x", "exclude each other"},
		{"--kubernetes --kubeconfig /does/not/exist", "/does/not/exist"},
		{"--check", "--folder is needed"},
		{"--folder x --spire-server spire-server:8081", "Workload API"},
		{"--folder x --spire-workload-api unix:///run/spire.sock", "SPIRE server"},
		{"--folder x --spire-server spire:8081 --spire-workload-api tcp://192.0.2.1:1", "unix:///PATH"},
		{"--log-level loud", "--log-level"},
		{"--log-format xml", "--log-format"},
		{"extra", "unknown command"},
		{"--nothing", "unknown flag"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), strings.Fields(c.args), environment(nil), &out, &out); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: got %v, want %q", c.args, err, c.says)
		}
	}
	for _, flag := range []string{"--help", "--version"} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{flag}, environment(nil), &out, &out); err != nil || out.Len() == 0 {
			t.Errorf("%s: %v %q", flag, err, out.String())
		}
	}
}
