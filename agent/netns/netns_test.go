package netns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestMakerClosed(t *testing.T) {
	ns, err := Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	idle := NewMaker()
	idle.Close()
	used := NewMaker()
	fd, err := used.Socket(ns, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	if err := CloseFd(fd); err != nil {
		t.Error(err)
	}
	used.Close()
	used.Close()
	for _, m := range []*Maker{idle, used} {
		if _, err := m.Socket(ns, unix.AF_INET); !errors.Is(err, ErrClosed) {
			t.Errorf("socket of a closed maker: %v", err)
		}
	}
	gone := NewMaker()
	defer gone.Close()
	closed, err := Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if _, err := gone.Socket(closed, unix.AF_INET); err == nil {
		t.Error("made a socket in a namespace that was let go")
	}
}

func BenchmarkSocket(b *testing.B) {
	ns, err := Open("/proc/thread-self/ns/net")
	if err != nil {
		b.Fatal(err)
	}
	defer ns.Close()
	m := NewMaker()
	defer m.Close()
	for b.Loop() {
		fd, err := m.Socket(ns, unix.AF_INET)
		if err != nil {
			b.Fatal(err)
		}
		if err := CloseFd(fd); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOpen(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/no/such":          "network namespace /no/such is gone",
		plain:               plain + ": not a network namespace",
		"/proc/self/ns/mnt": "not of the network kind",
	} {
		if ns, err := Open(path); err == nil || !strings.Contains(err.Error(), want) {
			if ns != nil {
				ns.Close()
			}
			t.Errorf("open %s: %v, want %q", path, err, want)
		}
	}
	made := testenv.NewNetNS(t, "open")
	ns, err := Open(made.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !ns.StillThere() || ns.Path() != made.Path || ns.ID() == (ID{}) {
		t.Errorf("namespace %+v", ns)
	}
	if err := ns.Close(); err != nil {
		t.Error(err)
	}
	if err := ns.Do(func() error { return nil }); err == nil {
		t.Error("entered a namespace that was let go")
	}
}

// TestConnect connects inside a namespace, and stops waiting with its context.
func TestConnect(t *testing.T) {
	made := testenv.NewNetNS(t, "connect")
	ns, err := Open(made.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var ln net.Listener
	err = ns.Do(func() (err error) {
		ln, err = net.Listen("tcp6", "[::1]:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	m := NewMaker()
	defer m.Close()
	dial := func(ctx context.Context, to netip.AddrPort) error {
		fd, err := m.Socket(ns, Family(to.Addr()))
		if err != nil {
			return err
		}
		c, err := Connect(ctx, fd, to)
		if err == nil {
			err = c.Close()
		}
		return err
	}
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	if err := dial(t.Context(), at); err != nil {
		t.Errorf("connect to %s: %v", at, err)
	}
	if err := dial(t.Context(), netip.AddrPortFrom(at.Addr(), at.Port()^1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect to nobody: %v", err)
	}
	if err := dial(t.Context(), netip.MustParseAddrPort("10.1.1.1:1")); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("connect without a route: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := dial(ended, at); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("connect with a context that has ended: %v", err)
	}
}
