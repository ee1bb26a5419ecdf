package cluster_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/cluster/build"
	"github.com/heddle-mesh/heddle/e2e/cluster/clustertest"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const probeImage = "localhost/probe:test"

// patience is how long pods may take to be what they are asked to be.
const patience = time.Minute

// How long a cluster may take to be ready whose programs are built, of which it takes
// 20 s on an idle machine: warmStart, and loaded on one that others overload.
const (
	warmStart = time.Minute
	loaded    = 90 * time.Second
)

// TestClusters brings up two clusters beside each other, asks of one all that it
// is for, and takes both down.
func TestClusters(t *testing.T) {
	t.Setenv(clustertest.Reuse, "") // they are what is tested
	root, err := build.FindRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := build.Ensure(t.Context(), root, func(line string) { t.Log(line) }); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	first := clustertest.Up(t, cluster.Options{Name: "ht-first"})
	quicker := time.Since(began)
	began = time.Now()
	second := clustertest.Up(t, cluster.Options{
		Name: "ht-second", Workers: 1, ProxyMode: "iptables", NodeRange: netip.MustParsePrefix("172.30.0.0/24"),
		PodRange: netip.MustParsePrefix("172.24.0.0/16"), ServiceRange: netip.MustParsePrefix("172.29.0.0/20"),
	})
	quicker = min(quicker, time.Since(began))
	// One of two: the machine may have other work during the other.
	if t.Logf("a warm start takes %v", quicker); quicker > loaded || quicker > warmStart && !testenv.Overloaded(t) {
		t.Errorf("a warm start takes %v, more than %v", quicker, warmStart)
	}
	t.Run("side by side", func(t *testing.T) { testSideBySide(t, first, second) })
	clustertest.LoadProgram(t, first, "./probe", probeImage)
	manifest, err := os.ReadFile("testdata/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	clustertest.Kubectl(t, first, string(manifest), "apply", "-f", "-")
	waitDemo(t, first)
	t.Run("pods reach pods", func(t *testing.T) { testPodsReachPods(t, first) })
	t.Run("services and DNS", func(t *testing.T) { testServices(t, first) })
	t.Run("RBAC", func(t *testing.T) { testRBAC(t, first) })
	t.Run("logs", func(t *testing.T) { testLogs(t, first) })
	t.Run("port-forward", func(t *testing.T) { testPortForward(t, first) })
	t.Run("pods are reached from the control plane", func(t *testing.T) { testFromOutside(t, first) })
	t.Run("agents reach into their node", func(t *testing.T) { testAgents(t, first) })
	t.Run("reboot", func(t *testing.T) { testReboot(t, first) })
	t.Run("reboot of the control plane", func(t *testing.T) { testControlPlaneReboot(t, first) })
	t.Run("documented commands", func(t *testing.T) { testDocumentedCommands(t, first) })
	t.Run("stop and start", func(t *testing.T) { testStopAndStart(t, first) })
	t.Run("down leaves nothing", func(t *testing.T) {
		testDown(t, first)
		testDown(t, second)
	})
}

func testSideBySide(t *testing.T, first, second *cluster.Cluster) {
	for c, workers := range map[*cluster.Cluster]int{first: 2, second: 1} {
		status, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !status.Healthy || len(status.Nodes) != workers+1 {
			t.Errorf("status: %+v", status)
		}
	}
	_, err := cluster.Up(t.Context(), cluster.Options{Name: first.Name(), Root: "../..", Dir: "../../.cache/clusters"})
	if err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a second cluster of the same name: %v", err)
	}
	_, err = cluster.Up(t.Context(), cluster.Options{Name: first.Name(), Root: "../..", Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "choose another name") {
		t.Errorf("a cluster of the same name whose state is elsewhere: %v", err)
	}
	// Each has its own: addresses, services, and users that the other refuses.
	services := clustertest.Kubectl(t, second, "", "get", "service", "-A", "-o", "jsonpath={.items[*].spec.clusterIP}")
	if services != "172.29.0.1 172.29.0.10" {
		t.Errorf("services of the second: %s", services)
	}
	pods := clustertest.Kubectl(t, second, "", "get", "pods", "-A", "-o", "jsonpath={.items[*].status.podIP}")
	for _, address := range strings.Fields(pods) {
		if !strings.HasPrefix(address, "172.24.1.") {
			t.Errorf("a pod of the second has the address %s", address)
		}
	}
	status, err := second.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Kubectl(t.Context(), "", "--server="+status.API, "--insecure-skip-tls-verify", "get", "nodes"); err == nil {
		t.Error("the second lets the first's admin in")
	}
}

// pod is what is read of a Pod.
type pod struct {
	Metadata struct{ Name string }
	Spec     struct{ NodeName string }
	Status   struct {
		PodIP             string
		ContainerStatuses []struct {
			Ready        bool
			RestartCount int
		}
	}
}

func pods(t *testing.T, c *cluster.Cluster, app string) []pod {
	t.Helper()
	var list struct{ Items []pod }
	out := clustertest.Kubectl(t, c, "", "-n", "demo", "get", "pods", "-l", "app="+app, "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func waitDemo(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for _, object := range []string{"deployment/echo", "daemonset/client"} {
		clustertest.Kubectl(t, c, "", "-n", "demo", "rollout", "status", object, "--timeout="+patience.String())
	}
}

// inPod runs the probe in a pod, by kubectl exec.
func inPod(ctx context.Context, c *cluster.Cluster, name string, args ...string) (string, error) {
	out, err := c.Kubectl(ctx, "", append([]string{"-n", "demo", "exec", name, "--", "/program"}, args...)...)
	return strings.TrimSpace(out), err
}

// testPodsReachPods: on the same node and across nodes, and servers see who calls.
func testPodsReachPods(t *testing.T, c *cluster.Cluster) {
	servers, clients := pods(t, c, "echo"), pods(t, c, "client")
	var nodes []string
	for _, client := range clients {
		nodes = append(nodes, client.Spec.NodeName)
		for _, server := range servers {
			got, err := inPod(t.Context(), c, client.Metadata.Name, "get", "http://"+server.Status.PodIP+":8080/")
			if err != nil {
				t.Error(err)
				continue
			}
			if want := server.Metadata.Name + " " + server.Spec.NodeName + " " + client.Status.PodIP; got != want {
				t.Errorf("from %s: got %q, want %q", client.Spec.NodeName, got, want)
			}
		}
	}
	slices.Sort(nodes)
	if !slices.Equal(nodes, []string{"n1", "n2"}) {
		t.Errorf("clients are on %v", nodes)
	}
}

func testServices(t *testing.T, c *cluster.Cluster) {
	address := clustertest.Kubectl(t, c, "", "-n", "demo", "get", "service", "echo", "-o", "jsonpath={.spec.clusterIP}")
	for _, client := range pods(t, c, "client") {
		for _, name := range []string{"echo", "echo.demo.svc.cluster.local"} {
			if got, err := inPod(t.Context(), c, client.Metadata.Name, "lookup", name); err != nil || got != address {
				t.Errorf("on %s, %s is %q, want %s (%v)", client.Spec.NodeName, name, got, address, err)
			}
		}
		if _, err := inPod(t.Context(), c, client.Metadata.Name, "lookup", "no-such-service"); err == nil {
			t.Error("a service that is not there has an address")
		}
		if err := reachesBoth(t.Context(), c, client.Metadata.Name); err != nil {
			t.Errorf("on %s: %v", client.Spec.NodeName, err)
		}
	}
}

// reachesBoth asks the service until servers of both nodes have answered. That
// one of them never does in 40 random choices is a chance of 10 to the power -12.
func reachesBoth(ctx context.Context, c *cluster.Cluster, client string) error {
	urls := slices.Repeat([]string{"http://echo/"}, 40)
	out, err := inPod(ctx, c, client, append([]string{"get"}, urls...)...)
	if err != nil {
		return err
	}
	for _, node := range []string{"n1", "n2"} {
		if !strings.Contains(out, " "+node+" ") {
			return fmt.Errorf("no server of %s answered: %s", node, out)
		}
	}
	return nil
}

func testRBAC(t *testing.T, c *cluster.Cluster) {
	account := "--as=system:serviceaccount:demo:default"
	if out, err := c.Kubectl(t.Context(), "", "auth", "can-i", "list", "secrets", account); err == nil || strings.TrimSpace(out) != "no" {
		t.Errorf("a service account without rights may list secrets: %q %v", out, err)
	}
	clustertest.Kubectl(t, c, "", "-n", "demo", "create", "rolebinding", "view", "--clusterrole=view", "--serviceaccount=demo:default")
	if out := clustertest.Kubectl(t, c, "", "-n", "demo", "auth", "can-i", "list", "pods", account); strings.TrimSpace(out) != "yes" {
		t.Errorf("a bound role gives no right: %q", out)
	}
}

func testLogs(t *testing.T, c *cluster.Cluster) {
	server := pods(t, c, "echo")[0]
	client := pods(t, c, "client")[0]
	if _, err := inPod(t.Context(), c, client.Metadata.Name, "get", "http://"+server.Status.PodIP+":8080/logged"); err != nil {
		t.Fatal(err)
	}
	want := "request for /logged from " + client.Status.PodIP
	if out := clustertest.Kubectl(t, c, "", "-n", "demo", "logs", server.Metadata.Name); !strings.Contains(out, want) {
		t.Errorf("the log lacks %q:\n%s", want, out)
	}
}

func testPortForward(t *testing.T, c *cluster.Cluster) {
	server := pods(t, c, "echo")[1]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, c.KubectlPath(), "--kubeconfig", c.Kubeconfig(), "-n", "demo", "port-forward", server.Metadata.Name, ":8080")
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	port := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindString(line)
	if err != nil || port == "" {
		t.Errorf("port-forward says %q: %v", line, err)
	} else if got, err := fetch("http://" + port + "/"); err != nil || !strings.HasPrefix(got, server.Metadata.Name+" ") {
		t.Errorf("through the forwarded port: %q %v", got, err)
	}
	cancel()
	if err := command.Wait(); err == nil {
		t.Error("port-forward ended by itself")
	}
}

