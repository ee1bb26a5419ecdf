package bpf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"golang.org/x/sys/unix"
)

const packetQdiscBypass = 20 // PACKET_QDISC_BYPASS, linux/if_packet.h

// inject sends frames as they are out of an interface, as CAP_NET_RAW can.
// bypass skips the interface's own tc hook, and so the twin.
func inject(t testing.TB, ns *testenv.NetNS, index int, bypass bool, frames ...[]byte) {
	t.Helper()
	ns.Must(t, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if bypass {
			if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, packetQdiscBypass, 1); err != nil {
				return err
			}
		}
		for _, f := range frames {
			to := &unix.SockaddrLinklayer{Ifindex: index, Halen: 6, Protocol: uint16(f[13])<<8 | uint16(f[12])}
			// A drop on the way out is an error of send; the counters tell.
			if err := unix.Sendto(fd, f, 0, to); err != nil && err != unix.ENOBUFS {
				return fmt.Errorf("send: %w", err)
			}
		}
		return nil
	})
}

// capture counts the frames that arrive at an interface and satisfy match.
func capture(t testing.TB, ns *testenv.NetNS, index int, match func([]byte) bool) (count func() int) {
	t.Helper()
	var fd int
	ns.Must(t, func() (err error) {
		const all = 0x0300 // ETH_P_ALL in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: all})
	})
	t.Cleanup(func() { unix.Close(fd) })
	return func() int {
		n, buf := 0, make([]byte, 64<<10)
		for {
			got, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return n
			}
			if match(buf[:got]) {
				n++
			}
		}
	}
}

