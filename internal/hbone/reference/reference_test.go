package reference_test

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/hbone/reference"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func newReference(o enginetest.Options) hbone.Engine {
	return reference.New(reference.Config{
		PingInterval: o.PingInterval, PingTimeout: o.PingTimeout, WriteTimeout: o.WriteTimeout, IdleTimeout: o.IdleTimeout, ServerIdleTimeout: o.ServerIdleTimeout, HandshakeTimeout: o.HandshakeTimeout,
	})
}

func TestReference(t *testing.T) { enginetest.RunSuite(t, newReference) }
