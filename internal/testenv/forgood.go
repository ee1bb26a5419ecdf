package testenv

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// ForGood fails a test as its Errorf does, and for good: scripts/again runs once more what
// has failed, and the run has failed all the same. It is for what may not happen once,
// however seldom it does: a request that is lost, a connection that breaks. It may be called
// from any goroutine, until the test ends.
func ForGood(t testing.TB, format string, args ...any) {
	t.Helper()
	said := fmt.Sprintf(format, args...)
	t.Error(said)
	path := os.Getenv("HEDDLE_FOR_GOOD")
	if path == "" {
		return
	}
	line, _, _ := strings.Cut(said, "\n")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s: %s\n", t.Name(), line); err != nil {
		t.Error(err)
	}
}
