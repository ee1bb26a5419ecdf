package podnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/agent/podnet/tuples"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestSucceed: a second agent adopts the first one's listeners while that one
// serves, and goes on when it has let go of them: the kernel leads to the same
// sockets throughout, and nothing that was waiting to be accepted is lost.
func TestSucceed(t *testing.T) {
	w := newWorld(t, true, true)
	old := w.start(t)
	w.enroll(t, old)
	pins := w.pins(t)
	shared, err := old.Share()
	if err != nil {
		t.Fatal(err)
	}
	if len(shared["shop_web"]) != 6 {
		t.Fatalf("%d listeners are shared", len(shared["shop_web"]))
	}
	next := w.config
	next.Inherited = shared
	n, err := Open(next)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	p := w.enroll(t, n)
	listener.CloseAll(shared)
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	if now := w.pins(t); fmt.Sprint(now) != fmt.Sprint(pins) {
		t.Errorf("the gate was attached anew: %v, then %v", pins, now)
	}
	before := old.Pods()["shop_web"]
	w.each(t, func(t *testing.T, pod, ext netip.Addr) {
		// Connections that wait while both have the listener: each takes one.
		for _, ln := range []Listeners{before.Listeners(), p.Listeners()} {
			c, err := app.dial(t, w.pod, netip.AddrPortFrom(ext, 443))
			if err != nil {
				t.Fatal(err)
			}
			accepted, err := listenerFor(ln.Outbound, pod).AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer accepted.Close()
			if err := bothWays(c, accepted); err != nil {
				t.Error(err)
			}
		}
	})
	waiting, err := app.dial(t, w.pod, netip.AddrPortFrom(ext4, 443))
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	accepted, err := listenerFor(p.Listeners().Outbound, pod4).AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if err := bothWays(waiting, accepted); err != nil {
		t.Errorf("a connection that waited when the old agent let go: %v", err)
	}
	if c, err := app.dial(t, w.pod, netip.AddrPortFrom(ext4, 443)); err != nil {
		t.Errorf("after the old agent let go: %v", err)
	} else if late, err := listenerFor(p.Listeners().Outbound, pod4).AcceptTCP(); err != nil {
		t.Error(err)
	} else {
		late.Close()
		c.Close()
	}
}

