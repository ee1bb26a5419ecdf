package resources

import (
	"errors"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestUnfinishedFilesGo: what a process left that was killed while it wrote is removed with a later file; what another one
// may be writing is not.
func TestUnfinishedFilesGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "last-good")
	old, young := filepath.Join(filepath.Dir(path), ".last-good.1"), filepath.Join(filepath.Dir(path), ".last-good.2")
	long := time.Now().Add(-unfinishedFor - time.Minute)
	if err := errors.Join(os.WriteFile(old, nil, 0o600), os.WriteFile(young, nil, 0o600), os.Chtimes(old, long, long)); err != nil {
		t.Fatal(err)
	}
	var none iter.Seq2[*Resource, error] = func(func(*Resource, error) bool) {}
	if err := SaveFile(path, none, &Commit{}); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".last-good.*"))
	if err != nil || len(left) != 1 || left[0] != young {
		t.Errorf("left: %v, %v; want %s", left, err, young)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
