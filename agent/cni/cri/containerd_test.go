package cri_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/heddle-mesh/heddle/agent/cni"
	"github.com/heddle-mesh/heddle/agent/cni/chain"
	"github.com/heddle-mesh/heddle/agent/cni/cri"
	"github.com/heddle-mesh/heddle/internal/image"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const (
	podUID   = "5b0cf1d0-91f0-4d0e-8f0a-2f1f0e3a7c11"
	otherUID = "6c1da2e1-02a1-5e1f-9a1b-3a2a1f4b8d22"
)

// addressPlugin stands for a cluster's CNI: it says an address and makes nothing.
const addressPlugin = `#!/bin/sh
case $CNI_COMMAND in
ADD) printf '{"cniVersion":"1.0.0","interfaces":[{"name":"%s","sandbox":"%s"}],"ips":[{"address":"10.68.0.7/24","interface":0}]}' "$CNI_IFNAME" "$CNI_NETNS" ;;
VERSION) printf '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
esac
`

const addressNetwork = `{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"address"}]}`

// everybody enrolls whoever is asked for, and keeps how many sandboxes the runtime
// lists when it has called its plugins.
type everybody struct {
	api    runtimeapi.RuntimeServiceClient
	listed chan int
}

func (e everybody) Await(ctx context.Context, _ mesh.Key, _ string) error {
	list, err := e.api.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	select {
	case e.listed <- len(list.GetItems()):
	default: // the first is what the test looks at
	}
	return nil
}

// containerd is a container runtime of the test's own: every folder, socket and
// cgroup of it is new, and gone afterwards.
type containerd struct {
	dir, cgroup string
	api         runtimeapi.RuntimeServiceClient
}

func (c *containerd) path(name string) string { return filepath.Join(c.dir, name) }

func (c *containerd) socket() string { return c.path("containerd.sock") }