func TestGateAttacksFromThePod(t *testing.T) {
	w := newWorld(t)
	echo(t, w.listen(t, w.peer, 0, hostPort(peer4, 15008)), "peer")
	w.attachGate(t)
	live, err := w.dial(t, w.pod, ClassTunnel, hostPort(peer4, 15008), 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(live.LocalAddr().String()).Port()
	marker := []byte("PLAINTEXT")
	data := func(p uint16, flags byte) []byte { return append(tcp(p, 15008, flags), marker...) }
	attacks := []struct {
		name  string
		frame []byte
		drop  DropReason
	}{
		{"data on the agent's flow", ip(pod4, peer4, protoTCP, data(port, ack|psh)), DropUnstamped},
		{"bare ack on the agent's flow", ip(pod4, peer4, protoTCP, tcp(port, 15008, ack)), DropUnstamped},
		{"reset of the agent's flow", ip(pod4, peer4, protoTCP, tcp(port, 15008, rst)), DropUnstamped},
		{"plaintext to the tunnel port", ip(pod6, peer6, protoTCP, data(1, ack|psh)), DropUnstamped},
		{"syn", ip(pod6, peer6, protoTCP, tcp(1, 15008, syn)), DropUnstamped},
		{"forged source", ip(strange4, peer4, protoTCP, data(port, ack|psh)), DropForgedSource},
		{"forged source v6", ip(strange6, peer6, protoTCP, data(port, ack|psh)), DropForgedSource},
		{"options", ipOptions(ip(pod4, peer4, protoTCP, data(port, ack|psh))), DropIPOptions},
		{"fragment", set(ip(pod4, peer4, protoTCP, data(port, ack|psh)), 6, 0x20), DropFragment},
		{"second fragment", set(ip(pod4, peer4, protoTCP, data(port, ack|psh)), 7, 4), DropFragment},
		{"v6 fragment", extension(ip(pod6, peer6, protoTCP, data(1, ack)), 44), DropFragment},
		{"v6 destination options", extension(ip(pod6, peer6, protoTCP, data(1, ack)), 60), DropExtensionHeader},
		{"v6 routing header", extension(ip(pod6, peer6, protoTCP, data(1, ack)), 43), DropExtensionHeader},
		{"udp", ip(pod4, peer4, protoUDP, udp(1, 4789, marker...)), DropUDP},
		{"udp v6", ip(pod6, peer6, protoUDP, udp(1, 443, marker...)), DropUDP},
		{"echo", ip(pod4, peer4, protoICMP, icmp(8, marker...)), DropICMP},
		{"echo v6", ip(pod6, peer6, protoICMPv6, icmp(128, marker...)), DropICMP},
		{"sctp", ip(pod4, peer4, 132, marker), DropProtocol},
		{"a trailer behind a neighbour solicitation", append(set(ip(pod6, node6, protoICMPv6, icmp(135, make([]byte, 16)...)), 7, 255), marker...), DropMalformed},
		{"arp spoof", arp(2, node4, peer4), DropForgedSource},
		{"runt", ethernet(0x0800, []byte{0x45, 0, 0, 40, 0, 0}), DropMalformed},
		{"v6 runt", ip(pod6, peer6, protoTCP, nil)[:40], DropMalformed},
		{"unknown ethertype", ethernet(0x88b5, append(make([]byte, 46), marker...)), DropProtocol},
	}
	index := ifindex(t, w.pod, "eth0")
	leaked := capture(t, w.peer, ifindex(t, w.peer, "eth0"), func(f []byte) bool { return string(f[max(0, len(f)-len(marker)):]) == string(marker) })
	for _, bypass := range []bool{false, true} {
		for _, a := range attacks {
			t.Run(fmt.Sprintf("%s/bypass=%v", a.name, bypass), func(t *testing.T) {
				before := w.counters(t)
				inject(t, w.pod, index, bypass, a.frame, a.frame, a.frame)
				if got := dropped(w.counters(t), a.drop) - dropped(before, a.drop); got < 3 {
					t.Errorf("counted %d drops for %v, want 3", got, a.drop)
				}
			})
		}
	}
	if n := leaked(); n != 0 {
		t.Errorf("%d frames reached the peer", n)
	}
	if _, err := ask(live); err != nil {
		t.Errorf("the agent's connection did not survive: %v", err)
	}
	// The capture must be one that sees plaintext when it is there.
	w.node.Must(t, w.p.DetachGate)
	plain := attackFrame(t, w, marker)
	testenv.Eventually(t, 2*time.Second, "the capture sees plaintext", func() bool {
		inject(t, w.pod, index, false, plain)
		return leaked() > 0
	})
}

// attackFrame is a frame with the marker that the node forwards to the peer.
func attackFrame(t testing.TB, w *world, marker []byte) []byte {
	t.Helper()
	f := ip(pod4, peer4, protoUDP, udp(1, 4789, marker...))
	w.node.Must(t, func() error {
		l, err := net.InterfaceByName("vpod")
		if err == nil {
			copy(f, l.HardwareAddr)
		}
		return err
	})
	sum := 0
	for i := 14; i < 34; i += 2 {
		sum += int(f[i])<<8 | int(f[i+1])
	}
	sum = ^(sum + sum>>16) & 0xffff
	f[24], f[25] = byte(sum>>8), byte(sum)
	return f
}

func TestGateAttacksOnSockets(t *testing.T) {
	w := newWorld(t)
	echo(t, w.listen(t, w.peer, 0, hostPort(peer4, 80)), "peer")
	w.attachGate(t)
	// The agent's mark routes, and proves nothing.
	before := w.counters(t)
	err := w.pod.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x04d00000); err != nil {
			return err
		}
		tv := unix.Timeval{Usec: 200_000}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: netip.MustParseAddr(peer4).As4()})
	})
	if err == nil {
		t.Error("the agent's mark alone opened the gate")
	}
	if dropped(w.counters(t), DropUnstamped) == dropped(before, DropUnstamped) {
		t.Error("the marked SYN was not counted")
	}
	for _, proto := range []int{unix.IPPROTO_RAW, unix.IPPROTO_TCP} {
		insideCgroup(t, newCgroup(t, "pod"), func() { attackRaw(t, w, proto) })
	}
}

// attackRaw sends a bare ACK on a live tuple from a raw socket of the pod.
func attackRaw(t *testing.T, w *world, proto int) {
	t.Helper()
	seed(t, w.p, gateMapFlows, hostPort(pod4, 1), hostPort(peer4, 80), gateFlow{Kind: uint8(FlowTunnel)})
	before := w.counters(t)
	w.pod.Must(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_HDRINCL, 1); err != nil {
			return err
		}
		packet := ip(pod4, peer4, protoTCP, tcp(1, 80, ack))[14:]
		err = unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: netip.MustParseAddr(peer4).As4()})
		if err == unix.ENOBUFS {
			err = nil // dropped on the way out
		}
		return err
	})
	testenv.Eventually(t, 2*time.Second, "the raw segment is counted", func() bool {
		return dropped(w.counters(t), DropUnstamped) > dropped(before, DropUnstamped)
	})
}

