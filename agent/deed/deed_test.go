package deed_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/deed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestClaim: one has the node, and whoever waits for nobody to have it waits for the
// end of that one.
func TestClaim(t *testing.T) {
	path, log := filepath.Join(t.TempDir(), "agent.lock"), slog.New(slog.DiscardHandler)
	first, err := deed.Claim(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := deed.Claim(t.Context(), path); err == nil || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) || !strings.Contains(err.Error(), "remedy:") {
		t.Errorf("a second one: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
	defer cancel()
	if deed.AwaitNobody(ctx, path, log) {
		t.Error("it is somebody's")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if !deed.AwaitNobody(t.Context(), path, log) {
		t.Error("it is nobody's")
	}
	second, err := deed.Claim(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
}
