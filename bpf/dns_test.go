package bpf

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// capturingDNS adds the rules that lead the pod's queries to lo.
func (w *world) capturingDNS(t testing.TB) {
	t.Helper()
	w.pod.Must(t, func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			r := netlink.NewRule()
			r.Family, r.Priority, r.IifName, r.IPProto, r.Table = family, 100, "lo", unix.IPPROTO_UDP, 100
			r.Dport = netlink.NewRulePortRange(53, 53)
			if err := netlink.RuleAdd(r); err != nil {
				return err
			}
		}
		return nil
	})
}

// answerer is a UDP server that says its name and where it was asked.
func (w *world) answerer(t testing.TB, in func(func() error) error, network, at, name string) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := in(func() error {
		lc := net.ListenConfig{}
		pc, err := lc.ListenPacket(context.Background(), network, at)
		if err == nil {
			c = pc.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			_, from, err := c.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			c.WriteToUDPAddrPort([]byte(name), from)
		}
	}()
	return c
}

// query sends a datagram from the pod and returns the answer, for which it waits
// longer when there should be one.
func (w *world) query(t testing.TB, to string, class Class, due string) string {
	t.Helper()
	wait := 400 * time.Millisecond
	if due != "nothing" {
		wait = 10 * time.Second
	}
	var c net.Conn
	err := w.pod.Do(func() (err error) {
		d := net.Dialer{Control: w.agentSocket(class)}
		if class == 0 {
			d.Control = nil
		}
		c, err = d.Dial("udp", to)
		return err
	})
	if err != nil {
		return "error: " + err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	c.Write([]byte("query"))
	b := make([]byte, 2048)
	n, err := c.Read(b)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "nothing"
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case err != nil:
		return "error: " + err.Error()
	}
	return string(b[:n])
}

// received is what one of the agent's DNS sockets got.
type received struct {
	to   netip.AddrPort
	text string
}

// agentDatagrams opens the agent's UDP socket and gives it to the slot.
func (w *world) agentDatagrams(t testing.TB, slot Slot, family int) (fd int, next func() received) {
	t.Helper()
	w.pod.Must(t, func() (err error) {
		if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		level, option := unix.SOL_IP, unix.IP_RECVORIGDSTADDR
		var at unix.Sockaddr = &unix.SockaddrInet4{Port: 15053, Addr: [4]byte{127, 0, 0, 1}}
		if family == unix.AF_INET6 {
			level, option = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
			at = &unix.SockaddrInet6{Port: 15053, Addr: netip.IPv6Loopback().As16()}
		}
		return errors.Join(unix.SetsockoptInt(fd, level, option, 1), unix.Bind(fd, at),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	})
	t.Cleanup(func() { unix.Close(fd) })
	if err := w.p.SetListener(slot, uintptr(fd)); err != nil {
		t.Fatal(err)
	}
	return fd, func() received {
		b, oob := make([]byte, 2048), make([]byte, 128)
		n, oobn, _, _, err := unix.Recvmsg(fd, b, oob, 0)
		if err != nil {
			return received{text: err.Error()}
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			t.Fatalf("control messages %v, %v", messages, err)
		}
		sa, err := unix.ParseOrigDstAddr(&messages[0])
		if err != nil {
			t.Fatal(err)
		}
		r := received{text: string(b[:n])}
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			r.to = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
		case *unix.SockaddrInet6:
			r.to = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
		}
		return r
	}
}

