//go:build skew

package product

import (
	"fmt"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// before is the tag of the version that is upgraded from, and gone back to.
const before = "before"

// skewed is a world whose programs are of two versions.
type skewed struct {
	*world
	clis     []string // command lines of both
	waypoint bool     // both have one, and a service goes through it
}

// TestSkew upgrades one program after the other from the version in the folder that
// HEDDLE_SKEW names to this one, and goes back, by each step that any order of them
// has: nothing of what is carried is lost, no request that is sent once
// fails, and a policy takes effect whoever is of which version. `make skew` runs it.
func TestSkew(t *testing.T) {
	folder := os.Getenv("HEDDLE_SKEW")
	if folder == "" {
		t.Fatal("HEDDLE_SKEW names no checkout of the version before: run `make skew`")
	}
	w := skewed{world: newWorld(t)}
	now := w.heddle
	old := filepath.Join(t.TempDir(), "heddle")
	testenv.Build(t, folder, old, "./cmd/heddle")
	w.loadImages(t, folder, before)
	w.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"+
		podYAML("server", "n2", itsShare, "serve")+podYAML("client", "n1", "", "wait")+podYAML("holder", "n1", "", "wait")+podYAML("beside", "n1", itsShare, "serve"))
	w.waitReady(t, "server", "client", "holder", "beside")
	server, beside := w.pod(t, "server").Status.PodIP+":7000", w.pod(t, "beside").Status.PodIP+":7000"
	w.heddle, w.clis = old, []string{old, now}
	w.cli(t, "install", "--set", "image.registry="+registry, "--set", "image.tag="+before, "--set", "mesh.dns=CAPTURE", "--gateway-api", "--wait", "3m")
	w.enroll(t)
	w.apply(t, podYAML("loaded", "n1", itsShare, "load", server, "20", "20")+podYAML("far", "n2", itsShare, "load", beside, "2", "10"))
	w.waitReady(t, "loaded", "far")
	programs := []string{"operator", "agent"}
	if _, err := os.Stat(filepath.Join(folder, "cmd/heddle-waypoint")); err == nil { // before waypoints there was none to go through
		programs = append(programs, "waypoint")
		w.goThroughWaypoint(t)
	}
	w.understood(t)
	// The rights of the newer release, as Helm and `heddle upgrade` apply them before any program.
	w.kubectl(t, "apply", "--server-side", "--force-conflicts", "-f", filepath.Join(w.root, "manifests/plain/rbac.yaml"))
	for _, step := range anyOrder(len(programs)) {
		t.Run(step.name(programs), func(t *testing.T) {
			w.replace(t, programs[step.program], step.to())
			w.understood(t)
		})
	}
	for name, cli := range map[string]string{version: now, before: old} {
		t.Run("by the command line of "+name, func(t *testing.T) {
			w.heddle = cli
			w.cli(t, "upgrade", "--set", "image.tag="+name, "--force-conflicts", "--wait", "3m")
			if w.waypoint {
				w.waypointsAre(t, name)
			}
			w.understood(t)
		})
	}
	w.heddle = now
	if w.waypoint {
		w.kubectl(t, "-n", "shop", "delete", "httproute/site")
		w.cli(t, "waypoint", "delete", "-n", "shop", "--force")
	}
	w.kubectl(t, "-n", "shop", "delete", "pods", "--all", "--now")
	w.uninstall(t)
}

// step replaces one program, while those whose bits are set in newer are of the newer version.
type step struct {
	program int
	newer   uint
}

func (s step) to() string {
	if s.newer&(1<<s.program) != 0 {
		return before
	}
	return version
}

func (s step) name(programs []string) string {
	beside := "all of " + before
	if others := s.newer &^ (1 << s.program); others != 0 {
		var of []string
		for i, name := range programs {
			if others&(1<<i) != 0 {
				of = append(of, name)
			}
		}
		beside = fmt.Sprintf("%s of %s", strings.Join(of, " and "), version)
	}
	return fmt.Sprintf("%s to %s beside %s", programs[s.program], s.to(), beside)
}

// anyOrder walks from all programs being of the version before along each replacement of one of
// them beside each mixture of the others, once, and comes back: whatever order somebody upgrades or
// goes back in is made of steps of these. (An Eulerian circuit of the cube; Hierholzer's.)
func anyOrder(programs int) []step {
	var circuit, path []step
	left := make([]uint, 1<<programs) // for each mixture, the programs that are still to be replaced there
	for i := range left {
		left[i] = 1<<programs - 1
	}
	at := uint(0)
	for {
		if left[at] != 0 {
			next := step{program: bits.TrailingZeros(left[at]), newer: at}
			left[at] &^= 1 << next.program
			path = append(path, next)
			at ^= 1 << next.program
			continue
		}
		if len(path) == 0 {
			break
		}
		last := path[len(path)-1]
		path, circuit, at = path[:len(path)-1], append(circuit, last), last.newer
	}
	slices.Reverse(circuit)
	return circuit
}

