package kubelet

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/cgroup"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestIsKubelet(t *testing.T) {
	for command, want := range map[string]bool{
		"/usr/bin/kubelet --config=x": true, "kubelet": true, "/opt/kube kubelet": true, "/snap/kubelite --apiserver": true,
		"/usr/local/bin/k3s server": true, "/usr/local/bin/k3s kubectl": false, "tail -f kubelet.log": false,
		"/usr/bin/kubelet-wrapper": false, "": false,
	} {
		if isKubelet(bytes.Split([]byte(command), []byte(" "))) != want {
			t.Errorf("%q: %v", command, !want)
		}
	}
}

// folder makes a cgroup v2 that is gone when the test ends.
func folder(t *testing.T, name string) string {
	t.Helper()
	mount, _, err := cgroup.Mount()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(mount, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		testenv.Eventually(t, 5*time.Second, dir+" is removed", func() bool { return os.Remove(dir) == nil })
	})
	return dir
}

// fake runs something that calls itself kubelet, in a cgroup, until the test ends
// or it is stopped.
func fake(t *testing.T, dir string) (cmd *exec.Cmd, stop func()) {
	t.Helper()
	group, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	cmd = exec.Command("sleep", "60")
	cmd.Args[0] = "/usr/bin/kubelet"
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // with the signal's status
		}
	}
	t.Cleanup(stop)
	return cmd, stop
}

// TestFind takes no pod's process for kubelet, and follows the real one into the
// cgroup that it has after a restart.
func TestFind(t *testing.T) {
	testenv.NeedRoot(t)
	folder(t, "heddle-test-kubepods")
	pod := folder(t, "heddle-test-kubepods/pod5b0cf1d0-91f0-4d0e-8f0a-2f1f0e3a7c11")
	_, _ = fake(t, pod)
	w, err := NewWatch(Auto, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if place, err := w.State(); place.Folder == pod || w.ID() != 0 && place.PID == 0 {
		t.Fatalf("a pod's process was taken for kubelet: %+v, %v", place, err)
	}
	if ok, detail, remedy := w.Check(); ok || !strings.Contains(remedy, "--kubelet-cgroup") || !strings.Contains(detail, "5b0cf1d0") {
		t.Errorf("check: %v, %q, %q", ok, detail, remedy)
	}

	own := folder(t, "heddle-test-kubelet")
	cmd, stop := fake(t, own)
	place, err := Find()
	if err != nil || place.PID != cmd.Process.Pid || place.Folder != own || place.Others != 0 {
		t.Fatalf("%+v, %v; want process %d in %s", place, err, cmd.Process.Pid, own)
	}
	var told atomic.Uint64
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx, func(id uint64) error { told.Store(id); return nil })
	}()
	testenv.Eventually(t, 5*time.Second, "it is told where kubelet is", func() bool { return told.Load() == place.ID })
	stop()
	testenv.Eventually(t, 5*time.Second, "it says that kubelet is gone", func() bool { ok, _, _ := w.Check(); return !ok })
	if w.ID() != place.ID {
		t.Error("while kubelet is away, its cgroup is forgotten")
	}
	again := folder(t, "heddle-test-kubelet-again")
	_, _ = fake(t, again)
	testenv.Eventually(t, 5*time.Second, "it is told of the new cgroup", func() bool { id := told.Load(); return id != 0 && id != place.ID })
	if ok, detail, _ := w.Check(); !ok || !strings.Contains(detail, again) {
		t.Errorf("check: %v, %q", ok, detail)
	}
	cancel()
	<-done
}

func TestGivenCgroup(t *testing.T) {
	testenv.NeedRoot(t)
	log := slog.New(slog.DiscardHandler)
	if _, err := NewWatch("/no/such/cgroup", log); err == nil || !strings.Contains(err.Error(), "--kubelet-cgroup") {
		t.Errorf("a cgroup that is not there: %v", err)
	}
	if w, err := NewWatch(None, log); w != nil || err != nil {
		t.Errorf("none: %v, %v", w, err)
	}
	mount, _, err := cgroup.Mount()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewWatch(mount, log); err == nil || !strings.Contains(err.Error(), "root cgroup") {
		t.Errorf("the root cgroup: %v", err)
	}
	dir := folder(t, "heddle-test-given")
	w, err := NewWatch(dir, log)
	if err != nil || w.ID() == 0 {
		t.Errorf("%v, %v", w, err)
	}
	if errors.Is(err, ErrNotFound) {
		t.Error("it was looked for")
	}
}
