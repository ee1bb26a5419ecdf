package kernel

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/cgroup"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// fifo blocks who opens it, in a system call that nothing can interrupt, until
// release is called.
func fifo(t *testing.T, path string) (release func()) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	return func() {
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
	}
}

// TestOpenBlocked: a start that the kernel keeps waiting says where, and ends when it
// is told to; what comes of it after all is let go.
func TestOpenBlocked(t *testing.T) {
	testenv.NeedRoot(t)
	t.Run("cgroup", func(t *testing.T) {
		dir := t.TempDir()
		release := fifo(t, filepath.Join(dir, "cgroup.procs"))
		openBlocked(t, Config{Cgroup: dir}, "waiting for the kernel to move the agent into its cgroup")
		release()
	})
	t.Run("programs", func(t *testing.T) {
		own, err := cgroup.Enter("test-open", "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := own.Leave(); err != nil {
				t.Error(err)
			}
		})
		node := testenv.NewNetNS(t, "open")
		pins := "/sys/fs/bpf/" + node.Name
		t.Cleanup(func() {
			if err := os.RemoveAll(pins); err != nil {
				t.Error(err)
			}
		})
		state := t.TempDir()
		release := fifo(t, filepath.Join(state, "pods", "retired-1-2-3.json"))
		openBlocked(t, Config{Cgroup: own.Path, PinDir: pins, StateDir: state}, "waiting for the kernel to load or adopt the programs")
		release()
		testenv.Eventually(t, 10*time.Second, "what was loaded is let go", func() bool { return !holdsMaps(t) })
	})
}

func openBlocked(t *testing.T, cfg Config, want string) {
	t.Helper()
	var log testenv.Log
	cfg.Node, cfg.Log = "n1", slog.New(slog.NewTextHandler(&log, nil))
	// Long enough for what is before the block, on a machine that is busy.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	begun := time.Now()
	_, err := Open(ctx, cfg)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(log.String(), want) || !strings.Contains(log.String(), "in_the_kernel=") {
		t.Errorf("%v, said %q", err, log.String())
	}
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
}

// holdsMaps reports whether this process has a BPF map open.
func holdsMaps(t *testing.T) bool {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.Contains(target, "bpf-map") {
			return true
		}
	}
	return false
}
