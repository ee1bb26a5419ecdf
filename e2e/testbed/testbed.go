// Package testbed is what the end-to-end tests stand on: a local mesh of real
// programs, built from this checkout, with pods whose sockets the test itself
// opens. It is imported by tests only. A Bed is safe for concurrent use, but for
// the functions that change the mesh.
package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/heddle-mesh/heddle/e2e/wire"
	"github.com/heddle-mesh/heddle/internal/local"
)

// Bed is a running mesh.
type Bed struct {
	// Mesh is replaced by Restart: use it where nothing else restarts.
	Mesh *local.Mesh
	// pods is the first Mesh: where the pods are does not change.
	pods *local.Mesh
	// Folder is the configuration that the operator watches.
	Folder string
	// Binaries is the folder of the programs.
	Binaries string
	// UDPByIdentity is how the operator is started.
	UDPByIdentity bool
}

// Build puts the programs of the checkout at root into a folder, built once in
// bin/testbed of the checkout: what is current there is not linked again.
func Build(root, into string) error {
	folder, err := filepath.Abs(filepath.Join(root, "bin", "testbed"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(folder, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close() // and so unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	for _, program := range []string{"heddle", "heddle-agent", "heddle-operator"} {
		// By its name, so that go build sees whether it is current.
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(folder, program), "./cmd/"+program)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", program, err, out)
		}
		if err := place(filepath.Join(folder, program), filepath.Join(into, program)); err != nil {
			return err
		}
	}
	return nil
}

// place links a program to where it is wanted, or copies it: a later build puts another
// file in its place, and leaves this one alone.
func place(program, at string) error {
	if err := os.Link(program, at); err == nil {
		return nil
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	return os.WriteFile(at, data, 0o755)
}

// Up starts a mesh of the given name from YAML and takes it down at the test's
// end. It returns when every enrolled pod is. Changes are made to the Bed before.
func Up(t testing.TB, root, name, yaml string, change ...func(*Bed)) *Bed {
	t.Helper()
	b := &Bed{Folder: t.TempDir(), Binaries: t.TempDir()}
	for _, fn := range change {
		fn(b)
	}
	if err := Build(root, b.Binaries); err != nil {
		t.Fatal(err)
	}
	b.Write(t, "mesh.yaml", yaml)
	// A run that was cut short may have left its mesh behind.
	if old, err := local.Open("", name); err == nil {
		if err := old.Down(context.Background()); err != nil {
			t.Fatalf("take down what an earlier run left: %v", err)
		}
	}
	b.start(t, name)
	t.Cleanup(func() {
		if t.Failed() {
			b.dumpLogs(t)
		}
		if err := b.Mesh.Down(context.Background()); err != nil {
			t.Errorf("take the mesh down: %v", err)
		}
	})
	b.waitHealthy(t)
	return b
}

func (b *Bed) start(t testing.TB, name string) {
	t.Helper()
	m, err := local.Up(context.Background(), local.Config{
		Name: name, Folder: b.Folder, CreatePods: true, UDPByIdentity: b.UDPByIdentity,
		OperatorBinary: filepath.Join(b.Binaries, "heddle-operator"), AgentBinary: filepath.Join(b.Binaries, "heddle-agent"),
	})
	if m != nil {
		b.Mesh = m
		if b.pods == nil {
			b.pods = m
		}
	}
	if err != nil {
		if m != nil {
			b.dumpLogs(t)
			if downErr := m.Down(context.Background()); downErr != nil {
				t.Error(downErr)
			}
		}
		t.Fatalf("start mesh: %v", err)
	}
}

// Restart starts what has died of the mesh, as `heddle local up` does.
func (b *Bed) Restart(t testing.TB) {
	t.Helper()
	b.start(t, b.Mesh.Plan.Name)
}

// StartAgentAlone starts a node's agent without asking the operator anything.
func (b *Bed) StartAgentAlone(t testing.TB, node string) {
	t.Helper()
	if err := b.Mesh.StartAgent(node); err != nil {
		t.Fatal(err)
	}
}

func (b *Bed) waitHealthy(t testing.TB) {
	t.Helper()
	var out string
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if out, err = b.Heddle("check", "--name", b.Mesh.Plan.Name); err == nil {
			return
		}
	}
	t.Fatalf("the mesh is not healthy after two minutes: %v\n%s", err, out)
}

// Heddle runs the command line and returns what it printed, both streams.
func (b *Bed) Heddle(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(b.Binaries, "heddle"), args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("heddle %s: %w: %s", strings.Join(args, " "), err, complaint.String())
	}
	return out.String(), err
}

