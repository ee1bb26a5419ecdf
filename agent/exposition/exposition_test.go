package exposition_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/agent/exposition"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// serve serves until the test ends.
func serve(t *testing.T, port *net.TCPListener, ready func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "heddle_loom", Help: "A loom."}))
	ended := make(chan error, 1)
	go func() { ended <- exposition.Serve(ctx, port, registry, ready) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// get returns status and text, over a connection of its own.
func get(t *testing.T, port *net.TCPListener, path string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + port.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestServe(t *testing.T) {
	port, err := exposition.Listen(t.Context(), "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	var ready atomic.Bool
	serve(t, port, ready.Load)
	if status, text := get(t, port, "/metrics"); status != http.StatusOK || !strings.Contains(text, "heddle_loom 0") {
		t.Errorf("/metrics: %d\n%s", status, text)
	}
	if status, _ := get(t, port, "/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: %d", status)
	}
	if status, text := get(t, port, "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(text, "no configuration yet") {
		t.Errorf("/readyz before: %d %s", status, text)
	}
	ready.Store(true)
	if status, _ := get(t, port, "/readyz"); status != http.StatusOK {
		t.Errorf("/readyz: %d", status)
	}
}

// TestListenAdopts: the port of the agent before goes on, and its file is closed.
func TestListenAdopts(t *testing.T) {
	before, err := exposition.Listen(t.Context(), "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	file, err := before.File()
	if err != nil {
		t.Fatal(err)
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	port, err := exposition.Listen(t.Context(), "127.0.0.1:1", file)
	if err != nil {
		t.Fatal(err)
	}
	if port.Addr().String() != before.Addr().String() {
		t.Errorf("it listens at %v, not at %v", port.Addr(), before.Addr())
	}
	serve(t, port, func() bool { return true })
	if status, _ := get(t, port, "/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: %d", status)
	}
}
