package netns

import (
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// congestion is a namespace's whose default is name.
func congestion(t *testing.T, ns *testenv.NetNS, name string, system bool) Congestion {
	t.Helper()
	ns.Must(t, func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte(name), 0) })
	n, err := Open(ns.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	c, err := n.Congestion(system)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func algorithm(t *testing.T, c interface{ File() (*os.File, error) }) string {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	name, err := unix.GetsockoptString(int(f.Fd()), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestCongestion: where the default paces, local sockets do not, and tunnels do when their path is long; else
// all is the default.
func TestCongestion(t *testing.T) {
	testenv.NeedRoot(t)
	ns := testenv.NewNetNS(t, "pace")
	for _, of := range []struct {
		name         string
		system       bool
		short        time.Duration
		local, route string
		tunnel       string // before and after it has settled
		settled      string
	}{
		{"bbr", false, time.Minute, "reno", "reno", "cubic", "cubic"},
		{"bbr", false, 0, "reno", "reno", "cubic", "bbr"},
		{"bbr", true, time.Minute, "bbr", "", "bbr", "bbr"},
		{"reno", false, 0, "reno", "", "reno", "reno"},
	} {
		c := congestion(t, ns, of.name, of.system)
		c.short = of.short
		var l net.Listener
		var dialed, accepted net.Conn
		ns.Must(t, func() (err error) {
			if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return err
			}
			if dialed, err = net.Dial("tcp", l.Addr().String()); err != nil {
				return err
			}
			accepted, err = l.Accept()
			return err
		})
		conn := dialed.(*net.TCPConn)
		set := func(fn func(int) error) string {
			raw, err := conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var inner error
			if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil || inner != nil {
				t.Fatalf("%+v: %v, %v", of, err, inner)
			}
			return algorithm(t, conn)
		}
		if got := set(c.Local); got != of.local || c.Route() != of.route {
			t.Errorf("%+v: local %q, route %q", of, got, c.Route())
		}
		if got := set(c.Tunnel); got != of.tunnel {
			t.Errorf("%+v: a tunnel begins with %q", of, got)
		}
		if err := c.Settle(conn); err != nil || algorithm(t, conn) != of.settled {
			t.Errorf("%+v: a tunnel settles with %q, %v", of, algorithm(t, conn), err)
		}
		set(func(fd int) error { return setCongestion(fd, "cubic") }) // as another agent left it
		if got := set(c.System); (got == of.name) != (of.system || of.name != "bbr") {
			t.Errorf("%+v: back to the system's is %q", of, got)
		}
		for _, end := range []interface{ Close() error }{dialed, accepted, l} {
			end.Close()
		}
		if err := c.Settle(conn); (err != nil) != c.unpaced {
			t.Errorf("%+v: a closed tunnel settles: %v", of, err)
		}
	}
}
