package bpf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/vishvananda/netlink"
)

// Addresses of the test topology: a pod, the node that routes for it, a peer.
const (
	pod4, pod6   = "10.66.1.2", "fd66:1::2"
	node4, node6 = "10.66.1.1", "fd66:1::1"
	peer4, peer6 = "10.66.2.2", "fd66:2::2"
)

// world is an enrolled pod on a node, and a peer behind it.
type world struct {
	node, pod, peer *testenv.NetNS
	bpf             *Node
	config          PodConfig
	p               *Pod
}

// newNode loads the node-wide part in a folder of the test's own.
func newNode(t testing.TB, change ...func(*Config)) *Node {
	t.Helper()
	testenv.NeedRoot(t)
	cfg := nodeConfig(t)
	for _, fn := range change {
		fn(&cfg)
	}
	n, err := Load(cfg)
	if err != nil {
		t.Fatalf("load: %+v", err)
	}
	t.Cleanup(func() {
		if err := n.Remove(); err != nil {
			t.Errorf("remove the node: %v", err)
		}
	})
	return n
}

func nodeConfig(t testing.TB) Config {
	t.Helper()
	return Config{
		PinDir:     fmt.Sprintf("%s/heddle-test-%d-%d", bpffsPath, os.Getpid(), time.Now().UnixNano()),
		CgroupPath: newCgroup(t, "agent"),
	}
}

// cgroupRoot finds where cgroup2 is mounted.
func cgroupRoot(t testing.TB) string {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		for i, field := range fields {
			if field == "-" && fields[i+1] == "cgroup2" {
				return fields[4]
			}
		}
	}
	t.Fatal("no cgroup2 is mounted")
	return ""
}

// newCgroup makes a cgroup that is deleted when the test ends.
func newCgroup(t testing.TB, hint string) string {
	t.Helper()
	path := filepath.Join(cgroupRoot(t), fmt.Sprintf("heddle-test-%s-%d-%d", hint, os.Getpid(), time.Now().UnixNano()))
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatalf("make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			t.Errorf("delete a cgroup: %v", err)
		}
	})
	return path
}

// insideCgroup runs fn with this process in the cgroup.
func insideCgroup(t testing.TB, path string, fn func()) {
	t.Helper()
	move := func(to string) {
		if err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			t.Fatalf("move to cgroup %s: %v", to, err)
		}
	}
	move(path)
	defer move(cgroupRoot(t))
	fn()
}

// newWorld makes the topology and the pod's part of the kernel, with nothing
// attached.
func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := newTopology(t)
	w.bpf = newNode(t, change...)
	w.enroll(t)
	return w
}

func newTopology(t testing.TB) *world {
	t.Helper()
	w := &world{node: testenv.NewNetNS(t, "node"), pod: testenv.NewNetNS(t, "pod"), peer: testenv.NewNetNS(t, "peer")}
	testenv.Veth(t, w.node, "vpod", []string{node4 + "/24", node6 + "/64"}, w.pod, "eth0", []string{pod4 + "/24", pod6 + "/64"})
	testenv.Veth(t, w.node, "vpeer", []string{"10.66.2.1/24", "fd66:2::1/64"}, w.peer, "eth0", []string{peer4 + "/24", peer6 + "/64"})
	testenv.DefaultRoute(t, w.pod, node4)
	testenv.DefaultRoute(t, w.pod, node6)
	testenv.DefaultRoute(t, w.peer, "10.66.2.1")
	testenv.DefaultRoute(t, w.peer, "fd66:2::1")
	w.config = PodConfig{
		Name: "pod", ID: 7, NetNS: w.pod.Fd(),
		HostIfindex: ifindex(t, w.node, "vpod"), PodIfindex: ifindex(t, w.pod, "eth0"),
		Addresses: []netip.Addr{netip.MustParseAddr(pod4), netip.MustParseAddr(pod6)},
	}
	return w
}

func (w *world) enroll(t testing.TB) {
	t.Helper()
	w.node.Must(t, func() (err error) {
		w.p, err = w.bpf.Pod(w.config)
		return err
	})
	t.Cleanup(func() { w.node.Must(t, w.p.Remove) })
}

func (w *world) attachGate(t testing.TB) {
	t.Helper()
	w.node.Must(t, w.p.AttachGate)
}

func (w *world) update(t testing.TB, change func(*PodConfig)) {
	t.Helper()
	change(&w.config)
	w.node.Must(t, func() error { return w.p.Update(w.config) })
}

func (w *world) counters(t testing.TB) Counters {
	t.Helper()
	c, err := w.p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ifindex(t testing.TB, ns *testenv.NetNS, name string) (index int) {
	t.Helper()
	ns.Must(t, func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			index = l.Attrs().Index
		}
		return err
	})
	return index
}

// withStamp stamps a socket before it connects or listens; class 0 leaves it
// as an application's.
func (w *world) withStamp(class Class) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		if class == 0 {
			return nil
		}
		var stampErr error
		if err := c.Control(func(fd uintptr) { stampErr = w.p.Stamp(fd, class) }); err != nil {
			return err
		}
		return stampErr
	}
}

// dial connects from a namespace; the connection is closed when the test ends.
func (w *world) dial(t testing.TB, ns *testenv.NetNS, class Class, to string, limit time.Duration) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	err := ns.Do(func() (err error) {
		d := net.Dialer{Timeout: limit, Control: w.withStamp(class)}
		d.SetMultipathTCP(false)
		c, err = d.Dial("tcp", to)
		return err
	})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// listen listens in a namespace until the test ends.
func (w *world) listen(t testing.TB, ns *testenv.NetNS, class Class, at string) *net.TCPListener {
	t.Helper()
	var l net.Listener
	ns.Must(t, func() (err error) {
		lc := net.ListenConfig{Control: w.withStamp(class)}
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.Background(), "tcp", at)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// echo serves a listener until the test ends, saying first how it was reached.
func echo(t testing.TB, l net.Listener, name string) {
	var serving sync.WaitGroup
	var open struct {
		sync.Mutex
		conns []net.Conn
	}
	t.Cleanup(func() {
		l.Close()
		open.Lock()
		for _, c := range open.conns {
			c.Close()
		}
		open.conns = nil
		open.Unlock()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Lock()
			open.conns = append(open.conns, c)
			open.Unlock()
			serving.Go(func() { serveEcho(c, name) })
		}
	})
}

func serveEcho(c net.Conn, name string) {
	defer c.Close()
	if _, err := fmt.Fprintf(c, "%s %s %s\n", name, c.LocalAddr(), c.RemoteAddr()); err != nil {
		return
	}
	// io.Copy would splice, and so test less.
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// ask reads the echo server's first line, and has it echo 100 kB.
func ask(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	r := bufio.NewReaderSize(c, 128<<10)
	line, err := r.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("read the first line: %w", err)
	}
	sent := make(chan error, 1)
	go func() { _, err := c.Write(make([]byte, 100_000)); sent <- err }()
	for left := 100_000; left > 0; {
		n, err := r.Discard(min(left, r.Size()))
		if err != nil {
			c.Close()
			return "", errors.Join(fmt.Errorf("%d bytes of the echo are missing: %w", left, err), <-sent)
		}
		left -= n
	}
	return strings.TrimSpace(line), <-sent
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }
