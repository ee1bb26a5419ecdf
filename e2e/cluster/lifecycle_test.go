package cluster_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/cluster/clustertest"
)

// testReboot: what a boot takes away is gone, what it keeps is there, and the pods
// come back by themselves.
func testReboot(t *testing.T, c *cluster.Cluster) {
	node, err := c.Node("n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := node.Exec(t.Context(), "sh", "-c", "mkdir /sys/fs/bpf/pinned && touch /run/gone /etc/kept /var/lib/containerd/kept"); err != nil {
		t.Fatal(err)
	}
	before := pods(t, c, "echo")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	started := time.Now()
	if err := node.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("reboot to Ready: %s", time.Since(started).Round(100*time.Millisecond))
	left, err := node.Exec(ctx, "sh", "-c", "ls -d /sys/fs/bpf/pinned /run/gone /etc/kept /var/lib/containerd/kept 2>/dev/null; true")
	if err != nil || left != "/etc/kept\n/var/lib/containerd/kept\n" {
		t.Errorf("after the boot: %q %v", left, err)
	}
	eventually(t, "the pods of n1 run again", func() error { return restarted(t, c, before, "n1") })
	t.Logf("reboot to pods: %s", time.Since(started).Round(100*time.Millisecond))
	testPodsReachPods(t, c)
	testServices(t, c)
	reasons := clustertest.Kubectl(t, c, "", "get", "events", "--field-selector=involvedObject.name=n1,reason=Rebooted", "-o", "jsonpath={.items[*].reason}")
	if reasons == "" {
		t.Error("the kubelet did not notice that its node was rebooted")
	}
}

// testControlPlaneReboot: pods run on without it, and all is as it was after it.
func testControlPlaneReboot(t *testing.T, c *cluster.Cluster) {
	control, err := c.Node("cp")
	if err != nil {
		t.Fatal(err)
	}
	before := pods(t, c, "echo")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := control.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster is healthy again", func() error {
		status, err := c.Status(ctx)
		if err == nil && !status.Healthy {
			err = fmt.Errorf("status: %+v", status)
		}
		return err
	})
	after := pods(t, c, "echo")
	for i := range before {
		if len(after) != len(before) || before[i].Metadata.Name != after[i].Metadata.Name ||
			before[i].Status.ContainerStatuses[0].RestartCount != after[i].Status.ContainerStatuses[0].RestartCount {
			t.Errorf("pods were %+v, are %+v", before, after)
		}
	}
	testPodsReachPods(t, c)
}

// restarted says why not all apps' pods of a node are ready in a new start.
func restarted(t *testing.T, c *cluster.Cluster, before []pod, node string) error {
	for _, now := range slices.Concat(pods(t, c, "echo"), pods(t, c, "client")) {
		if now.Spec.NodeName != node {
			continue
		}
		if len(now.Status.ContainerStatuses) != 1 || !now.Status.ContainerStatuses[0].Ready || now.Status.ContainerStatuses[0].RestartCount == 0 {
			return fmt.Errorf("%s is not ready again: %+v", now.Metadata.Name, now.Status)
		}
	}
	for _, old := range before {
		if !slices.ContainsFunc(pods(t, c, "echo"), func(now pod) bool { return now.Metadata.Name == old.Metadata.Name }) {
			return fmt.Errorf("%s was replaced, not restarted", old.Metadata.Name)
		}
	}
	return nil
}

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func testStopAndStart(t *testing.T, c *cluster.Cluster) {
	node, err := c.Node("n2")
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.Healthy || status.Nodes[2].Running || status.Nodes[2].Reason == "" {
		t.Errorf("status with n2 stopped: %+v", status)
	}
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, err = c.Status(t.Context()); err != nil || !status.Healthy {
		t.Errorf("status with n2 started again: %+v %v", status, err)
	}
	if err := node.Start(t.Context()); err == nil {
		t.Error("a node that runs was started")
	}
}

// testDown looks for whatever a cluster could leave on the host.
func testDown(t *testing.T, c *cluster.Cluster) {
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	prefix := "cluster-" + c.Name()
	for _, pattern := range []string{"/run/netns/" + prefix + "*", "/sys/fs/cgroup/*/" + prefix + "*", "/sys/fs/cgroup/" + prefix + "*", status.Dir, filepath.Dir(status.Dir) + "/." + c.Name() + "*"} {
		left, err := filepath.Glob(pattern)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), status.Dir) || strings.Contains(string(mounts), prefix) {
		t.Errorf("mounts are left behind (%v)", err)
	}
	eventually(t, "no process is left behind", func() error { // the host's init has to reap them, too
		if left := processesOf(t, status); len(left) > 0 {
			return fmt.Errorf("left behind: %v", left)
		}
		return nil
	})
	if _, err := net.DialTimeout("tcp", strings.TrimPrefix(status.API, "https://"), time.Second); err == nil {
		t.Error("the port of the API server still answers")
	}
	if err := c.Down(t.Context()); err != nil {
		t.Errorf("down of what is down: %v", err)
	}
}

// processesOf finds processes by the cluster's folder in their command line, or
// by a network namespace of its nodes.
func processesOf(t *testing.T, status cluster.Status) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(all) < 2 {
		t.Fatalf("read processes: %d %v", len(all), err)
	}
	var found []string
	for _, file := range all {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), status.Dir+"/") {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	for _, node := range status.Nodes {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", node.PID)); err == nil && node.PID > 0 {
			found = append(found, node.Name)
		}
	}
	return found
}
