package podnet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/cgroup/cgrouptest"
	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// The kernel tells the agent's sockets by the cgroup they were made in, so that
// the tests need two processes: the tests themselves, which are the agent, and
// one that makes the applications' sockets. A third, the one that `go test`
// starts, gives each a cgroup and removes it afterwards.
const (
	roleAgent = "podnet-test-agent"
	roleApp   = "podnet-test-app"
)

func TestMain(m *testing.M) {
	// As in cmd/heddle-agent: the main thread, whose namespaces are those of
	// /proc/PID/ns and which cannot end, runs nothing that changes them.
	runtime.LockOSThread()
	switch os.Args[len(os.Args)-1] {
	case roleAgent:
		testenv.Main(m)
	case roleApp:
		cgrouptest.Exit(cgrouptest.MakeSockets(cgrouptest.FirstFd))
	default:
		cgrouptest.Exit(startRoles())
	}
}

func startRoles() error {
	pair, err := cgrouptest.Pair()
	if err != nil {
		return err
	}
	app, err := cgrouptest.Start(roleApp, pair[0])
	if err != nil {
		return err
	}
	agent, err := cgrouptest.Start(roleAgent, pair[1])
	if err != nil {
		return err
	}
	err = agent.Wait()
	// The application ends when the agent's end of the pair is closed.
	return errors.Join(err, netns.CloseFd(pair[0]), netns.CloseFd(pair[1]), app.Wait())
}

// application is what applications do, with sockets of their process.
type application struct{ sockets *cgrouptest.Sockets }

// One at once: none is over, nothing is to be closed.
var app = application{cgrouptest.NewSockets(cgrouptest.FirstFd, 1)} //nolint:gochecknoglobals // one process, one pair

// socket returns an application's socket, for an address of its family.
func (a *application) socket(t testing.TB, ns *testenv.NetNS, like netip.Addr) int {
	t.Helper()
	fd, err := a.sockets.Take(ns.Path, like)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// dial connects an application; the connection is closed with the test.
func (a *application) dial(t testing.TB, ns *testenv.NetNS, remote netip.AddrPort) (*net.TCPConn, error) {
	t.Helper()
	ctx, cancel := contextFor(t, dialWait)
	defer cancel()
	c, err := netns.Connect(ctx, a.socket(t, ns, remote.Addr()), remote)
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// listen opens an application's listener, closed with the test.
func (a *application) listen(t testing.TB, ns *testenv.NetNS, at netip.AddrPort) *net.TCPListener {
	t.Helper()
	fd := a.socket(t, ns, at.Addr())
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	for _, err := range []error{
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, netns.Sockaddr(at)),
		unix.Listen(fd, 128),
	} {
		if err != nil {
			t.Fatalf("listen on %s: %v", at, err)
		}
	}
	ln, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}
