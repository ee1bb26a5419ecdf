package product

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// probes are of every kind that kubelet has; under STRICT those over the network
// pass by where they come from.
const probes = `    startupProbe: {grpc: {port: 9090}, periodSeconds: 1, failureThreshold: 30}
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1, failureThreshold: 3}
`

const execProbe = `    readinessProbe: {exec: {command: [/program, ok]}, periodSeconds: 1}
`

// testNewPods starts pods of all kinds in an enrolled namespace.
func (w *world) testNewPods(t *testing.T, server string) {
	c := w.capture(t)
	w.apply(t, podYAML("fresh", "n1", "", "dial", server+":7000")+
		podYAML("probed", "n1", probes, "serve")+podYAML("executed", "n2", execProbe, "wait"))
	w.waitReady(t, "fresh", "probed", "executed")
	if said := w.logs(t, "fresh"); !strings.Contains(said, "first packet: first <nil>") {
		t.Errorf("the first connection of a new pod: %s", said)
	}
	w.enrolled(t, "n1", "shop/fresh", "shop/probed")
	fresh := w.pod(t, "fresh").Status.PodIP
	onlyInTheTunnel(t, "a new pod's first packets", c.Stop(t, "first\n", only(fresh)))
	t.Run("probes", func(t *testing.T) { w.testProbes(t) })
	t.Run("jobs", func(t *testing.T) { w.testJobs(t, server) })
	t.Run("port-forward", func(t *testing.T) { w.testPortForward(t) })
	t.Run("hostNetwork", func(t *testing.T) { w.testHostNetwork(t) })
	t.Run("without an agent", func(t *testing.T) { w.testWithoutAgent(t, server) })
}

// testProbes: kubelet's pass, and the same from another program of the node does
// not.
func (w *world) testProbes(t *testing.T) {
	time.Sleep(4 * time.Second) // liveness would have failed three times
	pod := w.pod(t, "probed")
	if !pod.ready() || pod.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("probed: %+v\n%s", pod.Status, w.events(t, "probed"))
	}
	n1 := w.node(t, "n1")
	if out, err := n1.Exec(t.Context(), "timeout", "3", "bash", "-c", "exec 3<>/dev/tcp/"+pod.Status.PodIP+"/8080"); err == nil {
		t.Errorf("another program of the node reached a port that is probed, under STRICT: %s", out)
	}
	// The kubelet comes back in a new cgroup, or the old one: probes go on.
	if _, err := n1.Exec(t.Context(), "bash", "-c", "kill -9 $(cat $(find /sys/fs/cgroup -maxdepth 2 -name kubelet.service)/cgroup.procs)"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(8 * time.Second)
	if pod := w.pod(t, "probed"); !pod.ready() || pod.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("after kubelet's restart: %+v\n%s", pod.Status, w.events(t, "probed"))
	}
	out, err := n1.Exec(t.Context(), onNode, "check", "--socket", agent)
	if err != nil || !strings.Contains(out, "kubelet") {
		t.Errorf("check says nothing of kubelet: %v\n%s", err, out)
	}
}

// testJobs: what ends, ends.
func (w *world) testJobs(t *testing.T, server string) {
	w.apply(t, fmt.Sprintf(`
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: shop}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      initContainers:
      - {name: init, image: %[1]s, imagePullPolicy: Never, args: [once, "%[2]s:7000", from-init]}
      containers:
      - {name: main, image: %[1]s, imagePullPolicy: Never, args: [once, "%[2]s:7000", from-main]}
`, workloadImage, server))
	if _, err := w.Kubectl(t.Context(), "", "-n", "shop", "wait", "--for=condition=Complete", "job/once", "--timeout="+patience.String()); err != nil {
		logs, _ := w.Kubectl(t.Context(), "", "-n", "shop", "logs", "job/once", "--all-containers") // of a container that did not start there are none
		t.Fatalf("%v\n%s\n%s", err, logs, w.kubectl(t, "-n", "shop", "describe", "pods", "-l", "job-name=once"))
	}
	if said := w.kubectl(t, "-n", "shop", "logs", "job/once", "--all-containers"); !strings.Contains(said, "from-init") || !strings.Contains(said, "from-main") {
		t.Errorf("a job in the mesh says %q", said)
	}
}

func (w *world) testPortForward(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.KubectlPath(), "--kubeconfig", w.Kubeconfig(), "-n", "shop", "port-forward", "probed", ":8080")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	port := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindString(line)
	if err != nil || port == "" {
		t.Errorf("port-forward says %q: %v", line, err)
	} else if got, err := fetch("http://" + port + "/"); err != nil || !strings.HasPrefix(got, `{"server":"probed","path":"/"`) {
		t.Errorf("through the forwarded port: %q %v", got, err)
	}
	cancel()
	_ = cmd.Wait() // it was killed
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

// testHostNetwork: such a pod runs, outside the mesh, and an event says so.
func (w *world) testHostNetwork(t *testing.T) {
	pod := strings.Replace(podYAML("hosted", "n1", "", "wait"), "spec:\n", "spec:\n  hostNetwork: true\n", 1)
	w.apply(t, strings.Replace(pod, "labels: {", "labels: {heddle.dev/mesh: enabled, ", 1))
	w.waitReady(t, "hosted")
	testenv.Eventually(t, 20*time.Second, "an event says that a pod with hostNetwork is refused", func() bool {
		return strings.Contains(w.events(t, "hosted"), "hostNetwork")
	})
	w.kubectl(t, "-n", "shop", "delete", "pod", "hosted", "--now")
}

// testWithoutAgent: a new pod waits, and its event says for what.
func (w *world) testWithoutAgent(t *testing.T, server string) {
	n1 := w.node(t, "n1")
	signal := func(name string) {
		t.Helper()
		if _, err := n1.Exec(t.Context(), "bash", "-c", agentPID+"; kill -"+name+" $pid"); err != nil {
			t.Fatal(err)
		}
	}
	signal("STOP")
	defer signal("CONT")
	w.apply(t, podYAML("waiting", "n1", "", "dial", server+":7000"))
	testenv.Eventually(t, 40*time.Second, "an event says that the pod waits for the agent", func() bool {
		return strings.Contains(w.events(t, "waiting"), "waits for the node's Heddle agent")
	})
	if phase := w.pod(t, "waiting").Status.Phase; phase != "Pending" {
		t.Errorf("without an agent a pod of the mesh is %s", phase)
	}
	signal("CONT")
	w.waitReady(t, "waiting")
	if said := w.logs(t, "waiting"); !strings.Contains(said, "first packet: first <nil>") {
		t.Errorf("a pod that has waited: %s", said)
	}
}

// agentPID sets pid to the process of a node's agent that has the node: those that
// have handed over do not count.
const agentPID = `pid=$(cat /run/heddle/agent.lock)`
