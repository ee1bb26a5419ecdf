package product

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/e2e/kernelstate"
	"github.com/heddle-mesh/heddle/e2e/scenario/kubernetes"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// testByHand is a life by Helm in place of `heddle install`, `upgrade` and `uninstall`:
// by the commands of docs/install.md, as they are written there.
func (w *world) testByHand(t *testing.T, files string) {
	w.buildHelm(t)
	const shared = " --set image.registry=" + registry + " --set image.tag=" + version + " --set agent.nodeSelector." + kubernetes.NodeLabel + "=" + kubernetes.NodeLabelValue
	install := w.documented(t, "helm install heddle ")[0]
	w.shell(t, "helm lint --strict manifests/heddle")
	w.sameByHelm(t, install+shared)

	w.shell(t, install+shared+" --wait --timeout 3m")
	w.kubectl(t, "label", "namespace", "shop", "heddle.dev/mesh=enabled")
	w.enrolled(t, "n1", "shop/client")
	w.enrolled(t, "n2", "shop/server")
	server := w.pod(t, "server").Status.PodIP + ":7000"
	w.works(t, "client", server)
	t.Run("dns by default", func(t *testing.T) { w.testDNSByDefault(t) })

	w.apply(t, podYAML("kept", "n1", itsShare, "load", server, "5", "5"))
	w.waitReady(t, "kept")
	for _, command := range w.documented(t, "helm upgrade heddle ") {
		if strings.HasPrefix(command, "helm ") {
			command += " --set agent.podAnnotations.run=helm --set operator.startupTaint=true --wait --timeout 3m"
		}
		w.shell(t, command)
	}
	if out, err := exec.CommandContext(t.Context(), w.heddle, "upgrade", "--kubeconfig", w.Kubeconfig()).CombinedOutput(); err == nil || !strings.Contains(string(out), "helm upgrade") {
		t.Errorf("`heddle upgrade` of what Helm installed: %v: %s", err, out)
	}
	testenv.Eventually(t, patience, "both agents are those of the upgrade", func() bool {
		return strings.TrimSpace(w.kubectl(t, "-n", "heddle-system", "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o", "jsonpath={.items[*].metadata.annotations.run}")) == "helm helm"
	})
	w.unharmed(t, "n1", "kept", true)
	w.kubectl(t, "-n", "shop", "delete", "pod", "kept", "--now")
	w.kubectl(t, "taint", "node", "n2", v1alpha1.TaintAgentNotReady+"=true:NoSchedule") // as a kubelet registers its node
	testenv.Eventually(t, patience, "the operator takes the taint of a node whose agent is ready", func() bool {
		return !strings.Contains(w.kubectl(t, "get", "node", "n2", "-o", "jsonpath={.spec.taints}"), v1alpha1.TaintAgentNotReady)
	})

	w.left(t, func() {
		w.cli(t, "unenroll", "shop", "--wait")
		for _, command := range w.documented(t, "helm uninstall heddle ") {
			w.shell(t, command)
		}
		w.kubectl(t, "delete", "-f", filepath.Join(w.root, "manifests/heddle/crds")) // which Helm leaves
		w.kubectl(t, "delete", "namespace", "heddle-system")                         // which the agents are in until they have ended
	})
	if left := difference(files, fileState(t, w.node(t, "n1"))+fileState(t, w.node(t, "n2"))); left != "" {
		t.Errorf("uninstalled by Helm, this is left:\n%s", left)
	}
}

// testByKubectl is a life by kubectl alone, by the commands and the overlay of
// docs/install.md.
func (w *world) testByKubectl(t *testing.T, files string) {
	overlay := w.overlay(t)
	for _, command := range w.documented(t, "kubectl apply --server-side -k ") {
		w.shell(t, strings.Replace(command, "-k manifests", "-k "+overlay, 1))
	}
	w.shell(t, "kubectl -n heddle-system rollout status --timeout 3m deployment heddle-operator && kubectl -n heddle-system rollout status --timeout 3m daemonset heddle-agent")
	w.kubectl(t, "label", "namespace", "shop", "heddle.dev/mesh=enabled", "--overwrite")
	w.enrolled(t, "n1", "shop/client")
	w.enrolled(t, "n2", "shop/server")
	w.works(t, "client", w.pod(t, "server").Status.PodIP+":7000")
	w.testRolls(t)
	w.reboots(t, 1)

	w.left(t, func() {
		w.kubectl(t, "label", "namespace", "shop", "heddle.dev/mesh-")
		commands := w.documented(t, "helm uninstall heddle ")
		commands[len(commands)-1] = w.documented(t, "kubectl delete -k ")[0]
		for _, command := range commands {
			w.shell(t, strings.Replace(command, "-k manifests", "-k "+overlay, 1))
		}
	})
	if left := difference(files, fileState(t, w.node(t, "n1"))+fileState(t, w.node(t, "n2"))); left != "" {
		t.Errorf("uninstalled by kubectl, this is left:\n%s", left)
	}
}

