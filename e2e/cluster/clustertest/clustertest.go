// Package clustertest gives tests a Kubernetes cluster: one of their own that goes
// with the test, or a running one to develop against. It is imported by tests
// only; its functions are called from the test's goroutine.
package clustertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/e2e/cluster"
	"github.com/heddle-mesh/heddle/e2e/cluster/build"
	"github.com/heddle-mesh/heddle/internal/image"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// Reuse is the environment variable that names a running cluster of the checkout
// (`make cluster-up`): Up takes it in place of a new one, and leaves it running.
const Reuse = "HEDDLE_CLUSTER"

// Bounds on how long a cluster takes to come and to go.
const (
	upPatience   = 4 * time.Minute
	downPatience = time.Minute
)

// Up brings a cluster up that is taken down at the test's end, and shows the ends
// of its logs when the test failed. Root and Say need not be set. The name is the
// test's alone: while another test of this machine has it, this one's cluster is
// NAME-2, and so on. What a run that was cut short left under the name goes first.
func Up(t testing.TB, options cluster.Options) *cluster.Cluster {
	t.Helper()
	testenv.NeedRoot(t)
	root, err := build.FindRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	options.Root = root
	if options.Say == nil {
		options.Say = func(line string) { t.Logf("cluster %s: %s", options.Name, line) }
	}
	running := os.Getenv(Reuse)
	if running == "" {
		options.Name = claim(t, claims, options.Name)
	}
	if options, err = options.WithDefaults(); err != nil {
		t.Fatal(err)
	}
	if running != "" {
		return reuse(t, options.Dir, running)
	}
	if old, err := cluster.Open(options.Dir, options.Name); err == nil {
		down(t, old)
	} else if !errors.Is(err, cluster.ErrNotFound) {
		t.Fatal(err)
	}
	// Its time is not the cluster's: the first build takes minutes.
	if _, err := build.Ensure(t.Context(), root, options.Say); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), upPatience)
	defer cancel()
	c, err := cluster.Up(ctx, options)
	if c != nil {
		t.Cleanup(func() {
			if t.Failed() {
				showLogs(t, c)
			}
			down(t, c)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// claims is where tests say which names they have: of the whole machine, as what a
// cluster makes there is called by its name, whichever checkout it is of.
const claims = "/run/cluster-tests"

// mostClaims bounds how many tests have clusters of one name at a time.
const mostClaims = 9

// claim returns the first of NAME, NAME-2, NAME-3, ... that no living test has, and
// keeps it for this one until its end. A claim goes with the process that made it.
func claim(t testing.TB, folder, name string) string {
	t.Helper()
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= mostClaims; n++ {
		one := name
		if n > 1 {
			one = fmt.Sprintf("%s-%d", name, n)
		}
		file, err := os.OpenFile(filepath.Join(folder, one), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			t.Cleanup(func() { file.Close() }) // which unlocks it; the file stays, as others may be at it
			return one
		}
		if err := errors.Join(err, file.Close()); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Fatalf("claim the cluster name %s: %v", one, err)
		}
	}
	t.Fatalf("%d tests have clusters of the name %s: wait for one of them", mostClaims, name)
	return ""
}

func reuse(t testing.TB, dir, name string) *cluster.Cluster {
	t.Helper()
	c, err := cluster.Open(dir, name)
	if err != nil {
		t.Fatalf("%s=%s: %v", Reuse, name, err)
	}
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !status.Healthy {
		t.Fatalf("%s=%s: the cluster is not healthy: look with `bin/cluster status --name %[2]s`", Reuse, name)
	}
	return c
}

func down(t testing.TB, c *cluster.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), downPatience)
	defer cancel()
	if err := c.Down(ctx); err != nil {
		t.Error(err)
	}
}

// showLogs logs the last lines of all programs.
func showLogs(t testing.TB, c *cluster.Cluster) {
	control, err := c.Node("cp")
	if err != nil {
		t.Log(err)
		return
	}
	for _, node := range append(c.Nodes(), control) {
		for _, program := range node.Programs() {
			file, err := node.Log(program)
			if err != nil {
				t.Log(err)
				continue
			}
			out, err := exec.Command("tail", "--lines=15", file).CombinedOutput()
			if err == nil {
				t.Logf("%s of %s:\n%s", program, node.Name(), out)
			}
		}
	}
}

// LoadProgram builds a main package of the checkout, makes an image of it under
// the reference, and loads it into the cluster. The program is /program and the
// entry point.
func LoadProgram(t testing.TB, c *cluster.Cluster, pkg, reference string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	testenv.Build(t, ".", program, pkg)
	img, err := image.Build(image.Spec{
		Reference: reference, Entrypoint: []string{"/program"},
		Platforms: []image.Platform{{Architecture: runtime.GOARCH, Files: []image.File{{Path: "/program", Source: program}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := image.SaveArchive(archive, img); err != nil {
		t.Fatal(err)
	}
	if err := c.LoadImage(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
}

// Kubectl runs kubectl as admin and returns what it prints; the test ends when it
// fails.
func Kubectl(t testing.TB, c *cluster.Cluster, input string, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), input, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
