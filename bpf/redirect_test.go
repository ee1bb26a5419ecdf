package bpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

const testMark = 0x04d00000

// capturing makes the pod's rules as the agent does: what is not marked and
// TCP goes to lo, where the redirect finds it. The test's agent is this
// process, so its sockets are the ones that are marked.
func (w *world) capturing(t testing.TB) {
	t.Helper()
	w.pod.Must(t, func() error {
		for family, source := range map[int]string{netlink.FAMILY_V4: pod4, netlink.FAMILY_V6: pod6} {
			if err := captureFamily(family, source); err != nil {
				return fmt.Errorf("family %d: %w", family, err)
			}
		}
		return nil
	})
}

func captureFamily(family int, source string) error {
	mask := uint32(0xfff00000)
	marked := netlink.NewRule()
	marked.Family, marked.Priority, marked.Mark, marked.Mask, marked.Table = family, 90, testMark, &mask, unix.RT_TABLE_MAIN
	rest := netlink.NewRule()
	rest.Family, rest.Priority, rest.IifName, rest.IPProto, rest.Table = family, 100, "lo", unix.IPPROTO_TCP, 100
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if family == netlink.FAMILY_V6 {
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	route := &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: all, Table: 100, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Src: net.ParseIP(source),
	}
	for _, err := range []error{netlink.RouteAdd(route), netlink.RuleAdd(marked), netlink.RuleAdd(rest)} {
		if err != nil {
			return err
		}
	}
	return nil
}

// agentSocket prepares a socket as the agent does.
func (w *world) agentSocket(class Class) func(string, string, syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) {
			level, option := unix.SOL_IP, unix.IP_TRANSPARENT
			if strings.HasSuffix(network, "6") {
				level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
			}
			if inner = unix.SetsockoptInt(int(fd), level, option, 1); inner != nil {
				return
			}
			if inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, testMark); inner != nil || class == 0 {
				return
			}
			inner = w.p.Stamp(fd, class)
		})
		if err != nil {
			return err
		}
		return inner
	}
}

// agentListen opens one of the agent's listeners and gives it to the slot.
func (w *world) agentListen(t testing.TB, slot Slot, at, name string) *net.TCPListener {
	t.Helper()
	var l net.Listener
	w.pod.Must(t, func() (err error) {
		lc := net.ListenConfig{Control: w.agentSocket(0)}
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.Background(), "tcp", at)
		return err
	})
	tl := l.(*net.TCPListener)
	raw, err := tl.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = w.p.SetListener(slot, fd) }); err != nil || inner != nil {
		t.Fatal(err, inner)
	}
	echo(t, tl, name)
	return tl
}

func (w *world) agentListenAll(t testing.TB) (outbound4 *net.TCPListener) {
	t.Helper()
	outbound4 = w.agentListen(t, OutboundV4, "127.0.0.1:15001", "outbound")
	w.agentListen(t, OutboundV6, "[::1]:15001", "outbound")
	w.agentListen(t, InboundV4, "127.0.0.1:15006", "inbound")
	w.agentListen(t, InboundV6, "[::1]:15006", "inbound")
	w.agentListen(t, TunnelV4, "127.0.0.1:15008", "tunnel")
	w.agentListen(t, TunnelV6, "[::1]:15008", "tunnel")
	return outbound4
}

// reached dials and returns the echo server's first line.
func (w *world) reached(t *testing.T, c net.Conn, err error) string {
	t.Helper()
	if err != nil {
		return "error: " + err.Error()
	}
	line, err := ask(c)
	if err != nil {
		return "error: " + err.Error()
	}
	return line
}

