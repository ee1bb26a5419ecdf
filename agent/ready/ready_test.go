package ready_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/ready"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func serve(t *testing.T, node string, state func() string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ready.Serve(ctx, node, slog.New(slog.DiscardHandler), state) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func ask(t *testing.T, node string) error {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return ready.Ask(ctx, node)
}

// TestReady asks as the agent starts, is ready, has handed over, and is gone.
func TestReady(t *testing.T) {
	const node = "test-ready"
	if err := ask(t, node); !errors.Is(err, ready.ErrNotReady) || !strings.Contains(err.Error(), node) {
		t.Errorf("nobody there: %v", err)
	}
	var why atomic.Value
	why.Store("starting")
	stop := serve(t, node, func() string { return why.Load().(string) })
	testenv.Eventually(t, 5*time.Second, "it says why", func() bool {
		err := ask(t, node)
		return errors.Is(err, ready.ErrNotReady) && strings.Contains(err.Error(), "starting")
	})
	why.Store("")
	if err := ask(t, node); err != nil {
		t.Errorf("ready: %v", err)
	}
	if err := ask(t, node+"-other"); !errors.Is(err, ready.ErrNotReady) {
		t.Errorf("the agent of another node answered: %v", err)
	}
	stop()
	if err := ask(t, node); !errors.Is(err, ready.ErrNotReady) {
		t.Errorf("after its end: %v", err)
	}
}

// TestTwoInOnePlace: without containers, the second answers when the first ends.
func TestTwoInOnePlace(t *testing.T) {
	const node = "test-two"
	first := serve(t, node, func() string { return "first" })
	testenv.Eventually(t, 5*time.Second, "the first answers", func() bool { return strings.Contains(ask(t, node).Error(), "first") })
	second := serve(t, node, func() string { return "" })
	first()
	testenv.Eventually(t, 5*time.Second, "the second answers", func() bool { return ask(t, node) == nil })
	second()
}
