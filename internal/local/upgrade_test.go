package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHolds: only the words of this very process count, and a log that cannot
// be read spares it.
func TestHolds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.log")
	before := "level=INFO msg=\"the running agent hands over\" successor=7 from=6\n"
	if err := os.WriteFile(path, []byte(before+"level=INFO msg=\"the running agent hands over\" successor=77 from=7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for pid, want := range map[int]bool{7: false, 77: true, 78: false} {
		if got := holds(path, int64(len(before)), pid); got != want {
			t.Errorf("process %d: %v", pid, got)
		}
	}
	if !holds(path+".gone", 0, 78) {
		t.Error("a process of which nothing is known would be killed")
	}
}

// TestLostConnectionsAreAnError: an upgrade that lost some does not look like
// one that lost none.
func TestLostConnectionsAreAnError(t *testing.T) {
	if err := Lost([]Upgraded{{Node: "n1", Connections: 5, Left: 2}}); err != nil {
		t.Errorf("nothing was lost: %v", err)
	}
	err := Lost([]Upgraded{{Node: "n1"}, {Node: "n2", Failed: 3}})
	if err == nil || !strings.Contains(err.Error(), "node n2 was upgraded, and 3 connections were lost") {
		t.Errorf("got %v", err)
	}
}
