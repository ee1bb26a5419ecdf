package fast_test

import (
	"os"
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/hbone/fast"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(thawingProcess())
	}
	testenv.Main(m)
}

func newFast(o enginetest.Options) hbone.Engine {
	return fast.New(fast.Config{
		PingInterval: o.PingInterval, PingTimeout: o.PingTimeout, WriteTimeout: o.WriteTimeout, IdleTimeout: o.IdleTimeout, ServerIdleTimeout: o.ServerIdleTimeout, HandshakeTimeout: o.HandshakeTimeout,
	})
}

func TestFast(t *testing.T) { enginetest.RunSuite(t, newFast) }
