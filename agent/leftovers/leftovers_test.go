package leftovers_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/heddle-mesh/heddle/agent/leftovers"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestRemove leaves what is others', and the folders around it.
func TestRemove(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"run/keys/a.svid", "run/agent.lock", "run/agent.sock", "run/agent.sock.123", "state/node/node.json", "state/.node.123", "state/.new-12ab", "state/node.new", "state/node.refused", "state/others", "heddle/x"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(at(name)), 0o700), os.WriteFile(at(name), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(at("heddle/x")); err != nil {
		t.Fatal(err)
	}
	files := leftovers.Files{
		KeyDir: at("run/keys"), Paths: []string{at("state/node"), at("run/agent.lock"), at("state/never"), ""},
		Sockets: []string{at("run/agent.sock"), ""}, Folders: []string{at("run"), at("state")}, PinDir: at("heddle/n1"),
	}
	for range 2 { // it may be repeated
		if err := leftovers.Remove(files); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(dir + "/*/*")
	if err != nil || len(left) != 1 || left[0] != at("state/others") {
		t.Errorf("left: %v, %v", left, err)
	}
	for name, there := range map[string]bool{"run": false, "state": true, "heddle": false} {
		if _, err := os.Stat(at(name)); (err == nil) != there {
			t.Errorf("%s: there %v, want %v", name, err == nil, there)
		}
	}
}