func TestRedirect(t *testing.T) {
	w := newWorld(t)
	w.attachGate(t)
	if err := w.p.AttachRedirect(); err != nil {
		t.Fatal(err)
	}
	w.capturing(t)
	if _, err := w.dial(t, w.pod, 0, hostPort(peer4, 80), 300*time.Millisecond); err == nil {
		t.Error("connected without a listener")
	}
	outbound := w.agentListenAll(t)
	w.update(t, func(c *PodConfig) { c.PortModes = map[uint16]Mode{8080: ModePermissive} })
	for _, f := range []struct{ pod, peer string }{{pod4, peer4}, {pod6, peer6}} {
		echo(t, w.listen(t, w.pod, 0, hostPort(f.pod, 9000)), "app")
		echo(t, w.listen(t, w.peer, 0, hostPort(f.peer, 7000)), "peer")
		dial := func(fromPod bool, to string) string {
			ns := w.peer
			if fromPod {
				ns = w.pod
			}
			c, err := w.dial(t, ns, 0, to, 2*time.Second)
			line := w.reached(t, c, err)
			if err == nil {
				c.Close()
			}
			return line
		}
		expect := func(what, line, name, local string) {
			t.Helper()
			if fields := strings.Fields(line); len(fields) != 3 || fields[0] != name || fields[1] != local {
				t.Errorf("%s: got %q, want it at %s as %s; %+v", what, line, name, local, w.counters(t).Dropped)
			}
		}
		expect("app to peer", dial(true, hostPort(f.peer, 7000)), "outbound", hostPort(f.peer, 7000))
		expect("app to nobody", dial(true, hostPort(f.peer, 1)), "outbound", hostPort(f.peer, 1))
		expect("app to itself", dial(true, hostPort(f.pod, 9000)), "app", hostPort(f.pod, 9000))
		expect("peer to tunnel", dial(false, hostPort(f.pod, 15008)), "tunnel", hostPort(f.pod, 15008))
		expect("peer to permissive port", dial(false, hostPort(f.pod, 8080)), "inbound", hostPort(f.pod, 8080))
		if line := dial(false, hostPort(f.pod, 9000)); !strings.HasPrefix(line, "error") {
			t.Errorf("peer reached a STRICT port: %q", line)
		}
		c, err := w.agentDial(t, ClassTunnel, "", hostPort(f.peer, 7000))
		expect("agent to peer", w.reached(t, c, err), "peer", hostPort(f.peer, 7000))
		w.testPassthru(t, f.peer, f.pod)
	}
	// With the agent's listeners gone, nothing connects and nothing leaves.
	if err := outbound.Close(); err != nil {
		t.Error(err)
	}
	if _, err := w.dial(t, w.pod, 0, hostPort(peer4, 7000), 300*time.Millisecond); err == nil {
		t.Error("connected past a closed listener")
	}
}

// testPassthru connects as the agent to the app with the client's address.
func (w *world) testPassthru(t *testing.T, client, pod string) {
	t.Helper()
	from, app := hostPort(client, 4321), hostPort(pod, 9000)
	// From another port: the SYN leaves a request socket behind on that tuple.
	if _, err := w.agentDial(t, ClassLocal, hostPort(client, 4320), app); err == nil {
		t.Error("reached the app as the client without a passthru entry")
	}
	key := netip.MustParseAddrPort(from)
	if err := w.p.AddPassthru(key, netip.MustParseAddrPort(app)); err != nil {
		t.Fatal(err)
	}
	c, err := w.agentDial(t, ClassLocal, from, app)
	line := w.reached(t, c, err)
	if line != fmt.Sprintf("app %s %s", app, from) {
		t.Errorf("agent to app as the client: %q", line)
	}
	if err := w.p.HoldPassthru(key, netip.MustParseAddrPort(app)); err != nil {
		t.Error(err)
	}
	if err := w.p.RemovePassthru(key, netip.MustParseAddrPort(app)); err != nil {
		t.Error(err)
	}
	w.testHeldPassthru(t, hostPort(client, 4322), hostPort(pod, 9001))
}

// testHeldPassthru takes the app's end of a connection away without a word, as the
// kernel does when the last segment of a handshake met a full queue and the listener
// closed: the agent must be told by a reset when it writes, not wait for good.
func (w *world) testHeldPassthru(t *testing.T, from, app string) {
	t.Helper()
	client, to := netip.MustParseAddrPort(from), netip.MustParseAddrPort(app)
	l := w.listen(t, w.pod, 0, app)
	if err := w.p.AddPassthru(client, to); err != nil {
		t.Fatal(err)
	}
	c, err := w.agentDial(t, ClassLocal, from, app)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.p.HoldPassthru(client, to); err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := accepted.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var repair error
	err = raw.Control(func(fd uintptr) { repair = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) })
	if err := errors.Join(err, repair, accepted.Close()); err != nil { // in repair, close sends nothing
		t.Fatal(err)
	}
	before := w.counters(t)
	if _, err := c.Write([]byte("anybody?")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the app's end is gone, and the agent reads %v; want a reset; dropped before %+v, now %+v", err, before.Dropped, w.counters(t).Dropped)
	}
	if err := w.p.RemovePassthru(client, to); err != nil {
		t.Error(err)
	}
}