// TestCaptureDNS: what the pod sends to port 53 reaches the agent with its
// destination, by UDP and TCP; what leaves to there is the agent's, whoever
// forges it; without the agent nothing does.
func TestCaptureDNS(t *testing.T) {
	w := newWorld(t)
	w.attachGate(t)
	if err := w.p.AttachRedirect(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct{ pod, peer string }{{pod4, peer4}, {pod6, peer6}} {
		w.answerer(t, w.peer.Do, "udp", hostPort(f.peer, 53), "upstream")
		if got := w.query(t, hostPort(f.peer, 53), 0, "upstream"); got != "upstream" {
			t.Errorf("%s, not captured: %s", f.peer, got)
		}
	}
	w.capturing(t)
	w.capturingDNS(t)
	w.agentListenAll(t)
	w.update(t, func(c *PodConfig) { c.CaptureDNS = true })
	for _, f := range []struct {
		pod, peer        string
		family           int
		datagram, stream Slot
		listen           string
	}{
		{pod4, peer4, unix.AF_INET, DNSDatagramV4, DNSStreamV4, "127.0.0.1:15053"},
		{pod6, peer6, unix.AF_INET6, DNSDatagramV6, DNSStreamV6, "[::1]:15053"},
	} {
		upstream := hostPort(f.peer, 53)
		if got := w.query(t, upstream, 0, unanswered(f.peer)); got != unanswered(f.peer) {
			t.Errorf("%s, without the agent's socket: %s", f.peer, got)
		}
		fd, next := w.agentDatagrams(t, f.datagram, f.family)
		if err := w.p.SetListener(f.datagram, uintptr(fd)); err != nil {
			t.Errorf("the same socket again: %v", err)
		}
		w.query(t, upstream, 0, "nothing")
		if got, want := next(), (received{netip.MustParseAddrPort(upstream), "query"}); got != want {
			t.Errorf("captured %v, want %v", got, want)
		}
		if got := w.query(t, upstream, ClassPlaintext, "upstream"); got != "upstream" {
			t.Errorf("the agent's own query to %s: %s", upstream, got)
		}
		for _, class := range []Class{ClassLocal, ClassAgent, ClassTunnel} {
			if got := w.query(t, upstream, class, "nothing"); got != "nothing" {
				t.Errorf("a socket of class %d to %s: %s", class, upstream, got)
			}
		}
		// The pod's own resolver, and what is not DNS, are left alone.
		w.answerer(t, w.pod.Do, "udp", hostPort(f.pod, 53), "own")
		if got := w.query(t, hostPort(f.pod, 53), 0, "own"); got != "own" {
			t.Errorf("the pod's own resolver: %s", got)
		}
		w.agentListen(t, f.stream, f.listen, "names")
		c, err := w.dial(t, w.pod, 0, upstream, 10*time.Second)
		if got, want := w.reached(t, c, err), "names "+upstream+" "; !strings.HasPrefix(got, want) {
			t.Errorf("TCP to port 53 reached %q, want %q", got, want)
		}
		before := dropped(w.counters(t), DropUnstamped)
		w.pod.Must(t, func() error { return w.forge(t, f.pod, f.peer) })
		if after := dropped(w.counters(t), DropUnstamped); after == before {
			t.Errorf("a forged query to %s was not dropped as unstamped", f.peer)
		}
		unix.Close(fd)
		if got := w.query(t, upstream, 0, unanswered(f.peer)); got != unanswered(f.peer) {
			t.Errorf("%s, after the agent's socket was closed: %s", f.peer, got)
		}
	}
	// Taken back, queries pass as before.
	w.update(t, func(c *PodConfig) { c.CaptureDNS = false })
	if got := w.query(t, hostPort(peer4, 53), testPlain, "upstream"); got != "upstream" {
		t.Errorf("after capture: %s", got)
	}
}

// testPlain is a socket that is marked, so that rules pass it, and not stamped as
// the agent's queries are.
const testPlain = ClassLocal

// forge sends a query by a packet socket, past the pod's rules.
func (w *world) forge(t testing.TB, from, to string) error {
	t.Helper()
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	frame := ip(from, to, protoUDP, udp(5353, 53, 'q'))
	err = unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Halen: 6})
	if errors.Is(err, unix.ENOBUFS) {
		return nil // the gate's twin has dropped it
	}
	return err
}

// unanswered is what a query sees that no socket takes: IPv4 has no ICMP error for
// it, since its source is no address of the pod (ip_route_output_key_hash_rcu).
func unanswered(peer string) string {
	if peer == peer4 {
		return "nothing"
	}
	return "refused"
}
