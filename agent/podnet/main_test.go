package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/cgroup"
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
	appFd     = 3
)

func TestMain(m *testing.M) {
	// As in cmd/heddle-agent: the main thread, whose namespaces are those of
	// /proc/PID/ns and which cannot end, runs nothing that changes them.
	runtime.LockOSThread()
	switch os.Args[len(os.Args)-1] {
	case roleAgent:
		testenv.Main(m)
	case roleApp:
		exit(serveApp())
	default:
		exit(startRoles())
	}
}

func exit(err error) {
	var status *exec.ExitError
	if errors.As(err, &status) {
		os.Exit(status.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func startRoles() error {
	mount, _, err := cgroup.Mount()
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	app, err := startIn(mount, roleApp, pair[0])
	if err != nil {
		return err
	}
	agent, err := startIn(mount, roleAgent, pair[1])
	if err != nil {
		return err
	}
	err = agent.wait()
	// The application ends when the agent's end of the pair is closed.
	return errors.Join(err, netns.CloseFd(pair[0]), netns.CloseFd(pair[1]), app.wait())
}

// role is a process in a cgroup of its own.
type role struct {
	*exec.Cmd
	cgroup string
}

func startIn(mount, name string, fd int) (*role, error) {
	dir := filepath.Join(mount, name+"-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:], name)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// Not os.NewFile(fd) itself: its finalizer would close the descriptor.
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	end := os.NewFile(uintptr(dup), "pair")
	defer end.Close()
	cmd.ExtraFiles = []*os.File{end}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(folder.Fd()), Pdeathsig: syscall.SIGKILL}
	return &role{Cmd: cmd, cgroup: dir}, cmd.Start()
}

func (r *role) wait() error {
	err := r.Wait()
	// The kernel lets go of the folder a moment after the last thread left.
	for deadline := time.Now().Add(5 * time.Second); os.Remove(r.cgroup) != nil && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if _, gone := os.Stat(r.cgroup); !errors.Is(gone, os.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("cgroup %s is left behind", r.cgroup))
	}
	return err
}

// appRequest asks for a TCP socket in a network namespace.
type appRequest struct {
	NetNS  string
	Family int
}

// serveApp makes sockets until the tests are over.
func serveApp() error {
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(appFd, buf)
		if err != nil || n == 0 {
			return err
		}
		var r appRequest
		if err := json.Unmarshal(buf[:n], &r); err != nil {
			return err
		}
		fd, err := appSocket(r)
		if err != nil {
			if err := unix.Sendmsg(appFd, []byte(err.Error()), nil, nil, 0); err != nil {
				return err
			}
			continue
		}
		if err := unix.Sendmsg(appFd, []byte("ok"), unix.UnixRights(fd), nil, 0); err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
}

func appSocket(r appRequest) (fd int, err error) {
	ns, err := netns.Open(r.NetNS)
	if err != nil {
		return -1, err
	}
	defer ns.Close()
	err = ns.Do(func() error {
		fd, err = unix.Socket(r.Family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		return err
	})
	return fd, err
}

// application is the agent's side of serveApp.
type application struct{ mu sync.Mutex }

var app application //nolint:gochecknoglobals // one process, one pair

// socket returns an application's socket, for an address of its family.
func (a *application) socket(t testing.TB, ns *testenv.NetNS, like netip.Addr) int {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	request, err := json.Marshal(appRequest{NetNS: ns.Path, Family: netns.Family(like)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(appFd, request); err != nil {
		t.Fatalf("ask for an application's socket: %v", err)
	}
	buf, oob := make([]byte, 4096), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(appFd, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || string(buf[:n]) != "ok" {
		t.Fatalf("ask for an application's socket: %v %s", err, buf[:n])
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("ask for an application's socket: %v", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	return fds[0]
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
