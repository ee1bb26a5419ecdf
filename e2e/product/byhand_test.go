package product

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/e2e/kernelstate"
	"github.com/heddle-mesh/heddle/e2e/scenario/kubernetes"
)

// testByHand is a life without `heddle install` and `heddle uninstall`: kubectl applies
// what the chart says, as Helm does, and it is taken away as docs/install.md has it for
// Helm and kubectl. Here kubectl deletes what `helm uninstall` would.
func (w *world) testByHand(t *testing.T, files string) {
	crds, labelled := filepath.Join(w.root, "manifests/heddle/crds"), "app.kubernetes.io/managed-by=heddle"
	w.kubectl(t, "apply", "--server-side", "-f", crds)
	w.kubectl(t, "wait", "--for", "condition=Established", "-f", crds)
	out, err := exec.CommandContext(t.Context(), w.heddle, "install", "--dry-run", "--set", "image.registry="+registry, "--set", "image.tag="+version,
		"--set", "mesh.clusterRanges={10.244.0.0/16,10.96.0.0/16}", "--set", "agent.nodeSelector."+kubernetes.NodeLabel+"="+kubernetes.NodeLabelValue).Output()
	if err != nil {
		t.Fatal(err)
	}
	w.applyFrom(t, string(out), "apply", "--server-side")
	for _, what := range []string{"deployment/heddle-operator", "daemonset/heddle-agent"} {
		w.kubectl(t, "-n", "heddle-system", "rollout", "status", what, "--timeout="+patience.String())
	}
	w.kubectl(t, "label", "namespace", "shop", "heddle.dev/mesh=enabled")
	w.enrolled(t, "n1", "shop/client")
	w.enrolled(t, "n2", "shop/server")
	w.works(t, "client", w.pod(t, "server").Status.PodIP+":7000")
	w.left(t, func() {
		w.cli(t, "unenroll", "shop", "--wait")
		for _, command := range documentedUninstall(t, w.root) {
			w.shell(t, command)
		}
		w.kubectl(t, "delete", "deployments,daemonsets,services,poddisruptionbudgets,roles,rolebindings,serviceaccounts", "-n", "heddle-system", "-l", labelled)
		w.kubectl(t, "delete", "clusterroles,clusterrolebindings", "-l", labelled)
		w.kubectl(t, "delete", "-f", crds)
		w.kubectl(t, "delete", "namespace", "heddle-system") // which the agents are in until they have ended
	})
	if left := difference(files, fileState(t, w.node(t, "n1"))+fileState(t, w.node(t, "n2"))); left != "" {
		t.Errorf("uninstalled by hand, this is left:\n%s", left)
	}
}

func (w *world) applyFrom(t *testing.T, yaml string, args ...string) {
	t.Helper()
	if out, err := w.Kubectl(t.Context(), yaml, append(args, "-f", "-")...); err != nil {
		t.Fatalf("kubectl %v: %v\n%s", args, err, out)
	}
}

// documentedUninstall are the commands that the page has before `helm uninstall`.
func documentedUninstall(t *testing.T, root string) []string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root, "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```text\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		if before, _, ok := strings.Cut(block[1], "helm uninstall"); ok && strings.Contains(before, "--uninstall-on-exit") {
			return strings.Split(strings.TrimSpace(before), "\n")
		}
	}
	t.Fatal("docs/install.md does not say what to do before `helm uninstall`")
	return nil
}

// shell runs a command line of kubectl as a person would.
func (w *world) shell(t *testing.T, line string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", fmt.Sprintf("kubectl() { %q \"$@\"; }\n%s", w.KubectlPath(), line))
	cmd.Env = append(os.Environ(), "KUBECONFIG="+w.Kubeconfig())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// left runs what takes the agents off their nodes, and waits until no BPF object of
// theirs is in the kernel.
func (w *world) left(t *testing.T, uninstall func()) {
	t.Helper()
	var objects []kernelstate.Object
	for _, name := range []string{"n1", "n2"} {
		pinned := kernelObjects(t, w.node(t, name))
		if len(pinned) == 0 {
			t.Errorf("before the uninstall %s has no pinned BPF object: nothing can be missed", name)
		}
		objects = append(objects, pinned...)
	}
	uninstall()
	eventually(t, patience, "no BPF object of the agents is left in the kernel", func() error {
		left, err := kernelstate.Alive(objects)
		if err == nil && len(left) > 0 {
			err = errors.New(fmt.Sprint("left are ", left))
		}
		return err
	})
}