// agentDial dials from the pod with the agent's mark, from an address that may
// be another's.
func (w *world) agentDial(t testing.TB, class Class, from, to string) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	err := w.pod.Do(func() (err error) {
		d := net.Dialer{Timeout: 2 * time.Second, Control: w.agentSocket(class)}
		d.SetMultipathTCP(false)
		if from != "" {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
			// Towards the app the agent's packets must take lo: no mark.
			d.Control = w.localSocket(class)
		}
		c, err = d.Dial("tcp", to)
		return err
	})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (w *world) localSocket(class Class) func(string, string, syscall.RawConn) error {
	prepare := w.agentSocket(class)
	return func(network, address string, c syscall.RawConn) error {
		if err := prepare(network, address, c); err != nil {
			return err
		}
		var inner error
		err := c.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, 0) })
		if err != nil {
			return err
		}
		return inner
	}
}

func TestVacantServiceRefuses(t *testing.T) {
	w := newWorld(t)
	w.refusing(t)
	records := w.records(t)
	for _, service := range []string{"10.96.0.7", "fd96::7"} {
		vacant, other := netip.MustParseAddrPort(hostPort(service, 80)), hostPort(service, 81)
		connect := func(to string) (string, error) {
			c, err := w.dial(t, w.pod, 0, to, 5*time.Second)
			if err != nil {
				return "", err
			}
			defer c.Close()
			return w.reached(t, c, nil), nil
		}
		w.setVacant(t, vacant)
		// At once, and as connect's own error: nobody had accepted.
		for range 3 {
			if line, err := connect(vacant.String()); !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatalf("connect to %v, which nobody serves: %q, %v; want a refusal", vacant, line, err)
			}
			r := records.next(t)
			if r.Reason != RefusedNoEndpoint || r.Destination != vacant || r.Direction != Outbound || r.Pod != w.config.ID || r.Source.Addr() != w.config.addressLike(vacant.Addr()) {
				t.Errorf("the refusal is recorded as %+v", r)
			}
		}
		if line, err := connect(other); err != nil || !strings.HasPrefix(line, "outbound "+other) {
			t.Errorf("connect to another port of the service: %q, %v", line, err)
		}
		// Somebody serves it again; what is open stays so when it ends once more.
		w.setVacant(t)
		c, err := w.dial(t, w.pod, 0, vacant.String(), 5*time.Second)
		if err != nil {
			t.Fatalf("connect to %v, which is served again: %v", vacant, err)
		}
		w.setVacant(t, vacant)
		if line := w.reached(t, c, nil); !strings.HasPrefix(line, "outbound "+vacant.String()) {
			t.Errorf("the open connection to %v: %q", vacant, line)
		}
	}
	if c := w.counters(t); c.LostDrops != 0 || len(c.Dropped) != 0 {
		t.Errorf("counted as drops of the gate: %+v", c)
	}
}

// refusing attaches everything, and captures what the pod opens.
func (w *world) refusing(t *testing.T) {
	t.Helper()
	w.attachGate(t)
	if err := w.p.AttachRedirect(); err != nil {
		t.Fatal(err)
	}
	if err := w.p.AttachRefusal(); err != nil {
		t.Fatal(err)
	}
	w.capturing(t)
	w.agentListenAll(t)
}

// TestRefusalsLeaveRoomForDrops: a client that asks for what nobody serves as fast as
// it can takes no record from what the gate drops.
func TestRefusalsLeaveRoomForDrops(t *testing.T) {
	w := newWorld(t)
	w.refusing(t)
	records := w.records(t)
	vacant := netip.MustParseAddrPort("10.96.0.7:80")
	w.setVacant(t, vacant)
	var dropped net.Conn
	w.pod.Must(t, func() (err error) {
		dropped, err = net.Dial("udp", hostPort(peer4, 4789))
		return err
	})
	defer dropped.Close()
	const asked, perDrop, share = 1000, 50, 20
	began := time.Now()
	for n := range asked {
		if n%perDrop == 0 {
			_, _ = dropped.Write([]byte("x")) // whether it fails depends on the hook
			if err := w.bpf.HoldVacant(); err != nil {
				t.Fatal(err)
			}
		}
		if c, err := w.dial(t, w.pod, 0, vacant.String(), 5*time.Second); !errors.Is(err, unix.ECONNREFUSED) {
			if err == nil {
				c.Close()
			}
			t.Fatalf("connect: %v", err)
		}
	}
	most := uint64(share * runtime.NumCPU() * (2 + int(time.Since(began)/(100*time.Millisecond))))
	written := map[DropReason]uint64{}
	testenv.Eventually(t, 20*time.Second, "each refusal is recorded or counted", func() bool {
		for len(records) > 0 {
			written[(<-records).Reason]++
		}
		return written[RefusedNoEndpoint]+w.counters(t).LostDrops >= asked && written[DropUDP] >= asked/perDrop
	})
	if n := written[RefusedNoEndpoint]; n == 0 || n > most {
		t.Errorf("%d refusals are recorded, want 1 to %d", n, most)
	}
	if written[DropUDP] != asked/perDrop {
		t.Errorf("of %d drops beside them %d are recorded", asked/perDrop, written[DropUDP])
	}
}

