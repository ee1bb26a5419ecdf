package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// rewriting has a pod's root command its netfilter, which sees what the agent's sockets send
// before the gate does, to write port into what goes to port 15008.
func rewriting(t *testing.T, ns *testenv.NetNS, port string) {
	t.Helper()
	ns.Must(t, func() error {
		out, err := exec.Command("nft", "add table inet own; add chain inet own out { type filter hook output priority 0; }; add rule inet own out tcp dport 15008 tcp dport set "+port).CombinedOutput()
		if err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
		return nil
	})
}

// TestNobodyRedirectsAStampedSocket: nothing of an agent's socket comes to a port that it is not connected to, neither a
// handshake nor what an established connection sends.
func TestNobodyRedirectsAStampedSocket(t *testing.T) {
	family(t, func(t *testing.T, pod, peer, _ string) {
		w := newWorld(t)
		echo(t, w.listen(t, w.peer, 0, hostPort(peer, 15008)), "peer")
		w.attachGate(t)
		c, err := w.dial(t, w.pod, ClassTunnel, hostPort(peer, 15008), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		elsewhere := capture(t, w.peer, ifindex(t, w.peer, "eth0"), func(f []byte) bool {
			header := 14 + 20
			if netip.MustParseAddr(peer).Is6() {
				header = 14 + 40
			}
			return len(f) >= header+4 && binary.BigEndian.Uint16(f[header+2:]) == 9999
		})
		rewriting(t, w.pod, "9999")
		if _, err := w.dial(t, w.pod, ClassTunnel, hostPort(peer, 15008), 1500*time.Millisecond); err == nil {
			t.Error("connected, though the handshake went elsewhere")
		}
		refused := w.counters(t).Dropped[DropUnstamped].Out.Packets
		if refused == 0 {
			t.Error("no drop of the handshake")
		}
		if _, err := c.Write([]byte("to 15008")); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 5*time.Second, "a drop of what an established connection sends", func() bool { return w.counters(t).Dropped[DropUnstamped].Out.Packets > refused })
		if n := elsewhere(); n > 0 {
			t.Errorf("%d frames came to port 9999", n)
		}
	})
}

// TestWhatHasNoSocketCarriesNothing: what the pod forwards from a link of its own has no socket, as the kernel's own segments have
// none. Of those, only options that the kernel writes pass, on a flow that somebody without an identity can open.
func TestWhatHasNoSocketCarriesNothing(t *testing.T) {
	w := newWorld(t)
	accepted := w.listen(t, w.pod, ClassTunnel, hostPort(pod6, 15008))
	echo(t, accepted, "pod")
	w.attachGate(t)
	var mac net.HardwareAddr
	w.pod.Must(t, func() error {
		for _, args := range []string{"link add own0 type veth peer name own1", "link set own0 up", "link set own1 up"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", args, err, out)
			}
		}
		own, err := net.InterfaceByName("own1")
		if err != nil {
			return err
		}
		mac = own.HardwareAddr
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0)
	})
	c, err := w.dial(t, w.peer, 0, hostPort(pod6, 15008), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
	segment := func(flags byte, options ...byte) []byte {
		s := tcp(15008, port, flags)
		s[12] = byte((20 + len(options)) / 4 << 4)
		frame := ip(pod6, peer6, protoTCP, append(s, options...))
		copy(frame, mac)
		return frame
	}
	arrive := func(want int, what string, frames ...[]byte) {
		t.Helper()
		seen := capture(t, w.peer, ifindex(t, w.peer, "eth0"), func(f []byte) bool {
			return slices.ContainsFunc(frames, func(frame []byte) bool { return len(f) >= 54 && bytes.Equal(f[54:], frame[54:]) })
		})
		refused := w.counters(t).Dropped[DropUnstamped].Out.Packets
		inject(t, w.pod, ifindex(t, w.pod, "own0"), false, frames...)
		got := 0
		testenv.Eventually(t, 5*time.Second, what+" to come, or to be dropped", func() bool {
			got += seen()
			return got+int(w.counters(t).Dropped[DropUnstamped].Out.Packets-refused) >= len(frames)
		})
		if got += seen(); got != want {
			t.Errorf("%s: %d of %d frames arrived, want %d", what, got, len(frames), want)
		}
	}
	stamps := []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	// A new link and forwarding take their time.
	testenv.Eventually(t, 10*time.Second, "the pod to forward", func() bool {
		seen := capture(t, w.peer, ifindex(t, w.peer, "eth0"), func(f []byte) bool { return bytes.HasSuffix(f, stamps) })
		inject(t, w.pod, ifindex(t, w.pod, "own0"), false, segment(ack, stamps...))
		time.Sleep(100 * time.Millisecond)
		return seen() > 0
	})
	other := []byte("PLAINTEXTPLAINTEXTPLAINTEXTPLAINTEXTPLAI")
	arrive(1, "an ACK with timestamps", segment(ack, stamps...))
	arrive(1, "a RST without options", segment(rst))
	arrive(0, "options that are none", segment(ack, other[:4]...), segment(ack, other[:12]...), segment(ack, other...), segment(rst|ack, other[:20]...))
	arrive(0, "timestamps and more", segment(ack, append(slices.Clone(stamps), 1, 1, 1, 1)...), segment(ack, append([]byte{1, 1, 1, 1}, stamps...)...))
	arrive(0, "a SYN-ACK of options that are none", segment(syn|ack, other...), segment(syn|ack, other[:8]...), segment(syn|ack))
}
