package podnet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/cgroup"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const dialWait = 5 * time.Second

var (
	pod4 = netip.MustParseAddr("10.66.1.2")
	pod6 = netip.MustParseAddr("fd66:1::2")
	ext4 = netip.MustParseAddr("10.66.2.2")
	ext6 = netip.MustParseAddr("fd66:2::2")
)

func contextFor(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// world is a node that routes between a pod and a client outside.
type world struct {
	node, pod, ext *testenv.NetNS
	config         Config
	addrs          []netip.Addr
	captureDNS     bool // of the pod
}

// newWorld makes the namespaces; the pod and the client have the given families.
func newWorld(t testing.TB, v4, v6 bool) *world {
	t.Helper()
	w := &world{node: testenv.NewNetNS(t, "node"), pod: testenv.NewNetNS(t, "pod"), ext: testenv.NewNetNS(t, "ext")}
	pick := func(a4, a6 string) (out []string) {
		if v4 {
			out = append(out, a4)
		}
		if v6 {
			out = append(out, a6)
		}
		return out
	}
	testenv.Veth(t, w.node, "vpod", pick("10.66.1.1/24", "fd66:1::1/64"), w.pod, "eth0", pick("10.66.1.2/24", "fd66:1::2/64"))
	testenv.Veth(t, w.node, "vext", pick("10.66.2.1/24", "fd66:2::1/64"), w.ext, "eth0", pick("10.66.2.2/24", "fd66:2::2/64"))
	for i, gw := range pick("10.66.1.1", "fd66:1::1") {
		testenv.DefaultRoute(t, w.pod, gw)
		testenv.DefaultRoute(t, w.ext, pick("10.66.2.1", "fd66:2::1")[i])
	}
	settle(t, w.node, "vpod", "vext")
	settle(t, w.pod, "eth0")
	settle(t, w.ext, "eth0")
	if v4 {
		w.addrs = append(w.addrs, pod4)
	}
	if v6 {
		w.addrs = append(w.addrs, pod6)
	}
	own, err := cgroup.Enter("test", "")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(own.Path, roleAgent) {
		t.Fatalf("the tests run in cgroup %s, not in the agent's", own.Path)
	}
	w.config = Config{
		PinDir:        "/sys/fs/bpf/" + w.node.Name,
		StateDir:      filepath.Join(t.TempDir(), "pods"),
		Cgroup:        own.Path,
		NetNS:         w.node.Path,
		WatchInterval: 50 * time.Millisecond,
		Log:           slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	return w
}

// settle waits until the kernel has given the interfaces their IPv6 routes and
// their state, which would otherwise look like differences that enrolling makes.
func settle(t testing.TB, ns *testenv.NetNS, links ...string) {
	t.Helper()
	for _, l := range links {
		testenv.Eventually(t, 5*time.Second, "IPv6 routes and state of "+l, func() bool {
			out, err := exec.Command("ip", "-n", ns.Name, "-6", "route", "show", "table", "all", "dev", l).Output()
			if err != nil || !bytes.Contains(out, []byte("ff00::/8")) || !bytes.Contains(out, []byte("local fe80::")) {
				return false
			}
			out, err = exec.Command("ip", "-n", ns.Name, "link", "show", "dev", l).Output()
			return err == nil && bytes.Contains(out, []byte("state UP"))
		})
	}
}

func (w *world) spec() Spec {
	return Spec{Name: "shop_web", NetNSPath: w.pod.Path, Addresses: w.addrs, CaptureDNS: w.captureDNS}
}

// start opens the node; who started it closes it. What it enrolled is taken
// back, and the node removed, when the test ends.
func (w *world) start(t testing.TB) *Node {
	t.Helper()
	n := w.reopen(t)
	t.Cleanup(func() { w.remove(t) })
	return n
}

// open is start, and closes the node too.
func (w *world) open(t testing.TB) *Node {
	t.Helper()
	n := w.start(t)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close node: %v", err)
		}
	})
	return n
}

func (w *world) reopen(t testing.TB) *Node {
	t.Helper()
	n, err := Open(w.config)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// remove takes everything back that is left, as `heddle local down` would.
func (w *world) remove(t testing.TB) {
	t.Helper()
	n, err := Open(w.config)
	if err != nil {
		t.Errorf("open node to remove it: %v", err)
		return
	}
	if _, err := n.Prune(context.Background(), nil); err != nil {
		t.Errorf("prune: %v", err)
	}
	if err := n.Uninstall(); err != nil {
		t.Errorf("uninstall: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := os.Stat(w.config.PinDir); err == nil {
		t.Errorf("pins left in %s", w.config.PinDir)
		os.RemoveAll(w.config.PinDir)
	}
}

func (w *world) enroll(t testing.TB, n *Node) *Pod {
	t.Helper()
	return w.enrollSpec(t, n, w.spec())
}

func (w *world) enrollSpec(t testing.TB, n *Node, spec Spec) *Pod {
	t.Helper()
	ctx, cancel := contextFor(t, 30*time.Second)
	defer cancel()
	p, err := n.Enroll(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// each calls fn for each family that the world has, with the addresses of pod
// and client.
func (w *world) each(t *testing.T, fn func(t *testing.T, pod, ext netip.Addr)) {
	for _, a := range w.addrs {
		t.Run(map[bool]string{true: "v4", false: "v6"}[a.Is4()], func(t *testing.T) {
			if a.Is4() {
				fn(t, a, ext4)
			} else {
				fn(t, a, ext6)
			}
		})
	}
}

// peers notes whom a server saw, and where it was reached.
type peers struct {
	mu   sync.Mutex
	seen []string
	wg   sync.WaitGroup
}

// serve echoes on ln until the test ends, each connection's end included.
func serve(t *testing.T, ln net.Listener) *peers {
	t.Helper()
	p := &peers{}
	p.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.seen = append(p.seen, fmt.Sprintf("%s from %s", OriginalDst(c), Client(c)))
			p.mu.Unlock()
			p.wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				io.Copy(c, c)
				c.(*net.TCPConn).CloseWrite()
			})
		}
	})
	t.Cleanup(func() { ln.Close(); p.wg.Wait() })
	return p
}

