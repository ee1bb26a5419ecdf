//go:build skew

package product

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// before is the tag of the version that is upgraded from, and gone back to.
const before = "before"

// TestSkew upgrades one program after the other from the version in the folder that
// HEDDLE_SKEW names to this one, and goes back, operators first and agents first:
// nothing of what is carried is lost, and a policy takes effect whoever is of which
// version. `make skew` runs it.
func TestSkew(t *testing.T) {
	folder := os.Getenv("HEDDLE_SKEW")
	if folder == "" {
		t.Fatal("HEDDLE_SKEW names no checkout of the version before: run `make skew`")
	}
	w := newWorld(t)
	now := w.heddle
	old := filepath.Join(t.TempDir(), "heddle")
	testenv.Build(t, folder, old, "./cmd/heddle")
	w.loadImages(t, folder, before)
	w.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"+
		podYAML("server", "n2", itsShare, "serve")+podYAML("client", "n1", "", "wait")+podYAML("holder", "n1", "", "wait")+podYAML("beside", "n1", itsShare, "serve"))
	w.waitReady(t, "server", "client", "holder", "beside")
	server, beside := w.pod(t, "server").Status.PodIP+":7000", w.pod(t, "beside").Status.PodIP+":7000"
	w.heddle = old
	w.cli(t, "install", "--set", "image.registry="+registry, "--set", "image.tag="+before, "--wait", "3m")
	w.enroll(t)
	w.apply(t, podYAML("loaded", "n1", itsShare, "load", server, "20", "20")+podYAML("far", "n2", itsShare, "load", beside, "2", "10"))
	w.waitReady(t, "loaded", "far")
	w.understood(t, old, now)
	// The rights of the newer release, as Helm and `heddle upgrade` apply them before any program.
	w.kubectl(t, "apply", "--server-side", "--force-conflicts", "-f", filepath.Join(w.root, "manifests/plain/rbac.yaml"))
	for _, order := range [][]string{{"operator", "agent"}, {"agent", "operator"}} {
		for _, to := range []string{version, before} {
			for _, program := range order {
				t.Run(fmt.Sprintf("%s to %s, %s first", program, to, order[0]), func(t *testing.T) {
					w.replace(t, program, to)
					w.understood(t, old, now)
				})
			}
		}
	}
	for name, cli := range map[string]string{version: now, before: old} {
		t.Run("by the command line of "+name, func(t *testing.T) {
			w.heddle = cli
			w.cli(t, "upgrade", "--set", "image.tag="+name, "--force-conflicts", "--wait", "3m")
			w.understood(t, old, now)
		})
	}
	w.heddle = now
	w.kubectl(t, "-n", "shop", "delete", "pods", "--all", "--now")
	w.uninstall(t)
}

// replace has one program be of a version.
func (w *world) replace(t *testing.T, program, to string) {
	t.Helper()
	what := map[string]string{"operator": "deployment/heddle-operator", "agent": "daemonset/heddle-agent"}[program]
	w.kubectl(t, "-n", "heddle-system", "set", "image", what, fmt.Sprintf("%[1]s=%[2]s/heddle-%[1]s:%[3]s", program, registry, to))
	w.kubectl(t, "-n", "heddle-system", "rollout", "status", what, "--timeout=3m")
	testenv.Eventually(t, patience, "the ones of the other version are gone", func() bool {
		return strings.Count(w.kubectl(t, "-n", "heddle-system", "get", "pods", "-l", "app.kubernetes.io/component="+program, "-o", "name"), "\n") == 2
	})
}

// understood fails unless traffic goes on, none of it was lost, a policy takes
// effect, a new pod is enrolled, and both command lines say that all is well.
func (w *world) understood(t *testing.T, clis ...string) {
	t.Helper()
	w.unharmed(t, "n1", "loaded", true)
	w.aPolicyTakesEffect(t)
	w.apply(t, podYAML("fresh", "n1", "", "once", w.pod(t, "server").Status.PodIP+":7000", "first"))
	w.enrolledOrDone(t, "fresh")
	for _, cli := range clis {
		testenv.Eventually(t, patience, "all is well", func() bool {
			out, err := exec.CommandContext(t.Context(), cli, "status", "--kubeconfig", w.Kubeconfig()).CombinedOutput()
			if err != nil {
				t.Logf("heddle status: %v\n%s", err, out)
			}
			return err == nil
		})
	}
}

// enrolledOrDone waits until a pod that makes one request has made it.
func (w *world) enrolledOrDone(t *testing.T, pod string) {
	t.Helper()
	testenv.Eventually(t, patience, "a new pod reaches another", func() bool {
		said, err := w.Kubectl(t.Context(), "", "-n", "shop", "logs", pod)
		return err == nil && strings.Contains(said, "first")
	})
	w.kubectl(t, "-n", "shop", "delete", "pod", pod, "--now")
}
