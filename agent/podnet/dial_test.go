package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/podnet/tuples"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestPermissiveInbound: a client talks plaintext, its connection is taken by
// the agent, and a second one goes on to the application with the client's
// address. The client's own port is that of its first connection, so that the
// agent must take another.
func TestPermissiveInbound(t *testing.T) {
	w := newWorld(t, true, true)
	n := w.open(t)
	spec := w.spec()
	spec.Mode = mesh.ModePermissive
	p := w.enrollSpec(t, n, spec)
	w.each(t, func(t *testing.T, pod, ext netip.Addr) {
		application := serve(t, app.listen(t, w.pod, netip.AddrPortFrom(pod, 8080)))
		c, err := app.dial(t, w.ext, netip.AddrPortFrom(pod, 8080))
		if err != nil {
			t.Fatal(err)
		}
		inbound, err := listenerFor(p.Listeners().Inbound, pod).AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer inbound.Close()
		client := Client(inbound)
		if client != addrPort(c.LocalAddr()) || OriginalDst(inbound) != addrPort(c.RemoteAddr()) {
			t.Errorf("accepted %s from %s", OriginalDst(inbound), client)
		}
		kind, ok, err := p.FlowKind(OriginalDst(inbound), client)
		if err != nil || !ok || kind != bpf.FlowPermissive {
			t.Errorf("flow kind %v %t %v", kind, ok, err)
		}
		local, err := p.DialApp(t.Context(), client, OriginalDst(inbound))
		if err != nil {
			t.Fatal(err)
		}
		defer local.Close()
		mustPing(t, local)
		from := addrPort(local.LocalAddr())
		if from.Addr() != ext || from.Port() == client.Port() || from.Port() >= 32768 {
			t.Errorf("connected from %s for client %s", from, client)
		}
		application.want(t, fmt.Sprintf("%s from %s", OriginalDst(inbound), from))
		if err := bothWays(c, inbound); err != nil {
			t.Errorf("the client's own connection: %v", err)
		}
	})
}