// TestRefusalIsNoPartOfTheGate: the redirect works where the refusal cannot be attached.
func TestRefusalIsNoPartOfTheGate(t *testing.T) {
	w := newWorld(t)
	w.attachGate(t)
	w.p.redirect.Programs[refusal().name].Close() // what makes attaching it fail
	if err := w.p.AttachRedirect(); err != nil {
		t.Fatal(err)
	}
	if err := w.p.AttachRefusal(); err == nil {
		t.Error("nothing was attached, and nothing said so")
	}
	w.capturing(t)
	w.agentListenAll(t)
	c, err := w.dial(t, w.pod, 0, "10.96.0.7:80", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if line := w.reached(t, c, nil); !strings.HasPrefix(line, "outbound 10.96.0.7:80") {
		t.Errorf("reached %q", line)
	}
	w.node.Must(t, w.p.Remove)
}

func TestVacantServicesAreBounded(t *testing.T) {
	w := newWorld(t)
	services := func(n int) (all []netip.AddrPort) {
		for i := range n {
			all = append(all, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80))
		}
		return all
	}
	// What has no room is left out, and the next list has all the room again.
	for _, step := range []struct{ set, left, kept int }{{16384 + 5, 5, 16384}, {3, 0, 3}, {0, 0, 0}} {
		left, err := w.bpf.SetVacant(services(step.set))
		if err != nil || left != step.left {
			t.Errorf("of %d services %d found no room, want %d: %v", step.set, left, step.left, err)
		}
		kept, err := w.bpf.Vacant()
		if err != nil || len(kept) != step.kept {
			t.Errorf("of %d services the kernel has %d, want %d: %v", step.set, len(kept), step.kept, err)
		}
	}
	// Another agent finds the list, and replaces it.
	w.setVacant(t, services(2)...)
	after, err := Load(w.bpf.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if kept, err := after.Vacant(); err != nil || len(kept) != 2 {
		t.Errorf("the next agent finds %v, %v", kept, err)
	}
	if _, err := after.SetVacant(nil); err != nil {
		t.Fatal(err)
	}
	if kept, err := w.bpf.Vacant(); err != nil || len(kept) != 0 {
		t.Errorf("after the next agent has emptied the list it has %v, %v", kept, err)
	}
}

func (w *world) setVacant(t *testing.T, services ...netip.AddrPort) {
	t.Helper()
	if left, err := w.bpf.SetVacant(services); err != nil || left != 0 {
		t.Fatalf("set %v: %d found no room, %v", services, left, err)
	}
}

// addressLike is the pod's address of the same family.
func (c PodConfig) addressLike(a netip.Addr) netip.Addr {
	for _, own := range c.Addresses {
		if own.Is4() == a.Is4() {
			return own
		}
	}
	return netip.Addr{}
}

// recording has the records of drops, as they come.
type recording chan Drop

// records reads the node's records until the test ends.
func (w *world) records(t *testing.T) recording {
	r := make(recording, 1024)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.bpf.Drops(ctx, func(d Drop) { r <- d }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r recording) next(t *testing.T) Drop {
	t.Helper()
	select {
	case d := <-r:
		return d
	case <-time.After(20 * time.Second):
		t.Fatal("no record of a refusal in 20 s")
		return Drop{}
	}
}

// Vacant returns the list that SetVacant has set, an earlier agent's too, in no order.
func (n *Node) Vacant() ([]netip.AddrPort, error) {
	var key gateService
	var value uint32
	var all []netip.AddrPort
	entries := n.vacant.Iterate()
	for entries.Next(&key, &value) {
		all = append(all, key.addrPort())
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("list what nobody serves: %w", err)
	}
	return all, nil
}
