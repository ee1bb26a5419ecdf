package bpf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
}

// agentDial dials from the pod with the agent's mark, from an address that may
// be another's.
func (w *world) agentDial(t testing.TB, class Class, from, to string) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	err := w.pod.Do(func() (err error) {
		d := net.Dialer{Timeout: 500 * time.Millisecond, Control: w.agentSocket(class)}
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