// TestDialAppPorts: many connections for one client port at once each get a
// tuple of their own, and tuples come back after closing.
func TestDialAppPorts(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.open(t)
	p := w.enroll(t, n)
	serve(t, app.listen(t, w.pod, netip.AddrPortFrom(pod4, 8080)))
	client := netip.AddrPortFrom(ext4, 40000)
	conns := make([]*net.TCPConn, 50)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			var err error
			if conns[i], err = p.DialApp(t.Context(), client, netip.AddrPortFrom(pod4, 8080)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	ports := map[uint16]bool{}
	for _, c := range conns {
		ports[addrPort(c.LocalAddr()).Port()] = true
		if err := ping(c, 10); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	if len(ports) != len(conns) || !ports[client.Port()] {
		t.Errorf("%d connections have %d ports; the client's own: %t", len(conns), len(ports), ports[client.Port()])
	}
	testenv.Eventually(t, tuples.LookEvery+5*time.Second, "closed connections give their tuples back", func() bool {
		if err := p.forgetTuples(); err != nil {
			t.Fatal(err)
		}
		return p.passthru.Len() == 0
	})
}

func TestDialErrors(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.open(t)
	p := w.enroll(t, n)
	at := netip.AddrPortFrom(pod4, 8080)
	for name, c := range map[string]struct {
		dial func(ctx context.Context) (*net.TCPConn, error)
		is   error
		want string
	}{
		"no application": {func(ctx context.Context) (*net.TCPConn, error) {
			return p.DialApp(ctx, netip.AddrPortFrom(ext4, 1), at)
		}, unix.ECONNREFUSED, "dial application at 10.66.1.2:8080"},
		"not this pod": {func(ctx context.Context) (*net.TCPConn, error) {
			return p.DialApp(ctx, at, netip.AddrPortFrom(ext4, 1))
		}, nil, "not an address of the pod"},
		"another family": {func(ctx context.Context) (*net.TCPConn, error) {
			return p.DialApp(ctx, netip.AddrPortFrom(ext6, 1), at)
		}, nil, "of another family"},
		"no such family": {func(ctx context.Context) (*net.TCPConn, error) { return p.DialTunnel(ctx, netip.AddrPortFrom(ext6, 1)) }, nil, "no address of that family"},
		"refused":        {func(ctx context.Context) (*net.TCPConn, error) { return p.DialEgress(ctx, netip.AddrPortFrom(ext4, 1)) }, unix.ECONNREFUSED, "dial 10.66.2.2:1"},
		"nobody answers": {func(ctx context.Context) (*net.TCPConn, error) {
			return p.DialTunnel(ctx, netip.MustParseAddrPort("10.66.2.77:1"))
		}, context.DeadlineExceeded, "dial 10.66.2.77:1"},
		"IPv4 as IPv6": {func(ctx context.Context) (*net.TCPConn, error) {
			return p.DialEgress(ctx, netip.MustParseAddrPort("[::ffff:10.66.2.2]:1"))
		}, unix.ECONNREFUSED, "dial 10.66.2.2:1"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := contextFor(t, 300*time.Millisecond)
			defer cancel()
			start := time.Now()
			conn, err := c.dial(ctx)
			if err == nil {
				conn.Close()
				t.Fatal("connected")
			}
			if !strings.Contains(err.Error(), "pod shop_web: "+c.want) && !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	if err := p.Unenroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.DialEgress(t.Context(), netip.AddrPortFrom(ext4, 1)); err == nil {
		t.Error("an unenrolled pod dials")
	}
	if _, _, err := p.FlowKind(at, at); !errors.Is(err, ErrClosed) {
		t.Errorf("flow of an unenrolled pod: %v", err)
	}
}

// TestManyDials: dials that wait hold no threads, and none are left behind.
func TestManyDials(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.open(t)
	p := w.enroll(t, n)
	before := threads(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if c, err := p.DialTunnel(ctx, netip.MustParseAddrPort("10.66.2.77:15008")); err == nil {
				c.Close()
				t.Error("connected to nobody")
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	if now := threads(t); now > before+runtime.GOMAXPROCS(0)+8 {
		t.Errorf("%d threads while 200 dials wait, %d before", now, before)
	}
	cancel()
	wg.Wait()
}

func threads(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestNoThreadStaysAway: whatever ran in other namespaces, every thread of the
// process is at home.
func TestNoThreadStaysAway(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.open(t)
	p := w.enroll(t, n)
	for range 20 {
		if c, err := p.DialEgress(t.Context(), netip.AddrPortFrom(ext4, 1)); err == nil {
			c.Close()
		}
	}
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 5*time.Second, "all threads at home", func() bool {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if ns, err := os.Readlink("/proc/self/task/" + e.Name() + "/ns/net"); err == nil && ns != home {
				t.Logf("%s thread %s of process %d is in %s, not %s", w.pod.Name, e.Name(), os.Getpid(), ns, home)
				return false
			}
		}
		return true
	})
}

// TestAgentSockets: what the agent opens is marked, transparent where it must
// be, and kept alive.
func TestAgentSockets(t *testing.T) {
	w := newWorld(t, true, true)
	n := w.open(t)
	p := w.enroll(t, n)
	serve(t, app.listen(t, w.ext, netip.AddrPortFrom(ext4, 80)))
	c, err := p.DialEgress(t.Context(), netip.AddrPortFrom(ext4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		for _, o := range []struct{ level, option, want int }{
			{unix.SOL_SOCKET, unix.SO_MARK, DefaultMark},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		} {
			if got, err := unix.GetsockoptInt(int(fd), o.level, o.option); err != nil || got != o.want {
				t.Errorf("option %d of level %d is %d (%v), want %d", o.option, o.level, got, err, o.want)
			}
		}
		if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("the socket blocks: %v", err)
		}
	})
	if err != nil {
		t.Error(err)
	}
	l := p.Listeners()
	if len(l.Outbound) != 2 || len(l.Inbound) != 2 || len(l.Tunnel) != 2 {
		t.Errorf("listeners: %+v", l)
	}
}

func TestDrops(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.open(t)
	w.enroll(t, n)
	ctx, cancel := contextFor(t, 10*time.Second)
	defer cancel()
	var mu sync.Mutex
	var got []string
	var reading sync.WaitGroup
	reading.Go(func() {
		err := n.Drops(ctx, func(d Drop) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprint(d.Pod, " ", d.Reason, " ", d.Destination))
		})
		if err != nil {
			t.Error(err)
		}
	})
	try, stop := contextFor(t, 100*time.Millisecond)
	defer stop()
	if c, err := netns.Connect(try, app.socket(t, w.ext, pod4), netip.AddrPortFrom(pod4, 9999)); err == nil {
		c.Close()
		t.Error("plaintext entered a STRICT pod")
	}
	testenv.Eventually(t, 5*time.Second, "the drop's record", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(got, "shop_web KernelPlaintextInbound 10.66.1.2:9999")
	})
	cancel()
	reading.Wait()
	for _, g := range got {
		if strings.Contains(g, "192.0.2.254") {
			t.Errorf("a test packet was reported: %s", g)
		}
	}
	if _, err := n.LostDrops(); err != nil {
		t.Error(err)
	}
}

func TestReasonOf(t *testing.T) {
	for _, r := range bpf.DropReasons() {
		if ReasonOf(r) == mesh.ReasonUnknown {
			t.Errorf("%v has no twin", r)
		}
	}
}