// Write puts a file into the folder that the operator watches.
func (b *Bed) Write(t testing.TB, name, yaml string) {
	t.Helper()
	path := filepath.Join(b.Folder, name)
	if err := os.WriteFile(path+".tmp", []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// Remove takes a file out of the folder.
func (b *Bed) Remove(t testing.TB, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(b.Folder, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

// InPod runs fn on a thread in a pod's network namespace.
func (b *Bed) InPod(pod string, fn func() error) error { return b.pods.InPod(pod, fn) }

// Listen opens a listener in a pod, as an app would.
func (b *Bed) Listen(t testing.TB, pod, address string) *net.TCPListener {
	t.Helper()
	var l net.Listener
	err := b.pods.InPod(pod, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatalf("listen in %s: %v", pod, err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// ListenOutside opens a listener on the bridge between the nodes, 100.64.0.1 and fd00:64::1:
// a server that belongs to no mesh, and has a route to every pod.
func (b *Bed) ListenOutside(t testing.TB, address string) *net.TCPListener {
	t.Helper()
	return outside(t, b, func() (net.Listener, error) { return net.Listen("tcp", address) }).(*net.TCPListener)
}

// ListenOutsideUDP is ListenOutside for datagrams.
func (b *Bed) ListenOutsideUDP(t testing.TB, address string) net.PacketConn {
	t.Helper()
	return outside(t, b, func() (net.PacketConn, error) { return net.ListenPacket("udp", address) })
}

// outside opens something on the bridge between the nodes, until the test ends.
func outside[T io.Closer](t testing.TB, b *Bed, open func() (T, error)) T {
	t.Helper()
	ns, err := netns.GetFromPath(b.pods.FabricPath())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	opened := make(chan T, 1)
	go func() {
		defer close(opened)
		runtime.LockOSThread() // for good: the thread ends with its namespace
		if err := errors.Join(netns.Set(ns), routePods(b.pods.Plan.Nodes)); err != nil {
			t.Errorf("outside: %v", err)
			return
		}
		l, err := open()
		if err != nil {
			t.Errorf("listen outside: %v", err)
			return
		}
		opened <- l
	}()
	l, ok := <-opened
	if !ok {
		t.FailNow()
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// routePods tells the namespace that the thread is in which node has which pod.
func routePods(nodes []local.Node) error {
	for _, n := range nodes {
		for _, p := range n.Pods {
			for _, addr := range p.Addresses {
				via := n.Underlay4
				if addr.Is6() {
					via = n.Underlay6
				}
				to := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
				if err := netlink.RouteReplace(&netlink.Route{Dst: to, Gw: via.AsSlice()}); err != nil {
					return fmt.Errorf("route %s by node %s: %w", addr, n.Name, err)
				}
			}
		}
	}
	return nil
}

// Dial connects from a pod, as an app would.
func (b *Bed) Dial(pod, address string, timeout time.Duration) (*net.TCPConn, error) {
	var c net.Conn
	err := b.pods.InPod(pod, func() (err error) {
		c, err = net.DialTimeout("tcp", address, timeout)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// MustDial is Dial for a test that cannot go on without; it closes the
// connection at the test's end.
func (b *Bed) MustDial(t testing.TB, pod, address string) *net.TCPConn {
	t.Helper()
	c, err := b.Dial(pod, address, 10*time.Second)
	if err != nil {
		t.Fatalf("dial %s from %s: %v", address, pod, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Command is a program to be run in a pod.
func (b *Bed) Command(ctx context.Context, pod string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(b.Binaries, "heddle"), append([]string{"exec", "--name", b.pods.Plan.Name, pod, "--"}, args...)...)
}

// Flow is what the tests read of `heddle flows -o json`.
type Flow struct {
	Verdict     string   `json:"verdict"`
	Reason      string   `json:"reason"`
	Policy      string   `json:"policy"`
	Detail      string   `json:"detail"`
	Direction   string   `json:"direction"`
	Transport   string   `json:"transport"`
	Source      Endpoint `json:"source"`
	Destination Endpoint `json:"destination"`
	Sent        uint64   `json:"bytesSent"`
	Received    uint64   `json:"bytesReceived"`
	Retransmits uint32   `json:"retransmits"`
}

// Endpoint is one end of a Flow.
type Endpoint struct {
	Workload string `json:"workload"`
	Identity string `json:"identity"`
	Address  string `json:"address"`
}

// Flows asks for flows that match the command line's filter flags.
func (b *Bed) Flows(t testing.TB, flags ...string) []Flow {
	t.Helper()
	out, err := b.Heddle(append([]string{"flows", "--name", b.Mesh.Plan.Name, "--last", "500", "-o", "json"}, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	var flows []Flow
	for dec := json.NewDecoder(strings.NewReader(out)); ; {
		var f Flow
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			return flows
		} else if err != nil {
			t.Fatalf("read flows: %v in %s", err, out)
		}
		flows = append(flows, f)
	}
}

// Kill ends a node's agent without warning.
func (b *Bed) Kill(t testing.TB, node string) {
	t.Helper()
	p := b.Mesh.Agents[node]
	if !p.Running() {
		t.Fatalf("agent of %s does not run", node)
	}
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for p.Running() {
		time.Sleep(time.Millisecond)
	}
}

// Capture is a tcpdump on one link.
type Capture struct{ running *wire.Capture }

// Capture starts to capture what crosses between nodes.
func (b *Bed) Capture(t testing.TB) *Capture {
	t.Helper()
	return CaptureOn(t, b.Mesh.FabricPath(), "br0")
}

// CaptureOn starts to capture what crosses a link of a network namespace, whose
// path is given.
func CaptureOn(t testing.TB, netNS, link string) *Capture {
	t.Helper()
	running, err := wire.Start(netNS, link)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.Discard) // nothing any more, unless the test failed before Stop
	return &Capture{running}
}

// Stop ends the capture and judges what it saw of the given addresses; nil
// judges everything. The test fails when the capture is not whole.
func (c *Capture) Stop(t testing.TB, marker string, judged func(netip.Addr) bool) wire.Findings {
	t.Helper()
	found, err := c.running.Stop(marker, judged)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func (b *Bed) dumpLogs(t testing.TB) {
	t.Helper()
	parts := []string{"operator"}
	for _, n := range b.Mesh.Plan.Nodes {
		parts = append(parts, n.Name)
	}
	for _, part := range parts {
		path, err := b.Mesh.Logs(part)
		if err != nil {
			continue
		}
		if data, err := os.ReadFile(path); err == nil {
			lines := strings.Split(strings.TrimSpace(string(data)), "\n")
			t.Logf("log of %s:\n%s", part, strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	}
}
