package product

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

const (
	workloadImage = "localhost/workload:test"
	registry      = "localhost/heddle"
	version       = "product"
	nextVersion   = "next" // of a waypoint that is tried
	// marker is what must not be seen on the wire.
	marker = "in-plain-sight-7f3a"
	// patience bounds what Kubernetes takes to do something.
	patience = 90 * time.Second
	// onNode is where the CLI is put on a node, and agent the agent's socket.
	onNode = "/opt/heddle"
	agent  = "/run/heddle/agent.sock"
)

// world is a cluster and the programs of this checkout.
type world struct {
	*cluster.Cluster
	root, heddle string
	joined       []time.Duration // see enroll
	network      string          // CNI configuration of n1, as the cluster has made it
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, cluster.Options{Name: "ht-product"})
}

// newWorldOn is newWorld on a cluster of some kind.
func newWorldOn(t *testing.T, kind cluster.Options) *world {
	t.Helper()
	root, err := build.FindRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{root: root, heddle: filepath.Join(t.TempDir(), "heddle")}
	testenv.Build(t, root, w.heddle, "./cmd/heddle")
	w.Cluster = clustertest.Up(t, kind)
	clustertest.LoadProgram(t, w.Cluster, "./workload", workloadImage)
	w.loadImages(t, root, version)
	for _, n := range w.Nodes() {
		w.putCLI(t, n)
	}
	return w
}

// loadImages builds the images of a checkout and loads them into the cluster.
func (w *world) loadImages(t *testing.T, folder, tag string) {
	t.Helper()
	images := t.TempDir()
	testenv.Go(t, folder, "run", "./manifests/images", "-architectures", runtime.GOARCH, "-folder", images, "-registry", registry, "-version", tag)
	want := 0 // a version of before waypoints has none
	for _, program := range []string{"agent", "operator", "waypoint"} {
		if _, err := os.Stat(filepath.Join(folder, "cmd/heddle-"+program)); err == nil {
			want++
		}
	}
	archives, err := filepath.Glob(images + "/*.tar")
	if err != nil || want < 2 || len(archives) != want {
		t.Fatalf("images %v, %v", archives, err)
	}
	if err := w.LoadImage(t.Context(), archives...); err != nil {
		t.Fatal(err)
	}
}

// putCLI copies the CLI onto a node, to ask its agent.
func (w *world) putCLI(t *testing.T, n *cluster.Node) {
	t.Helper()
	w.put(t, n, w.heddle, onNode)
}

// put copies a file onto a node, as a program. to is a path without blanks; its folder is made.
func (w *world) put(t *testing.T, n *cluster.Node, source, to string) {
	t.Helper()
	file, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd, err := n.Command(t.Context(), "sh", "-c", "mkdir -p "+filepath.Dir(to)+" && cat > "+to+" && chmod 755 "+to)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = file
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copy %s to %s: %v: %s", source, n.Name(), err, out)
	}
}