// overlay writes the overlay of docs/install.md, with this cluster's images in the
// place of those that it names, and returns its folder.
func (w *world) overlay(t *testing.T) string {
	t.Helper()
	found := regexp.MustCompile("(?s)```yaml\n(# kustomization.yaml.*?)```").FindStringSubmatch(w.installPage(t))
	if found == nil {
		t.Fatal("docs/install.md has no kustomization.yaml")
	}
	folder := t.TempDir()
	manifests, err := filepath.Rel(folder, filepath.Join(w.root, "manifests"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("[manifests]", "["+manifests+"]", "registry.example.com", registry, ":0.1.0", ":"+version, "newTag: 0.1.0", "newTag: "+version).Replace(found[1])
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return folder
}

// buildHelm builds Helm's own program, which `make cluster-programs` has built before.
func (w *world) buildHelm(t *testing.T) {
	t.Helper()
	testenv.Build(t, filepath.Join(w.root, "e2e/helm"), w.helm(), "helm.sh/helm/v3/cmd/helm")
}

func (w *world) helm() string { return filepath.Join(w.root, ".cache/helm/helm") }

// sameByHelm fails when Helm makes other objects of the chart than `heddle install`
// does, but for the label that says who made them.
func (w *world) sameByHelm(t *testing.T, install string) {
	t.Helper()
	ours := strings.Replace(strings.Replace(install, "helm install heddle manifests/heddle", "heddle install --dry-run", 1), "--namespace heddle-system --create-namespace", "", 1)
	of := func(command string) map[string]string {
		all := map[string]string{}
		for _, document := range strings.Split("\n"+strings.ReplaceAll(w.shell(t, command), "app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: heddle"), "\n---") {
			o := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
				t.Fatalf("%s: %v in\n%s", command, err, document)
			}
			if len(o.Object) > 0 {
				text, err := yaml.Marshal(o.Object)
				if err != nil {
					t.Fatal(err)
				}
				all[o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName()] = string(text)
			}
		}
		return all
	}
	byHelm, byHeddle := of(strings.Replace(install, "helm install", "helm template --kube-version 1.31.0", 1)), of(ours) // built from its module, it knows of no Kubernetes by itself
	if len(byHelm) < 10 {
		t.Fatalf("helm template makes %d objects", len(byHelm))
	}
	for object, text := range byHelm {
		if byHeddle[object] != text {
			t.Errorf("%s is by Helm\n%s\nand by heddle install\n%s", object, text, byHeddle[object])
		}
	}
}

// installPage is docs/install.md.
func (w *world) installPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(w.root, "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// documented are the commands of the block of docs/install.md that has one which begins so.
func (w *world) documented(t *testing.T, beginning string) []string {
	t.Helper()
	for _, block := range regexp.MustCompile("(?s)```text\n(.*?)```").FindAllStringSubmatch(w.installPage(t), -1) {
		commands := strings.Split(strings.TrimSpace(block[1]), "\n")
		if slices.ContainsFunc(commands, func(c string) bool { return strings.HasPrefix(c, beginning) }) {
			return commands
		}
	}
	t.Fatalf("docs/install.md has no command that begins with %q", beginning)
	return nil
}

// shell runs a command line as a person would, in the checkout, and returns what it prints.
func (w *world) shell(t *testing.T, line string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", fmt.Sprintf("kubectl() { %q \"$@\"; }\nhelm() { %q \"$@\"; }\nheddle() { %q \"$@\"; }\n%s", w.KubectlPath(), w.helm(), w.heddle, line))
	var out, said strings.Builder
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.root, &out, &said
	cmd.Env = append(os.Environ(), "KUBECONFIG="+w.Kubeconfig())
	for _, what := range []string{"CACHE", "CONFIG", "DATA"} { // not in the home of who runs the test
		cmd.Env = append(cmd.Env, "HELM_"+what+"_HOME="+filepath.Join(filepath.Dir(w.heddle), "helm", what))
	}
	if err := cmd.Run(); err != nil {
		w.explain(t, "heddle-system")
		t.Fatalf("%s: %v\n%s%s", line, err, &out, &said)
	}
	return out.String()
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
