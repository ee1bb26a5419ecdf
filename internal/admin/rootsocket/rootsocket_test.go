package rootsocket

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

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

// TestWhatAKilledProgramLeft: a socket that was never put in place goes with the next
// start, and nothing else that is beside it does.
func TestWhatAKilledProgramLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	old := time.Now().Add(-2 * leftAfter)
	bind := func(name string, served bool, at time.Time) string {
		t.Helper()
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + name, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if served {
			t.Cleanup(func() { _ = l.Close() })
		} else if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path+name, at, at); err != nil {
			t.Fatal(err)
		}
		return path + name
	}
	left := bind(".4930", false, old)
	stay := []string{bind(".4931", true, old), bind(".4932", false, time.Now()), bind(".old", false, old)}
	plain := path + ".4933"
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(plain, old, old); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a killed program left is there still: %v", err)
	}
	for _, name := range append(stay, plain) {
		if _, err := os.Lstat(name); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
}