// cli runs `heddle` against the cluster; the test ends when it fails.
func (w *world) cli(t *testing.T, args ...string) string {
	t.Helper()
	started := time.Now()
	cmd := exec.CommandContext(t.Context(), w.heddle, append(args, "--kubeconfig", w.Kubeconfig())...)
	out, err := cmd.CombinedOutput()
	t.Logf("heddle %s (%.1f s):\n%s", strings.Join(args, " "), time.Since(started).Seconds(), out)
	if err != nil {
		w.explain(t, "heddle-system")
		t.Fatalf("heddle %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// explain logs what a person would look at.
func (w *world) explain(t *testing.T, namespace string) {
	t.Helper()
	for _, args := range [][]string{
		{"get", "pods", "-o", "wide"}, {"get", "events", "--sort-by=.lastTimestamp"},
		{"logs", "-l", "app.kubernetes.io/part-of=heddle", "--prefix", "--tail=25", "--all-containers"},
		{"logs", "-l", "app.kubernetes.io/component=agent", "--prefix", "--tail=40"},
		{"logs", "-l", "app.kubernetes.io/component=agent", "--prefix", "--tail=15", "--previous"},
	} {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
		out, err := w.Kubectl(ctx, "", append([]string{"-n", namespace}, args...)...)
		cancel()
		if err == nil || out != "" {
			t.Logf("kubectl -n %s %s:\n%s", namespace, strings.Join(args, " "), out)
		}
	}
}

func (w *world) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return clustertest.Kubectl(t, w.Cluster, "", args...)
}

func (w *world) apply(t *testing.T, yaml string) {
	t.Helper()
	clustertest.Kubectl(t, w.Cluster, yaml, "apply", "-f", "-")
}

func (w *world) node(t *testing.T, name string) *cluster.Node {
	t.Helper()
	n, err := w.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// enrolled waits until a node's agent has these pods behind their gates.
func (w *world) enrolled(t *testing.T, node string, pods ...string) {
	t.Helper()
	last := ""
	defer func() {
		if t.Failed() {
			t.Logf("the agent of %s says:\n%s", node, last)
		}
	}()
	testenv.Eventually(t, patience, fmt.Sprintf("%v are enrolled on %s", pods, node), func() bool {
		out, err := w.node(t, node).Exec(t.Context(), onNode, "check", "--socket", agent)
		last = fmt.Sprint(out, err)
		return err == nil && !slices.ContainsFunc(pods, func(p string) bool { return !strings.Contains(out, p) })
	})
}

// status is what is read of a Pod.
type podObject struct {
	Metadata struct {
		Name              string
		DeletionTimestamp string
	}
	Spec   struct{ NodeName string }
	Status struct {
		PodIP, Phase      string
		ContainerStatuses []struct {
			Ready        bool
			RestartCount int
		}
	}
}

func (p podObject) ready() bool {
	return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].Ready && p.Metadata.DeletionTimestamp == ""
}

// pod reads a pod of the namespace shop.
func (w *world) pod(t *testing.T, name string) (p podObject) {
	t.Helper()
	if err := json.Unmarshal([]byte(w.kubectl(t, "-n", "shop", "get", "pod", name, "-o", "json")), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// waitReady waits for pods of the namespace shop.
func (w *world) waitReady(t *testing.T, pods ...string) {
	t.Helper()
	for _, name := range pods {
		if _, err := w.Kubectl(t.Context(), "", "-n", "shop", "wait", "--for=condition=Ready", "pod/"+name, "--timeout="+patience.String()); err != nil {
			t.Log(w.kubectl(t, "-n", "shop", "describe", "pod", name))
			w.explain(t, "heddle-system")
			t.Fatal(err)
		}
	}
}

// itsShare has a container get as much of the processors as an agent asks for. Without a
// request it gets a fiftieth of that (kubelet's shares of the class BestEffort): on a
// busy machine a pod that counts what is lost waits for the processor until it is.
const itsShare = "    resources: {requests: {cpu: 50m}}\n"

// podYAML is a pod of the workload program.
func podYAML(name, node string, more string, args ...string) string {
	quoted, _ := json.Marshal(args) // strings only
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop, labels: {app: %[1]s}}
spec:
  nodeSelector: {kubernetes.io/hostname: %s}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %s
    imagePullPolicy: Never
    args: %s
%s`, name, node, workloadImage, quoted, more)
}

// inPod runs the workload program in a pod.
func (w *world) inPod(t *testing.T, pod string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := w.Kubectl(ctx, "", append([]string{"-n", "shop", "exec", pod, "--", "/program"}, args...)...)
	return strings.TrimSpace(out), err
}

// logs are a pod's of the namespace shop.
func (w *world) logs(t *testing.T, pod string) string {
	t.Helper()
	return w.kubectl(t, "-n", "shop", "logs", pod)
}

// events of a pod, as `kubectl describe` shows them.
func (w *world) events(t *testing.T, pod string) string {
	t.Helper()
	return w.kubectl(t, "-n", "shop", "get", "events", "--field-selector=involvedObject.name="+pod, "-o", "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}")
}
