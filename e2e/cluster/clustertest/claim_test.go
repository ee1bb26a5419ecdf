package clustertest

import (
	"os"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// One name is had by one living test, and is free again after it.
func TestClaimedNamesAreOnesOwn(t *testing.T) {
	folder := t.TempDir() + "/claims"
	var had []string
	t.Run("side by side", func(t *testing.T) {
		for range 3 {
			had = append(had, claim(t, folder, "ht-x"))
		}
	})
	if got := strings.Join(had, " "); got != "ht-x ht-x-2 ht-x-3" {
		t.Errorf("names %s", got)
	}
	t.Run("afterwards", func(t *testing.T) {
		if again := claim(t, folder, "ht-x"); again != "ht-x" {
			t.Errorf("with the tests gone their name is taken: %s", again)
		}
		if other := claim(t, folder, "ht-y"); other != "ht-y" {
			t.Errorf("another name is %s", other)
		}
	})
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 4 {
		t.Errorf("%v, %v", entries, err)
	}
}