func startContainerd(t *testing.T) *containerd {
	t.Helper()
	testenv.NeedRoot(t)
	dir, err := os.MkdirTemp("/run", "heddle-cri-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	c := &containerd{dir: dir, cgroup: filepath.Base(dir)}
	t.Cleanup(func() { c.clean(t) })
	for _, d := range []string{"net.d", "bin", "logs"} {
		if err := os.Mkdir(c.path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.tracing"]
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:test"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = %q
    bin_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
`, c.path("root"), c.path("state"), c.socket(), c.path("net.d"), c.path("bin"))
	for name, text := range map[string]string{"config.toml": config, "bin/address": addressPlugin, "bin/loopback": addressPlugin,
		"net.d/10-test.conflist": addressNetwork} {
		if err := os.WriteFile(c.path(name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(c.path("log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("containerd", "--config", c.path("config.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start containerd (`make deps` installs it): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it was told to end
		if t.Failed() {
			if text, err := os.ReadFile(c.path("log")); err == nil {
				t.Logf("containerd:\n%s", text[max(0, len(text)-8000):])
			}
		}
	})
	conn, err := grpc.NewClient("unix:"+c.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c.api = runtimeapi.NewRuntimeServiceClient(conn)
	testenv.Eventually(t, 20*time.Second, "containerd answers", func() bool {
		_, err := c.api.Version(t.Context(), &runtimeapi.VersionRequest{})
		return err == nil
	})
	c.importPause(t)
	return c
}

// importPause gives the sandboxes something to run: busybox, which is static.
func (c *containerd) importPause(t *testing.T) {
	t.Helper()
	img, err := image.Build(image.Spec{
		Reference: "localhost/pause:test", Entrypoint: []string{"/busybox", "sleep", "3600"},
		Platforms: []image.Platform{{Architecture: runtime.GOARCH, Files: []image.File{{Path: "/busybox", Source: "/bin/busybox"}}}},
	})
	if err == nil {
		err = image.SaveArchive(c.path("pause.tar"), img)
	}
	if err != nil {
		t.Fatalf("build the sandboxes' image (`make deps` installs busybox-static): %v", err)
	}
	out, err := exec.Command("ctr", "--address", c.socket(), "--namespace", "k8s.io", "images", "import", "--snapshotter", "native", c.path("pause.tar")).CombinedOutput()
	if err != nil {
		t.Fatalf("import: %v\n%s", err, out)
	}
}

func (c *containerd) clean(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], c.dir+"/") {
			t.Errorf("containerd left a mount: %s", fields[4])
			_ = syscall.Unmount(fields[4], syscall.MNT_DETACH) // said above
		}
	}
	if err := os.RemoveAll(c.dir); err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		if !strings.HasPrefix(after, "cgroup") {
			continue
		}
		top := filepath.Join(strings.Fields(before)[4], c.cgroup)
		testenv.Eventually(t, 5*time.Second, top+" is removed", func() bool { return removeTree(top) })
	}
}

// removeTree removes cgroups, deepest first: their files go with them.
func removeTree(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	for _, e := range entries {
		if e.IsDir() {
			removeTree(filepath.Join(dir, e.Name()))
		}
	}
	return os.Remove(dir) == nil
}

func (c *containerd) run(t *testing.T, name, uid string) (string, *runtimeapi.PodSandboxConfig, error) {
	t.Helper()
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: uid},
		LogDirectory: c.path("logs"),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/" + c.cgroup + "/kubepods/besteffort/pod" + uid},
	}
	r, err := c.api.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	return r.GetPodSandboxId(), config, err
}

func (c *containerd) remove(t *testing.T, id string) {
	t.Helper()
	if _, err := c.api.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Error(err)
	}
	if _, err := c.api.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Error(err)
	}
}

// TestContainerd has a real runtime run a real chain: the plugin asks, the
// client finds what runs, and both mean the same.
func TestContainerd(t *testing.T) {
	c := startContainerd(t)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	program := filepath.Join(t.TempDir(), "heddle-cni")
	testenv.Build(t, ".", program, "github.com/heddle-mesh/heddle/cmd/heddle-cni")
	installer, err := chain.New(chain.Config{
		ConfDir: c.path("net.d"), BinDir: c.path("bin"), Program: program, Socket: c.path("cni.sock"), List: c.path("namespaces.json"), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := installer.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	enroller := everybody{api: c.api, listed: make(chan int, 1)}
	places, stop := serveAgent(t, c, enroller, log)
	testenv.Eventually(t, 20*time.Second, "containerd has read the chain", func() bool {
		s, err := c.api.Status(t.Context(), &runtimeapi.StatusRequest{})
		return err == nil && len(s.Status.Conditions) == 2 && s.Status.Conditions[0].Status && s.Status.Conditions[1].Status
	})
	id, _, err := c.run(t, "web", podUID)
	if err != nil {
		t.Fatal(err)
	}
	// ADR 119 rests on it: a pod's labels cannot be had from there in time.
	if n := <-enroller.listed; n != 0 {
		t.Errorf("the runtime lists %d sandboxes while it asks for the first one's network, want none", n)
	}
	asked, ok := places.Get(mesh.Key{Namespace: "shop", Name: "web"})
	if !ok || asked.Sandbox != id || asked.UID != podUID || asked.Addresses[0].String() != "10.68.0.7" {
		t.Fatalf("heddle-cni did not ask, or for another one than %s: %+v", id, asked)
	}
	client, err := cri.New(c.socket(), "/proc", log)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	running, err := client.Running(t.Context())
	if err != nil || len(running) != 1 {
		t.Fatalf("%+v, %v", running, err)
	}
	if p := running[0]; p.UID != podUID || p.Sandbox != id || p.Namespace != asked.Namespace || p.NetNS != asked.NetNS || p.Addresses[0] != asked.Addresses[0] {
		t.Errorf("found %+v, asked for %+v", p, asked)
	}
	if corrected := places.Update(running); len(corrected) > 0 {
		t.Error(corrected)
	}
	stop()
	// Without an agent a pod of the mesh waits, and says so through containerd; also when
	// the cluster's CNI has written its file anew, as at a boot.
	for _, when := range []string{"without an agent", "after the CNI's file was written anew"} {
		if _, _, err := c.run(t, "db", otherUID); err == nil || !strings.Contains(err.Error(), "pod shop/db waits for the node's Heddle agent, and namespace shop is enrolled") {
			t.Errorf("%s: %v", when, err)
		}
		if err := os.WriteFile(c.path("net.d/10-test.conflist"), []byte(addressNetwork), 0o755); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // containerd reads it
	}
	// Nothing else than the copy has held it.
	if err := installer.Uninstall(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, "a pod starts without Heddle", func() bool {
		db, _, err := c.run(t, "db", otherUID)
		if err == nil {
			c.remove(t, db)
		}
		return err == nil
	})
	c.remove(t, id)
	if running, err := client.Running(t.Context()); err != nil || len(running) > 0 {
		t.Errorf("after deleting: %+v, %v", running, err)
	}
}

// serveAgent answers heddle-cni until stop is called.
func serveAgent(t *testing.T, c *containerd, enroller everybody, log *slog.Logger) (places *cni.Places, stop func()) {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("example.test")
	id, err := mesh.IdentityFor(td, "shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	view, err := mesh.NewView("1", mesh.Settings{TrustDomain: td}, []mesh.Workload{{
		Key: mesh.Key{Namespace: "shop", Name: "web"}, ServiceAccount: "web", Node: "n1", UID: podUID, Identity: id, Enrolled: true,
	}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	store := mesh.NewStore()
	store.Replace(view)
	places = cni.NewPlaces()
	server, err := cni.New(cni.Config{Node: "n1", Socket: c.path("cni.sock"), List: c.path("namespaces.json"), Store: store, Places: places, Enroller: enroller, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, false) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	testenv.Eventually(t, 5*time.Second, "the list is on disk", func() bool { _, err := os.Stat(c.path("namespaces.json")); return err == nil })
	return places, stop
}
