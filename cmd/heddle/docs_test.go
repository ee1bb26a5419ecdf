package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/heddle-mesh/heddle/e2e/cluster/build"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// documented returns the command lines of docs/cli.md, without "heddle": those of
// the section on Kubernetes, or the others.
func documented(t *testing.T, onKubernetes bool) []string {
	t.Helper()
	data, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), "\n## On Kubernetes\n")
	section, after, more := strings.Cut(rest, "\n## ")
	if !ok || !more {
		t.Fatal("docs/cli.md has no section on Kubernetes")
	}
	text, atLeast := before+after, 25
	if onKubernetes {
		text, atLeast = section, 10
	}
	var commands []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(block[1]) {
			command, ok := strings.CutPrefix(strings.TrimSpace(line), "heddle ")
			if !ok {
				t.Errorf("docs/cli.md: %q is not a command of heddle", line)
			}
			commands = append(commands, command)
		}
	}
	if len(commands) < atLeast {
		t.Fatalf("only %d commands are documented", len(commands))
	}
	return commands
}

// needsMesh says that a command does nothing without a real mesh.
func needsMesh(command string) bool {
	return strings.HasPrefix(command, "exec ") || strings.Contains(command, "--attack") ||
		strings.HasPrefix(command, "local ") && !strings.Contains(command, "--dry-run") || strings.HasPrefix(command, "logs ")
}

// split cuts a command line as a shell would, as far as the page needs it.
func split(command string) []string {
	var args []string
	for _, m := range regexp.MustCompile(`'([^']*)'|\S+`).FindAllStringSubmatch(command, -1) {
		if m[1] != "" {
			args = append(args, m[1])
		} else {
			args = append(args, m[0])
		}
	}
	return args
}

