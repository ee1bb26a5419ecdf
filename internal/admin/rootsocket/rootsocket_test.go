package rootsocket

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestReplace: the old listener's end leaves the new one's file, which leads to
// the new one; the new one's end removes it.
func TestReplace(t *testing.T) {
	path, log := filepath.Join(t.TempDir(), "s"), slog.New(slog.DiscardHandler)
	old, err := Listen(path, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, log); err == nil {
		t.Error("a socket that is served was replaced unasked")
	}
	fresh, err := Replace(path, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := fresh.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if pid, err := Peer(c); err != nil || pid != os.Getpid() {
		t.Errorf("the peer is %d, %v", pid, err)
	}
	(<-accepted).Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := fresh.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	if err := os.WriteFile(path, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Replace(path, log); err == nil {
		t.Error("a file that is no socket was replaced")
	}
}