// TestAnyOrder: each replacement is made once, beside each mixture of the others, from where the one before it has led.
func TestAnyOrder(t *testing.T) {
	for programs := range 5 {
		made, at := map[step]bool{}, uint(0)
		for _, s := range anyOrder(programs) {
			if s.newer != at || made[s] {
				t.Errorf("%d programs: %+v, from %b, made %v", programs, s, at, made)
			}
			made[s] = true
			at ^= 1 << s.program
		}
		if want := programs << programs; at != 0 || len(made) != want {
			t.Errorf("%d programs: %d steps that end at %b, want %d and 0", programs, len(made), at, want)
		}
	}
}

// goThroughWaypoint has a service go through a waypoint, and two clients ask it, one of which sends each request once.
func (w *skewed) goThroughWaypoint(t *testing.T) {
	t.Helper()
	w.apply(t, siteYAML())
	w.waitReady(t, "site-1", "site-2", "guest")
	w.enrolled(t, "n1", "shop/site-1")
	w.enrolled(t, "n2", "shop/site-2", "shop/guest")
	w.cli(t, "waypoint", "apply", "-n", "shop", "--wait")
	w.goesThrough(t, "waypoint")
	w.apply(t, routeYAML(50))
	w.routeIsTold(t, 1)
	w.apply(t, podYAML("visitor", "n2", itsShare, "visit", site, "2", "10")+podYAML("poster", "n1", itsShare, "post", site+"/", "4", "20"))
	w.waitReady(t, "visitor", "poster")
	w.waypoint = true
}

// waypointsAre waits until all replicas of the waypoint are of a version.
func (w *skewed) waypointsAre(t *testing.T, version string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			w.explain(t, "shop")
		}
	}()
	want := fmt.Sprintf("%s/heddle-waypoint:%s", registry, version)
	// Each replica that goes drains first, one after the other, and agents may be replaced meanwhile.
	eventually(t, 2*patience, "the waypoint is of version "+version, func() error {
		images := strings.Fields(w.kubectl(t, "-n", "shop", "get", "pods", "-l", ofWaypoint, "-o", "jsonpath={.items[*].spec.containers[0].image}"))
		if len(images) != 2 || images[0] != want || images[1] != want {
			return fmt.Errorf("its replicas are of %v, want two of %s", images, want)
		}
		return nil
	})
	w.kubectl(t, "-n", "shop", "rollout", "status", "deployment/waypoint", "--timeout="+patience.String())
}

// replace has one program be of a version. The operator replaces waypoints: by the image that it is told, whatever version it is of.
func (w *skewed) replace(t *testing.T, program, to string) {
	t.Helper()
	if program == "waypoint" {
		w.kubectl(t, "-n", "heddle-system", "set", "env", "deployment/heddle-operator", fmt.Sprintf("HEDDLE_WAYPOINT_IMAGE=%s/heddle-waypoint:%s", registry, to))
		w.replaced(t, "operator", "deployment/heddle-operator")
		w.waypointsAre(t, to)
		return
	}
	what := map[string]string{"operator": "deployment/heddle-operator", "agent": "daemonset/heddle-agent"}[program]
	w.kubectl(t, "-n", "heddle-system", "set", "image", what, fmt.Sprintf("%[1]s=%[2]s/heddle-%[1]s:%[3]s", program, registry, to))
	w.replaced(t, program, what)
}

// replaced waits until what is to replace the pods of a program has done so.
func (w *skewed) replaced(t *testing.T, program, what string) {
	t.Helper()
	w.kubectl(t, "-n", "heddle-system", "rollout", "status", what, "--timeout=3m")
	testenv.Eventually(t, patience, "the ones of the other version are gone", func() bool {
		return strings.Count(w.kubectl(t, "-n", "heddle-system", "get", "pods", "-l", "app.kubernetes.io/component="+program, "-o", "name"), "\n") == 2
	})
}

// understood fails unless traffic goes on, none of it was lost, a policy takes
// effect, a new pod is enrolled, and both command lines say that all is well.
func (w *skewed) understood(t *testing.T) {
	t.Helper()
	w.unharmed(t, "n1", "loaded", true)
	if w.waypoint {
		w.posted(t, 40)
	}
	w.aPolicyTakesEffect(t)
	w.apply(t, podYAML("fresh", "n1", "", "once", w.pod(t, "server").Status.PodIP+":7000", "first"))
	w.enrolledOrDone(t, "fresh")
	for _, cli := range w.clis {
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
func (w *skewed) enrolledOrDone(t *testing.T, pod string) {
	t.Helper()
	testenv.Eventually(t, patience, "a new pod reaches another", func() bool {
		said, err := w.Kubectl(t.Context(), "", "-n", "shop", "logs", pod)
		return err == nil && strings.Contains(said, "first")
	})
	w.kubectl(t, "-n", "shop", "delete", "pod", pod, "--now")
}
