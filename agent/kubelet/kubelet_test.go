package kubelet

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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
	place, err := (&search{proc: "/proc"}).find()
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

// TestStuck: a process whose command line cannot be read, here one of a FIFO that
// nobody writes, keeps nobody from finding kubelet, and is said to be passed over.
func TestStuck(t *testing.T) {
	testenv.NeedRoot(t)
	own := folder(t, "heddle-test-kubelet-beside")
	cmd, _ := fake(t, own)
	proc := t.TempDir()
	const held = 1 // of any processes' names, sorted as text, it is the first
	fifo := filepath.Join(proc, strconv.Itoa(held), "cmdline")
	real := strconv.Itoa(cmd.Process.Pid)
	if err := errors.Join(os.Mkdir(filepath.Dir(fifo), 0o755), syscall.Mkfifo(fifo, 0o600), os.Symlink("/proc/"+real, filepath.Join(proc, real))); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer // nobody else writes when it is read
	begun := time.Now()
	w, err := newWatch(Auto, proc, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 3*lookWithin {
		t.Errorf("it took %v", took)
	}
	if place, err := w.State(); err != nil || place.PID != cmd.Process.Pid {
		t.Errorf("%+v, %v; want process %s", place, err, real)
	}
	if !strings.Contains(log.String(), "a process cannot be looked at") || !strings.Contains(log.String(), `process="1 (`) {
		t.Fatalf("said %q", log.String())
	}
	begun = time.Now()
	w.look() // passes it over at once
	if took := time.Since(begun); took > lookWithin {
		t.Errorf("the second time it took %v", took)
	}
	release, err := os.OpenFile(fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0) // fails when nobody reads
	if err != nil {
		t.Fatal(err)
	}
	release.Close()
	testenv.Eventually(t, 5*time.Second, "the process is looked at again", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.stuck) == 0
	})
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
