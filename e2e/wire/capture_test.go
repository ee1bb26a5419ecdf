package wire

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// say sends a text over TCP, from loopback to loopback.
func say(text string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(text))
	return err
}

// TestCapture: what was said while it ran is seen, of the addresses that are judged;
// what came before is not; and its files are gone at the end.
func TestCapture(t *testing.T) {
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	ns := testenv.NewNetNS(t, "wire")
	start := func() *Capture {
		t.Helper()
		c, err := Start(ns.Path, "lo")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Discard)
		return c
	}
	ns.Must(t, func() error { return say("too early") })
	for _, test := range []struct {
		marker  string
		judged  func(netip.Addr) bool
		markers bool
	}{
		{"a marker", nil, true}, {"too early", nil, false},
		{"a marker", func(a netip.Addr) bool { return a.IsLoopback() }, true},
		{"a marker", func(a netip.Addr) bool { return !a.IsLoopback() }, false},
	} {
		c := start()
		ns.Must(t, func() error { return say("a marker") })
		if found, err := c.Stop(test.marker, test.judged); err != nil || (found.Markers > 0) != test.markers || found.Packets == 0 {
			t.Errorf("%q: %s, %v", test.marker, found, err)
		}
	}
	start().Discard()
	if _, err := Start(ns.Path, "none0"); err == nil || !strings.Contains(err.Error(), "none0") {
		t.Errorf("a link that is not there: %v", err)
	}
	killed := start()
	if err := killed.tcpdump.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-killed.ended
	if _, err := killed.Stop("", nil); err == nil {
		t.Error("a capture that ended early is judged")
	}
	if left, err := filepath.Glob(temporary + "/*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
