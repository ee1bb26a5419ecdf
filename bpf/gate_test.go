package bpf

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"golang.org/x/sys/unix"
)

// dropped is how often the reason was given so far.
func dropped(c Counters, r DropReason) uint64 {
	return c.Dropped[r].Out.Packets + c.Dropped[r].In.Packets
}

func TestGateStampedPasses(t *testing.T) {
	w := newWorld(t)
	for _, host := range []string{peer4, peer6} {
		echo(t, w.listen(t, w.peer, 0, hostPort(host, 7000)), "peer")
	}
	w.attachGate(t)
	for _, host := range []string{peer4, peer6} {
		for class, traffic := range map[Class]func(Counters) Traffic{
			ClassTunnel:    func(c Counters) Traffic { return c.Tunnel },
			ClassPlaintext: func(c Counters) Traffic { return c.Egress },
			ClassAgent:     func(c Counters) Traffic { return c.Egress },
		} {
			before := traffic(w.counters(t))
			c, err := w.dial(t, w.pod, class, hostPort(host, 7000), 3*time.Second)
			if err != nil {
				t.Fatalf("class %d to %s: %v", class, host, err)
			}
			if _, err := ask(c); err != nil {
				t.Fatalf("class %d to %s: %v", class, host, err)
			}
			after := traffic(w.counters(t))
			if out, in := after.Out.Bytes-before.Out.Bytes, after.In.Bytes-before.In.Bytes; out < 100_000 || in < 100_000 {
				t.Errorf("class %d to %s: counted %d bytes out, %d in", class, host, out, in)
			}
		}
		for _, class := range []Class{0, ClassLocal, ClassInbound} {
			before := w.counters(t)
			if c, err := w.dial(t, w.pod, class, hostPort(host, 7000), 300*time.Millisecond); err == nil {
				c.Close()
				t.Errorf("class %d to %s connected", class, host)
			}
			if after := w.counters(t); dropped(after, DropUnstamped) == dropped(before, DropUnstamped) {
				t.Errorf("class %d to %s: no drop counted: %+v", class, host, after)
			}
		}
	}
	if t.Failed() {
		fmt.Printf("%+v\n", w.counters(t))
	}
}

// TestMulticastListenersPass: what this kernel itself says of groups that a socket of the
// pod joins and leaves, in both versions of MLD, passes. Changes of several share a report.
func TestMulticastListenersPass(t *testing.T) {
	w := newWorld(t)
	w.attachGate(t)
	for version, kinds := range map[string][]byte{"1": {131, 132}, "2": {143}} {
		said := map[byte]int{}
		look := capture(t, w.node, ifindex(t, w.node, "vpod"), func(f []byte) bool {
			if len(f) > 62 && f[20] == 0 && f[54] == protoICMPv6 {
				said[f[62]]++
			}
			return true
		})
		before := w.counters(t)
		fd := joinGroups(t, w, version)
		testenv.Eventually(t, 5*time.Second, "a report", func() bool { look(); return said[kinds[0]] > 0 })
		last := kinds[len(kinds)-1]
		joined := said[last]
		unix.Close(fd) // leaves them
		testenv.Eventually(t, 5*time.Second, "a report of leaving", func() bool { look(); return said[last] > joined })
		if n := dropped(w.counters(t), DropICMP) - dropped(before, DropICMP); n != 0 {
			t.Errorf("version %s: of %v, by type, %d were dropped", version, said, n)
		}
	}
}

// joinGroups has a socket of the pod join eight groups.
func joinGroups(t *testing.T, w *world, version string) (fd int) {
	t.Helper()
	w.pod.Must(t, func() (err error) {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/force_mld_version", []byte(version), 0o644); err != nil {
			return err
		}
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		for i := range 8 {
			group := &unix.IPv6Mreq{Multiaddr: [16]byte{0xff, 0x02, 15: byte(0xa0 + i)}, Interface: uint32(link.Index)}
			if err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, group); err != nil {
				return err
			}
		}
		return nil
	})
	return fd
}
