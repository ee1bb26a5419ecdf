package cri

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestRuntimeIsRestarted: as often as the runtime goes and another has its socket, what
// runs is found, and neither descriptors nor goroutines are left behind.
func TestRuntimeIsRestarted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	f := &fakeRuntime{status: map[string]*runtimeapi.PodSandboxStatusResponse{}}
	start := func() (stop func()) {
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		runtimeapi.RegisterRuntimeServiceServer(server, f)
		var served sync.WaitGroup
		served.Go(func() { _ = server.Serve(l) }) // Stop ends it
		return func() { server.Stop(); served.Wait() }
	}
	stop := start()
	defer func() { stop() }()
	c, err := New(socket, "/proc", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	found := func() {
		t.Helper()
		testenv.Eventually(t, 10*time.Second, "the runtime is asked", func() bool { _, err := c.Running(t.Context()); return err == nil })
	}
	found()
	files, goroutines := heldByProcess(t)
	for range 20 {
		stop()
		stop = start()
		found()
	}
	testenv.Eventually(t, 10*time.Second, "no more is held than before", func() bool {
		f, g := heldByProcess(t)
		return f <= files && g <= goroutines
	})
}

func heldByProcess(t *testing.T) (files, goroutines int) {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open), runtime.NumGoroutine()
}