// TestSuccessorFails: an agent that adopts the pod and ends leaves the first one
// with its pod as it was, its own programs at the gate.
func TestSuccessorFails(t *testing.T) {
	w := newWorld(t, true, true)
	old := w.open(t)
	w.enroll(t, old)
	shared, err := old.Share()
	if err != nil {
		t.Fatal(err)
	}
	next := w.config
	next.Inherited = shared
	n, err := Open(next)
	if err != nil {
		t.Fatal(err)
	}
	w.enroll(t, n)
	listener.CloseAll(shared)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := old.Reclaim(); err != nil {
		t.Fatal(err)
	}
	// It has ended accepting, and takes it up again with the same sockets.
	again, err := old.Share()
	if err != nil {
		t.Fatal(err)
	}
	waiting, err := app.dial(t, w.pod, netip.AddrPortFrom(ext4, 443))
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Relisten(again); err != nil {
		t.Fatal(err)
	}
	p := w.enroll(t, old)
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	old.DropInherited()
	listener.CloseAll(again)
	if c, err := listenerFor(p.Listeners().Outbound, pod4).AcceptTCP(); err != nil {
		t.Errorf("a connection that waited meanwhile: %v", err)
	} else {
		if err := bothWays(waiting, c); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	w.each(t, func(t *testing.T, pod, ext netip.Addr) {
		c, err := app.dial(t, w.pod, netip.AddrPortFrom(ext, 443))
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := listenerFor(p.Listeners().Outbound, pod).AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		if err := bothWays(c, accepted); err != nil {
			t.Error(err)
		}
	})
}

// TestSuccessorFailsToOpen: what a successor's configuration has let in while it
// tested itself is refused again when the first agent goes on, and what was let
// in is cut.
func TestSuccessorFailsToOpen(t *testing.T) {
	open := map[string]func(*Spec){
		"mode":       func(s *Spec) { s.Mode = mesh.ModePermissive },
		"port modes": func(s *Spec) { s.PortModes = map[uint16]mesh.Mode{8080: mesh.ModePermissive} },
	}
	for name, change := range open {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, true, false)
			old := w.open(t)
			p := w.enroll(t, old)
			try := func() (*net.TCPConn, error) {
				ctx, cancel := contextFor(t, 500*time.Millisecond)
				defer cancel()
				return netns.Connect(ctx, app.socket(t, w.ext, pod4), netip.AddrPortFrom(pod4, 8080))
			}
			refused := func(when string) {
				t.Helper()
				if c, err := try(); err == nil {
					c.Close()
					t.Errorf("plaintext entered a STRICT pod %s", when)
				}
			}
			refused("at first")
			shared, err := old.Share()
			if err != nil {
				t.Fatal(err)
			}
			next := w.config
			next.Inherited = shared
			n, err := Open(next)
			if err != nil {
				t.Fatal(err)
			}
			spec := w.spec()
			change(&spec)
			w.enrollSpec(t, n, spec)
			listener.CloseAll(shared)
			in, err := try()
			if err != nil {
				t.Fatalf("the successor's configuration admits no plaintext: %v", err)
			}
			defer in.Close()
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			if err := old.Reclaim(); err != nil {
				t.Fatal(err)
			}
			refused("after a hand-over that failed")
			if _, ok, err := p.FlowKind(addrPort(in.RemoteAddr()), addrPort(in.LocalAddr())); err != nil || ok {
				t.Errorf("what the other configuration has let in goes on: %t, %v", ok, err)
			}
			if err := p.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestInheritedTuples: the tuple of a connection that moved to another agent is
// kept by neither less nor longer than the connection lives.
func TestInheritedTuples(t *testing.T) {
	w := newWorld(t, true, false)
	old := w.start(t)
	serve(t, app.listen(t, w.pod, netip.AddrPortFrom(pod4, 8080)))
	before := w.enroll(t, old)
	client := netip.AddrPortFrom(ext4, 5555)
	conn, err := before.DialApp(t.Context(), client, netip.AddrPortFrom(pod4, 8080))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var moved int
	if err := raw.Control(func(fd uintptr) { moved, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		t.Fatal(err)
	}
	conn.Close() // here: the other process has it
	if err := before.forgetTuples(); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}

	n := w.reopen(t)
	defer n.Close()
	p := w.enroll(t, n)
	if err := n.InheritTuples(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		n.Watch(ctx, func(string, error) {})
	}()
	defer func() { stop(); <-watched }()
	entered := func() int {
		var all [][2]netip.AddrPort
		if err := p.Kernel(func(k *bpf.Pod) (err error) { all, err = k.Passthrus(); return err }); err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	for deadline := time.Now().Add(tuples.LookEvery + time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if entered() != 1 {
			t.Fatalf("%d tuples while the connection lives, want 1", entered())
		}
	}
	// The next connection of the same client takes another port meanwhile.
	second, err := p.DialApp(t.Context(), client, netip.AddrPortFrom(pod4, 8080))
	if err != nil {
		t.Fatal(err)
	}
	if addrPort(second.LocalAddr()) == client {
		t.Error("two connections have one tuple")
	}
	second.Close()
	f := os.NewFile(uintptr(moved), "moved")
	f.Close()
	testenv.Eventually(t, 2*tuples.LookEvery+5*time.Second, "the tuples are forgotten", func() bool { return entered() == 0 })
}

// TestInheritedFamily: a listener that the pod has no use for is left, and what
// is missing is opened.
func TestInheritedFamily(t *testing.T) {
	w := newWorld(t, true, false)
	next := w.config
	next.Inherited = map[string][]Inherited{"shop_web": {{Port: mesh.TunnelPort, IPv6: true, File: -1}}, "other": {{Port: OutboundPort, File: -1}}}
	w.config = next
	n := w.open(t)
	p := w.enroll(t, n)
	if l := p.Listeners(); len(l.Outbound) != 1 || len(l.Inbound) != 1 || len(l.Tunnel) != 1 {
		t.Errorf("%+v", l)
	}
}
