package listener

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestAdopt: a listener that was adopted accepts from the same queue as the one
// that it is a duplicate of, outlives it, and neither ever blocks.
func TestAdopt(t *testing.T) {
	testenv.NeedRoot(t)
	ns := testenv.NewNetNS(t, "listen")
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		var l *net.TCPListener
		ns.Must(t, func() (err error) { l, err = Open(t.Context(), family, 4321, Options{Mark: 0x100}); return err })
		fd, err := Duplicate(l)
		if err != nil {
			t.Fatal(err)
		}
		adopted, err := Adopt(fd, family, 4321, Options{Mark: 0x100})
		if err != nil {
			t.Fatal(err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("the socket blocks: %#x, %v", flags, err)
		}
		unix.Close(fd)
		var c net.Conn
		ns.Must(t, func() (err error) { c, err = net.DialTimeout("tcp", l.Addr().String(), 2*time.Second); return err })
		l.Close() // before anybody has accepted
		raw, err := adopted.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		// As a loop accepts: what Go would set on it is there already.
		accepted := -1
		raw.Control(func(fd uintptr) { accepted, _, err = unix.Accept4(int(fd), unix.SOCK_CLOEXEC) })
		if err != nil {
			t.Fatalf("a connection that waited: %v", err)
		}
		for _, o := range []struct{ level, option, want int }{
			{unix.SOL_SOCKET, unix.SO_MARK, 0x100}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
		} {
			if got, err := unix.GetsockoptInt(accepted, o.level, o.option); got != o.want || err != nil {
				t.Errorf("option %d of level %d: %#x, want %#x; %v", o.option, o.level, got, o.want, err)
			}
		}
		unix.Close(accepted)
		adopted.Close()
		c.Close()
	}
	if _, err := Adopt(0, unix.AF_INET, 4321, Options{Mark: 0x100}); err == nil {
		t.Error("what is no socket was adopted")
	}
}

// TestOpenLocal: it listens on the namespace's 127.0.0.1 alone, and says so when the port
// is another program's.
func TestOpenLocal(t *testing.T) {
	testenv.NeedRoot(t)
	ns := testenv.NewNetNS(t, "local")
	var l net.Listener
	ns.Must(t, func() (err error) { l, err = OpenLocal(t.Context(), 4321); return err })
	defer l.Close()
	if got := l.Addr().String(); got != "127.0.0.1:4321" {
		t.Errorf("listens on %s", got)
	}
	err := ns.Do(func() error { _, err := OpenLocal(t.Context(), 4321); return err })
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second one: %v", err)
	}
	var c net.Conn
	ns.Must(t, func() (err error) { c, err = net.DialTimeout("tcp", "127.0.0.1:4321", 2*time.Second); return err })
	defer c.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	accepted.Close()
}