func (p *peers) want(t *testing.T, want string) {
	t.Helper()
	testenv.Eventually(t, 2*time.Second, "the server sees "+want, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, s := range p.seen {
			if s == want {
				return true
			}
		}
		return false
	})
}

// ping sends some bytes each way over an echoing connection.
func ping(c net.Conn, bytesEach int) error {
	c.SetDeadline(time.Now().Add(dialWait))
	defer c.SetDeadline(time.Time{})
	out := bytes.Repeat([]byte("heddle"), bytesEach/6+1)[:bytesEach]
	failed := make(chan error, 1)
	go func() { _, err := c.Write(out); failed <- err }()
	in := make([]byte, len(out))
	_, err := io.ReadFull(c, in)
	if werr := <-failed; err == nil {
		err = werr
	}
	if err == nil && !bytes.Equal(in, out) {
		err = fmt.Errorf("echo differs")
	}
	return err
}

func mustPing(t *testing.T, c net.Conn) {
	t.Helper()
	if err := ping(c, 100_000); err != nil {
		t.Fatalf("%s -> %s: %v", c.LocalAddr(), c.RemoteAddr(), err)
	}
}

// snapshot is everything that enrolling may change, as text.
func (w *world) snapshot(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, ns := range []*testenv.NetNS{w.node, w.pod} {
		run := func(what string, args ...string) {
			cmd := exec.Command("ip", append([]string{"-n", ns.Name}, args...)...)
			var said strings.Builder
			cmd.Stderr = &said // it complains of namespaces that other tests are just taking away
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("ip %v: %v\n%s", args, err, &said)
			}
			all[ns.Name+" "+what] = string(out)
		}
		run("rules4", "-4", "rule")
		run("rules6", "-6", "rule")
		run("routes4", "-4", "route", "show", "table", "all")
		run("routes6", "-6", "route", "show", "table", "all")
		run("links", "-details", "link")
		run("addresses", "address")
		ns.Must(t, func() error {
			all[ns.Name+" sysctls"] = sysctls(t)
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, l := range links {
				qdiscs, err := netlink.QdiscList(l)
				if err != nil {
					return err
				}
				for _, q := range qdiscs {
					all[ns.Name+" qdiscs"] += fmt.Sprintln(l.Attrs().Name, q)
				}
			}
			listeners, err := os.ReadFile("/proc/thread-self/net/tcp")
			all[ns.Name+" listeners"] = listening(listeners)
			return err
		})
	}
	var pins []string
	filepath.WalkDir(w.config.PinDir, func(path string, d os.DirEntry, err error) error {
		if err == nil {
			pins = append(pins, path)
		}
		return nil
	})
	all["pins of pods"] = fmt.Sprint(podPins(pins))
	state, err := os.ReadDir(w.config.StateDir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	all["state"] = fmt.Sprint(state)
	return all
}

func podPins(pins []string) (of []string) {
	for _, p := range pins {
		if bytes.Contains([]byte(p), []byte("shop_web")) {
			of = append(of, p)
		}
	}
	return of
}

// listening counts the listeners in /proc/net/tcp.
func listening(table []byte) string {
	count := 0
	for line := range bytes.Lines(table) {
		if f := bytes.Fields(line); len(f) > 3 && string(f[3]) == "0A" {
			count++
		}
	}
	return fmt.Sprint(count)
}

// sysctls reads what is writable under /proc/sys/net of the calling thread's
// namespace.
func sysctls(t *testing.T) string {
	var all bytes.Buffer
	err := filepath.WalkDir("/proc/sys/net", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if value, err := os.ReadFile(path); err == nil {
			fmt.Fprintf(&all, "%s = %s", path, value)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

func wantSame(t *testing.T, what string, before, after map[string]string) {
	t.Helper()
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("%s left something (- before, + after):\n%s", what, d)
	}
}

// mountNS gives a namespace one more path, unmounted with the test.
func mountNS(t *testing.T, ns *testenv.NetNS, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := unix.Mount(ns.Path, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
}

// unmountNS takes the path away, as the end of a pod does.
func unmountNS(t *testing.T, path string) {
	t.Helper()
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func delLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// setGRO turns generic receive offload of an interface of the calling thread's
// namespace on (SIOCETHTOOL, struct ethtool_value).
func setGRO(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{unix.ETHTOOL_SGRO, 1}
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:], name)
	request.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}