func TestGateAttacksFromTheWire(t *testing.T) {
	w := newWorld(t)
	w.attachGate(t)
	client, app := netip.MustParseAddrPort(hostPort(peer4, 2000)), netip.MustParseAddrPort(hostPort(pod4, 8080))
	if err := w.p.AddPassthru(client, app); err != nil {
		t.Fatal(err)
	}
	index := w.config.HostIfindex
	check := func(what string, want DropReason, frame []byte) {
		t.Helper()
		before := w.counters(t)
		inject(t, w.node, index, false, frame)
		if dropped(w.counters(t), want) != dropped(before, want)+1 {
			t.Errorf("%s: not dropped as %v: %+v", what, want, w.counters(t).Dropped)
		}
	}
	mode := func(perPort map[uint16]Mode) {
		t.Helper()
		if err := w.p.SetMode(ModeStrict, perPort); err != nil {
			t.Fatal(err)
		}
	}
	check("syn to a strict port, on a tuple of the agent's", DropPlaintextInbound, ip(peer4, pod4, protoTCP, tcp(2000, 8080, syn)))
	mode(map[uint16]Mode{8080: ModePermissive}) // where it would be let in
	check("passthru reuse by a syn", DropPassthruReuse, ip(peer4, pod4, protoTCP, tcp(2000, 8080, syn)))
	check("passthru reuse by data", DropPassthruReuse, ip(peer4, pod4, protoTCP, tcp(2000, 8080, ack|psh, 'x')))
	if err := w.p.HoldPassthru(client, app); err != nil {
		t.Fatal(err)
	}
	check("passthru reuse after connect", DropPassthruReuse, ip(peer4, pod4, protoTCP, tcp(2000, 8080, syn)))
	if err := w.p.RemovePassthru(client, app); err != nil {
		t.Fatal(err)
	}
	mode(nil)
	check("syn to a strict port", DropPlaintextInbound, ip(peer4, pod4, protoTCP, tcp(2000, 8080, syn)))
	check("data to the tunnel", DropNoFlow, ip(peer6, pod6, protoTCP, tcp(2000, 15008, ack|psh, 'x')))
	check("udp", DropUDP, ip(peer6, pod6, protoUDP, udp(53, 2000)))
	check("fragment", DropFragment, extension(ip(peer6, pod6, protoTCP, tcp(1, 15008, syn)), 44))
	check("source is the pod", DropForgedSource, ip(pod4, pod4, protoTCP, tcp(1, 15008, syn)))
}

func TestDropRecords(t *testing.T) {
	w := newWorld(t)
	w.attachGate(t)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan Drop, 1000)
	done := make(chan error, 1)
	go func() { done <- w.bpf.Drops(ctx, func(d Drop) { got <- d }) }()
	frame := ip(peer6, pod6, protoTCP, tcp(2000, 8080, syn))
	inject(t, w.node, w.config.HostIfindex, false, frame)
	select {
	case d := <-got:
		want := Drop{
			Pod: 7, Reason: DropPlaintextInbound, Direction: Inbound, Protocol: protoTCP, TCPFlags: syn, Length: len(frame) - 14,
			Source: netip.MustParseAddrPort(hostPort(peer6, 2000)), Destination: netip.MustParseAddrPort(hostPort(pod6, 8080)),
		}
		if age := time.Since(d.Time); age < -time.Second || age > 10*time.Second {
			t.Errorf("record is %v old", age)
		}
		d.Time = time.Time{}
		if d != want {
			t.Errorf("got  %+v\nwant %+v", d, want)
		}
	case <-time.After(5 * time.Second):
		t.Error("no record came")
	}
	inject(t, w.node, w.config.HostIfindex, false, slices.Repeat([][]byte{frame}, 5000)...)
	if c := w.counters(t); c.LostDrops == 0 || c.Dropped[DropPlaintextInbound].In.Packets != 5001 {
		t.Errorf("5001 drops in a burst: %d lost, counted %+v", c.LostDrops, c.Dropped)
	}
	peers, err := w.p.DropPeers()
	if err != nil || len(peers) == 0 {
		t.Errorf("drop peers: %+v, %v", peers, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
