//go:build !race

// The race detector sees no order through this engine's raw system calls, so
// with the reference engine at the other end it takes what the suite reads
// after an answer for unordered. `make test-unit` runs these without it.

package fast_test

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/hbone/reference"
)

func newReference(o enginetest.Options) hbone.Engine {
	return reference.New(reference.Config{
		PingInterval: o.PingInterval, PingTimeout: o.PingTimeout, WriteTimeout: o.WriteTimeout, IdleTimeout: o.IdleTimeout, ServerIdleTimeout: o.ServerIdleTimeout, HandshakeTimeout: o.HandshakeTimeout,
	})
}

// TestFastClient and TestFastServer put the other engine at the other end: the
// suite makes the client's engine first, then the server's.
func TestFastClient(t *testing.T) { enginetest.RunPair(t, inTurn(newFast, newReference)) }

func TestFastServer(t *testing.T) { enginetest.RunPair(t, inTurn(newReference, newFast)) }

func inTurn(client, server enginetest.New) enginetest.New {
	n := 0
	return func(o enginetest.Options) hbone.Engine {
		if n++; n%2 == 1 {
			return client(o)
		}
		return server(o)
	}
}

func newReferenceEngine() hbone.Engine { return reference.New(reference.Config{}) }

// TestMoveBesideReference moves one end; the other is the reference engine's,
// which knows nothing of it.
func TestMoveBesideReference(t *testing.T) {
	t.Run("client", func(t *testing.T) { moveUnderTraffic(t, newFastEngine, newReferenceEngine) })
	t.Run("server", func(t *testing.T) { moveUnderTraffic(t, newReferenceEngine, newFastEngine) })
}
