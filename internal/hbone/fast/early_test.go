package fast_test

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
)

// TestEarly: the suite's tests of it would hold for an engine that waits, too.
func TestEarly(t *testing.T) { enginetest.SpeaksEarly(t, newFast) }