// TestDocumentedCommands runs what the page shows against agents and an operator
// that answer; TestDocumentedCommandsOnAMesh runs the rest.
func TestDocumentedCommands(t *testing.T) {
	state, rings := world(t, &fakeAgent{node: "n1"}, &fakeAgent{node: "web"})
	for _, r := range rings {
		r.Add(sampleFlow("n1", mesh.VerdictDeny, mesh.ReasonPolicyDeny))
	}
	for _, command := range documented(t, false) {
		if needsMesh(command) {
			continue
		}
		for i, arg := range split(command) {
			if at, ok := map[string]string{"mesh": "../../e2e/demo/mesh", "policy.yaml": "testdata/simulate/policy.yaml", "flows.json": "testdata/simulate/flows.json"}[arg]; ok && i > 0 {
				command = strings.Replace(command, " "+arg, " "+at, 1)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if strings.Contains(command, "--follow") {
			ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
		}
		args := split(command)
		if args[0] != "completion" && args[0] != "help" {
			args = append(args, "--state-dir", state)
		}
		var out, log bytes.Buffer
		if code := run(ctx, append([]string{"heddle"}, args...), &out, &log, false); code != exitOK || out.Len() == 0 {
			t.Errorf("heddle %s: exit %d:\n%s%s", command, code, out.String(), log.String())
		}
		cancel()
	}
}

// TestDocumentedCommandsOnACluster runs what the page shows of Kubernetes, in its
// order.
func TestDocumentedCommandsOnACluster(t *testing.T) {
	w := newShop(t)
	w.healthy()
	w.expect(0, "Heddle", "install", "--wait", "0", "--gateway-api")
	for _, command := range documented(t, true) {
		if strings.HasPrefix(command, "waypoint status") {
			w.programmed("waypoint", "True", "Programmed", "takes requests")
		}
		command = strings.Replace(command, " policy.yaml", " testdata/simulate/policy.yaml", 1)
		args := split(strings.Replace(command, " manifests/", " ../../e2e/demo/mesh", 1))
		fixes := strings.Contains(command, "--fixes") // there are none
		code, out, log := w.heddle(args...)
		if code != exitOK || out == "" && !fixes {
			t.Errorf("heddle %s: exit %d:\n%s%s", command, code, out, log)
		}
	}
}

// TestKubectlPlugin links the program as the page says, and has kubectl run it.
func TestKubectlPlugin(t *testing.T) {
	root, err := build.FindRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	programs, err := build.Ensure(t.Context(), root, func(text string) { t.Log(text) })
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	testenv.Build(t, ".", bin, ".")
	for _, name := range []string{"kubectl-heddle", "kubectl_complete-heddle"} {
		if err := os.Symlink(filepath.Join(bin, "heddle"), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	for want, args := range map[string][]string{
		"heddle dev":                            {"heddle", "version"},
		"kubectl heddle enroll NAMESPACE":       {"heddle", "enroll", "--help"},
		"  kubectl heddle flows --follow":       {"heddle", "flows", "--help"},
		"enroll\tBring the pods of a namespace": {"__complete", "heddle", "enr"},
	} {
		cmd := exec.CommandContext(t.Context(), programs.Kubectl(), args...)
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+bin)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("kubectl %s: %v, want %q:\n%s", strings.Join(args, " "), err, want, out)
		}
	}
}

// TestDocumentedReasons compares the page's table with the enum.
func TestDocumentedReasons(t *testing.T) {
	data, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(data), "## Reasons")
	rows := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| \\S").FindAllStringSubmatch(table, -1)
	have := map[string]bool{}
	for _, r := range rows {
		have[r[1]] = true
		if _, err := mesh.ParseReason(r[1]); err != nil {
			t.Errorf("docs/cli.md: %v", err)
		}
	}
	for _, r := range mesh.Reasons() {
		if !have[r.String()] {
			t.Errorf("docs/cli.md does not explain %s", r)
		}
	}
}

// meshFolder is two nodes with a pod each.
func meshFolder(t *testing.T, name string) string {
	t.Helper()
	folder := t.TempDir()
	var b strings.Builder
	b.WriteString(`apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {trustDomain: cli.test, clusterRanges: ["10.245.0.0/16", "fd00:245::/32"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
`)
	for i, pod := range []string{"web", "customer"} {
		fmt.Fprintf(&b, `---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: %[1]s}
spec:
  node: n%[2]d
  serviceAccount: %[1]s
  addresses: ["10.245.%[2]d.2", "fd00:245:%[2]d::2"]
  networkNamespace: /run/netns/heddle-%[3]s-shop-%[1]s
`, pod, i+1, name)
	}
	if err := os.WriteFile(filepath.Join(folder, "mesh.yaml"), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return folder
}

// TestDocumentedCommandsOnAMesh builds the programs and runs a mesh.
func TestDocumentedCommandsOnAMesh(t *testing.T) {
	testenv.NeedRoot(t)
	bin := t.TempDir()
	testenv.Build(t, ".", bin, "../heddle", "../heddle-agent", "../heddle-operator")
	name := fmt.Sprintf("cli%d", os.Getpid()%100000)
	folder := meshFolder(t, name)
	common := []string{"--name", name}
	command := func(args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "heddle"), append(common, args...)...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	t.Cleanup(func() {
		cmd := exec.Command(filepath.Join(bin, "heddle"), append(common, "local", "down")...) // t's context is over
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("take the mesh down: %v\n%s", err, out)
		}
		if left, err := filepath.Glob("/run/netns/heddle-" + name + "-*"); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	for _, line := range documented(t, false) {
		if !needsMesh(line) || strings.Contains(line, "--attack") {
			continue // the attack runs once the mesh is up
		}
		args := split(strings.Replace(line, "--file mesh", "--file "+folder, 1))
		out, code := command(args...)
		if code != exitOK || out == "" && args[0] != "exec" {
			t.Fatalf("heddle %s: exit %d:\n%s", line, code, out)
		}
		switch {
		case strings.HasPrefix(line, "local up"):
			proveAndAttack(t, command)
			simulateOnMesh(t, bin, name, folder)
			checkMetricsPage(t, "/run/netns/heddle-"+name+"-n1")
		case strings.HasPrefix(line, "exec"):
			if _, code := command("exec", "shop/web", "--", "sh", "-c", "exit 7"); code != 7 {
				t.Errorf("exec: exit %d, want the command's 7", code)
			}
		}
	}
}

// proveAndAttack runs on a fresh mesh, whatever the order of the page.
func proveAndAttack(t *testing.T, command func(...string) (string, int)) {
	t.Helper()
	for _, args := range [][]string{{"check"}, {"prove", "shop/web"}, {"prove", "--attack", "shop/web"}} {
		out, code := command(args...)
		if code != exitOK {
			t.Fatalf("heddle %s: exit %d:\n%s", strings.Join(args, " "), code, out)
		}
		if len(args) == 3 {
			t.Logf("%s", out)
		}
	}
}

// checkMetricsPage compares what an agent serves with docs/metrics.md.
func checkMetricsPage(t *testing.T, node string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan []byte, 1)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is of another namespace
		body, err := getMetrics(node)
		served <- body
		failed <- err
	}()
	body := <-served
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^# TYPE (heddle_\w+) (\w+)`).FindAllStringSubmatch(string(body), -1)
	if len(names) < 20 {
		t.Errorf("only %d metrics:\n%s", len(names), body)
	}
	for _, n := range names {
		if !strings.Contains(string(page), "| `"+n[1]+"` | "+n[2]+" |") {
			t.Errorf("docs/metrics.md lacks %s, a %s", n[1], n[2])
		}
	}
}

func getMetrics(node string) ([]byte, error) {
	ns, err := netns.GetFromPath(node)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return nil, err
	}
	conn, err := net.DialTimeout("tcp", "127.0.0.1:15020", 5*time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET /metrics HTTP/1.0\r\n\r\n")); err != nil {
		return nil, err
	}
	return io.ReadAll(conn)
}