func fetch(url string) (string, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(response.Body)
	return string(body), errors.Join(err, response.Body.Close())
}

// testFromOutside reaches a pod from where an ingress or a webhook's caller is.
func testFromOutside(t *testing.T, c *cluster.Cluster) {
	control, err := c.Node("cp")
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range pods(t, c, "echo") {
		out, err := fetchFrom(control, server.Status.PodIP+":8080")
		if want := server.Metadata.Name + " " + server.Spec.NodeName + " " + control.Address() + "\n"; err != nil || out != want {
			t.Errorf("got %q, want %q (%v)", out, want, err)
		}
	}
}

// testAgents: a privileged DaemonSet has its node's bpffs, CNI folders, processes
// and network, and sees the network namespaces of pods that start after it.
func testAgents(t *testing.T, c *cluster.Cluster) {
	manifest, err := os.ReadFile("testdata/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	clustertest.Kubectl(t, c, string(manifest), "apply", "-f", "-")
	clustertest.Kubectl(t, c, "", "-n", "demo", "rollout", "status", "daemonset/agent", "--timeout="+patience.String())
	clustertest.Kubectl(t, c, "", "-n", "demo", "delete", "pods", "-l", "app=client", "--wait")
	waitDemo(t, c)
	for _, agent := range pods(t, c, "agent") {
		node, err := c.Node(agent.Spec.NodeName)
		if err != nil {
			t.Fatal(err)
		}
		if agent.Status.PodIP != node.Address() {
			t.Errorf("the agent of %s has the address %s", node.Name(), agent.Status.PodIP)
		}
		for _, dir := range []string{"/sys/fs/bpf/agent", "/etc/cni/net.d/agent", "/opt/cni/bin/agent"} {
			if _, err := inPod(t.Context(), c, agent.Metadata.Name, "mkdir", dir); err != nil {
				t.Error(err)
			}
			if _, err := node.Exec(t.Context(), "rmdir", dir); err != nil {
				t.Errorf("what the agent made is not on its node: %v", err)
			}
		}
		want, err := node.Exec(t.Context(), "sh", "-c", "ls /run/netns | xargs")
		if err != nil {
			t.Fatal(err)
		}
		got, err := inPod(t.Context(), c, agent.Metadata.Name, "ls", "/var/run/netns")
		if err != nil || got != strings.TrimSpace(want) || strings.Count(got, "cni-") < 2 {
			t.Errorf("namespaces of %s: the agent sees %q, the node has %q (%v)", node.Name(), got, want, err)
		}
		if processes, err := inPod(t.Context(), c, agent.Metadata.Name, "ls", "/proc"); err != nil || len(strings.Fields(processes)) < 20 {
			t.Errorf("the agent of %s sees no processes: %s %v", node.Name(), processes, err)
		}
	}
}

// fetchFrom fetches over a connection that is made in a node's network.
func fetchFrom(node *cluster.Node, address string) (string, error) {
	var conn net.Conn
	err := node.InNetns(func() (err error) {
		conn, err = net.DialTimeout("tcp", address, 10*time.Second)
		return err
	})
	if err != nil {
		return "", err
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	response, err := client.Get("http://" + address + "/")
	if err != nil {
		return "", errors.Join(err, conn.Close())
	}
	body, err := io.ReadAll(response.Body)
	return string(body), errors.Join(err, response.Body.Close())
}

// testDocumentedCommands runs what docs/clusters.md shows of the command, on this
// cluster. Coming up and going down are what the test itself is about.
func testDocumentedCommands(t *testing.T, c *cluster.Cluster) {
	program := filepath.Join(t.TempDir(), "cluster")
	testenv.Build(t, ".", program, "./cmd/cluster")
	document, err := os.ReadFile("../../docs/clusters.md")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, block := range regexp.MustCompile("(?ms)^```console\n(.*?)^```").FindAllStringSubmatch(string(document), -1) {
		for line := range strings.Lines(block[1]) {
			if strings.HasPrefix(line, "make ") {
				continue
			}
			ran++
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			line = strings.ReplaceAll(line, "bin/cluster", program+" --name "+c.Name())
			if out, err := exec.CommandContext(ctx, "bash", "-euc", line).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", line, err, out)
			}
			cancel()
		}
	}
	if ran < 8 {
		t.Errorf("the document shows %d commands", ran)
	}
	// exec passes on what its command says, and how it ends.
	out, err := exec.CommandContext(t.Context(), program, "--name", c.Name(), "exec", "n2", "--", "sh", "-c", "hostname; exit 7").Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 7 || string(out) != "n2\n" {
		t.Errorf("exec: %q %v", out, err)
	}
}
