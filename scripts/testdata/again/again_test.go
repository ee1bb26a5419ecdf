// Package again fails as TestAgain has it fail, the first time.
package again

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// before reports whether this test has run before.
func before(t *testing.T) bool {
	t.Helper()
	path := filepath.Join(os.Getenv("AGAIN_DIR"), t.Name())
	_, err := os.Stat(path)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return err == nil
}

func TestSlow(t *testing.T) {
	if !before(t) {
		t.Error("too slow")
	}
}

func TestLoss(t *testing.T) {
	if !before(t) && os.Getenv("AGAIN_LOSES") != "" {
		testenv.ForGood(t, "1 of 2 requests is lost:\nthe second")
	}
}
