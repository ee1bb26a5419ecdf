package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const folderYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {trustDomain: local.heddle.dev, clusterRanges: ["10.244.0.0/16", "fd00:244::/32"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: a}
spec: {node: n1, addresses: ["10.244.1.10", "fd00:244:1::10"], networkNamespace: /run/netns/heddle-lt-a}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: b}
spec: {node: n2, addresses: ["10.244.2.10", "fd00:244:2::10"], networkNamespace: /run/netns/heddle-lt-b}
`

func folder(t *testing.T, yaml string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestNewPlan(t *testing.T) {
	plan, err := NewPlan("lt", folder(t, folderYAML), false)
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Nodes) != 2 || plan.Nodes[0].Name != "n1" || plan.Nodes[1].Underlay4.String() != "100.64.0.3" {
		t.Errorf("nodes: %+v", plan.Nodes)
	}
	if p := plan.Nodes[0].Pods; len(p) != 1 || p[0].Workload != "shop/a" || len(p[0].HostLink) > 15 {
		t.Errorf("pods of n1: %+v", p)
	}
	if _, err := plan.pod("shop/c"); err == nil || !strings.Contains(err.Error(), "shop/a, shop/b") {
		t.Errorf("an unknown pod: %v, want an error that lists those there are", err)
	}
}

func TestNewPlanRefuses(t *testing.T) {
	for _, test := range []struct{ name, mesh, yaml, says string }{
		{"name", "Bad Name", folderYAML, "lower-case"},
		{"unknown field", "lt", strings.Replace(folderYAML, "trustDomain", "trustDomian", 1), "trustDomian"},
		{"namespace elsewhere", "lt", strings.Replace(folderYAML, "/run/netns/heddle-lt-a", "/tmp/a", 1), "/run/netns"},
		{"node's name", "lt", strings.Replace(folderYAML, "node: n1", "node: fabric", 1), "fabric"},
		{"no workloads", "lt", folderYAML[:strings.Index(folderYAML, "---\napiVersion: heddle")], "no Workload"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := NewPlan(test.mesh, folder(t, test.yaml), false)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want an error that says %q", err, test.says)
			}
		})
	}
	if _, err := NewPlan("lt", "/no/such/folder", false); err == nil {
		t.Error("a folder that is not there was planned")
	}
}

// programs builds the operator, and an agent that only stays.
func programs(t *testing.T) (operator, agent string) {
	t.Helper()
	dir := t.TempDir()
	operator, agent = filepath.Join(dir, "operator"), filepath.Join(dir, "agent")
	testenv.Build(t, ".", operator, "../../cmd/heddle-operator")
	if err := os.WriteFile(agent, []byte("#!/bin/sh\nexec sleep 600\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return operator, agent
}

func TestUpAndDown(t *testing.T) {
	testenv.NeedRoot(t)
	before := surroundings(t)
	operator, agent := programs(t)
	cfg := Config{Name: "lt", Folder: folder(t, folderYAML), CreatePods: true, StateDir: t.TempDir(), OperatorBinary: operator, AgentBinary: agent}
	m, err := Up(context.Background(), cfg)
	if m != nil {
		defer func() {
			if err := m.Down(context.Background()); err != nil {
				t.Errorf("down: %v", err)
			}
			if after := surroundings(t); after != before {
				t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
			}
		}()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"10.244.2.10:7000", "[fd00:244:2::10]:7000"} {
		if err := reach(m, address); err != nil {
			t.Errorf("from one pod to another: %v", err)
		}
	}
	status := m.Status()
	if !status.Operator.Running || len(status.Nodes) != 2 || !status.Nodes[0].Agent.Running {
		t.Errorf("status: %+v", status)
	}
	inOwnCgroup(t, status.Nodes[0].Agent.PID, "/heddle-lt/n1")
	execInPod(t, cfg.StateDir)

	// Another Up leaves what runs and starts what has died.
	if err := syscall.Kill(status.Nodes[1].Agent.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 5*time.Second, "the agent is dead", func() bool { return !m.Status().Nodes[1].Agent.Running })
	again, err := Up(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.Status(); !got.Nodes[1].Agent.Running || got.Nodes[0].Agent.PID != status.Nodes[0].Agent.PID || got.Operator.PID != status.Operator.PID {
		t.Errorf("after a second up: %+v, before %+v", got, status)
	}
	m = again
}

func TestUpRefusesForeignNamespace(t *testing.T) {
	ns := testenv.NewNetNS(t, "foreign")
	operator, agent := programs(t)
	yaml := strings.Replace(folderYAML, "/run/netns/heddle-lt-a", ns.Path, 1)
	yaml = strings.Replace(yaml, "/run/netns/heddle-lt-b", "/run/netns/ht-not-there", 1)
	cfg := Config{Name: "lt2", Folder: folder(t, yaml), StateDir: t.TempDir(), OperatorBinary: operator, AgentBinary: agent}
	m, err := Up(context.Background(), cfg)
	if err == nil || !strings.Contains(err.Error(), "--create-pods") {
		t.Errorf("a namespace that is not there: %v, want an error that names --create-pods", err)
	}
	if err := m.Down(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(ns.Path); err != nil {
		t.Errorf("down removed a namespace that up had not made: %v", err)
	}
	if _, err := Open(cfg.StateDir, "lt2"); !errors.Is(err, ErrNoMesh) {
		t.Errorf("after down the mesh is still on record: %v", err)
	}
}

func reach(m *Mesh, address string) error {
	var l, c any
	defer func() {
		for _, closer := range []any{c, l} {
			if closer, ok := closer.(interface{ Close() error }); ok {
				closer.Close()
			}
		}
	}()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	err = m.InPod("shop/b", func() (err error) { l, err = net.Listen("tcp", ":"+port); return err })
	if err != nil {
		return err
	}
	return m.InPod("shop/a", func() (err error) { c, err = net.DialTimeout("tcp", address, 5*time.Second); return err })
}

// execInPod runs this test's binary as a command that becomes another in a pod;
// that one still runs when the mesh goes down.
func execInPod(t *testing.T, stateDir string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestExecChild$")
	cmd.Env = append(os.Environ(), "HEDDLE_TEST_EXEC="+stateDir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // killed: its status says nothing
	})
	testenv.Eventually(t, 10*time.Second, "the command runs in the pod", func() bool {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		return err == nil && string(name) == "sleep\n"
	})
	inOwnCgroup(t, cmd.Process.Pid, "/heddle-lt/pods/"+digest("shop/a"))
	want, err := os.Stat("/run/netns/heddle-lt-a")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil || !os.SameFile(want, got) {
		t.Errorf("the command is not in the pod's network namespace: %v", err)
	}
}

// TestExecChild is no test of its own: execInPod runs it in a process that it
// gives up.
func TestExecChild(t *testing.T) {
	stateDir := os.Getenv("HEDDLE_TEST_EXEC")
	if stateDir == "" {
		return
	}
	m, err := Open(stateDir, "lt")
	if err != nil {
		t.Fatal(err)
	}
	t.Fatal(m.Exec("shop/a", []string{"sleep", "60"}, os.Environ()))
}

func inOwnCgroup(t *testing.T, pid int, want string) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "0::"+want+"\n") {
		t.Errorf("the agent is in %s, want %s in cgroup2", data, want)
	}
}

// surroundings lists what a mesh makes outside its folder.
func surroundings(t *testing.T) string {
	t.Helper()
	var all []string
	root, err := cgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"/run/netns/heddle-lt*", filepath.Join(root, "heddle-lt*"), "/sys/fs/bpf/heddle/lt*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return strings.Join(all, " ")
}
