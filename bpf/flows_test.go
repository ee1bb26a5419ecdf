package bpf

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func addrPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

func TestInboundTunnel(t *testing.T) {
	for _, cookies := range []string{"1", "2"} { // 2: syncookies always
		t.Run("syncookies="+cookies, func(t *testing.T) {
			w := newWorld(t)
			w.pod.Must(t, func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte(cookies), 0o644) })
			w.attachGate(t)
			for _, host := range []string{pod4, pod6} {
				echo(t, w.listen(t, w.pod, ClassTunnel, hostPort(host, 15008)), "tunnel")
				for range 5 {
					c, err := w.dial(t, w.peer, 0, hostPort(host, 15008), 3*time.Second)
					if err != nil {
						t.Fatalf("%s: %v: %+v", host, err, w.counters(t))
					}
					if _, err := ask(c); err != nil {
						t.Fatalf("%s: %v", host, err)
					}
					c.Close()
				}
			}
			if c := w.counters(t); c.Tunnel.In.Bytes < 1_000_000 || c.Tunnel.Out.Bytes < 1_000_000 || dropped(c, DropNoFlow) != 0 {
				t.Errorf("%+v", c)
			}
		})
	}
}

func TestInboundUnstampedListener(t *testing.T) {
	w := newWorld(t)
	w.attachGate(t)
	// An application that sits on the tunnel's port answers to nobody.
	echo(t, w.listen(t, w.pod, 0, hostPort(pod4, 15008)), "app")
	if _, err := w.dial(t, w.peer, 0, hostPort(pod4, 15008), 300*time.Millisecond); err == nil {
		t.Error("connected to an application on the tunnel's port")
	}
	if c := w.counters(t); c.Dropped[DropUnstamped].Out.Packets == 0 {
		t.Errorf("its SYN-ACK was not counted: %+v", c.Dropped)
	}
}

func TestPermissiveAndProbe(t *testing.T) {
	w := newTopology(t)
	kubelet := newCgroup(t, "kubelet")
	id, err := CgroupID(kubelet)
	if err != nil {
		t.Fatal(err)
	}
	w.bpf = newNode(t, func(c *Config) { c.KubeletCgroup = id })
	w.config.PortModes = map[uint16]Mode{8081: ModePermissive}
	w.config.ProbePorts = []uint16{8082}
	w.enroll(t)
	w.attachGate(t)
	for _, host := range []string{pod4, pod6} {
		for _, port := range []int{8080, 8081, 8082} {
			echo(t, w.listen(t, w.pod, ClassInbound, hostPort(host, port)), "inbound")
		}
		reach := func(ns *testenv.NetNS, port int) (net.Conn, error) {
			c, err := w.dial(t, ns, 0, hostPort(host, port), 400*time.Millisecond)
			if err == nil {
				_, err = ask(c)
			}
			return c, err
		}
		c, err := reach(w.peer, 8081)
		if err != nil {
			t.Fatalf("permissive port of %s: %v %+v", host, err, w.counters(t))
		}
		flow, ok, err := w.p.Flow(addrPort(c.RemoteAddr()), addrPort(c.LocalAddr()))
		if err != nil || !ok || flow.Kind != FlowPermissive || flow.BytesIn < 100_000 || flow.BytesOut < 100_000 {
			t.Errorf("flow of a permissive connection: %+v %v %v", flow, ok, err)
		}
		insideCgroup(t, kubelet, func() {
			if _, err := reach(w.node, 8082); err != nil {
				t.Errorf("probe of %s: %v %+v", host, err, w.counters(t))
			}
			if _, err := reach(w.node, 8080); err == nil {
				t.Error("kubelet reached a port that no probe declares")
			}
		})
		if _, err := reach(w.node, 8082); err == nil {
			t.Error("a host address alone passed for kubelet")
		}
		if _, err := reach(w.peer, 8080); err == nil {
			t.Error("reached a STRICT port")
		}
	}
	peers, err := w.p.PlaintextPeers()
	if err != nil || len(peers) == 0 {
		t.Errorf("plaintext peers: %+v %v", peers, err)
	}
	// Kubelet comes back in another cgroup.
	again := newCgroup(t, "kubelet-again")
	if id, err = CgroupID(again); err != nil {
		t.Fatal(err)
	}
	w.bpf.SetKubeletCgroup(id)
	if err := w.p.Refresh(); err != nil {
		t.Fatal(err)
	}
	for dir, passes := range map[string]bool{again: true, kubelet: false} {
		insideCgroup(t, dir, func() {
			if _, err := w.dial(t, w.node, 0, hostPort(pod4, 8082), 400*time.Millisecond); (err == nil) != passes {
				t.Errorf("a probe from %s: %v, want it to pass: %v", dir, err, passes)
			}
		})
	}
	// STRICT ends what PERMISSIVE admitted.
	c, err := w.dial(t, w.peer, 0, hostPort(pod4, 8081), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	w.update(t, func(cfg *PodConfig) { cfg.PortModes = nil })
	if _, err := ask(c); err == nil {
		t.Error("a permissive connection went on under STRICT")
	}
	w.update(t, func(cfg *PodConfig) { cfg.Mode, cfg.PortModes = ModePermissive, map[uint16]Mode{8081: ModeStrict} })
	if _, err := w.dial(t, w.peer, 0, hostPort(pod4, 8080), time.Second); err != nil {
		t.Errorf("permissive by default: %v", err)
	}
	if _, err := w.dial(t, w.peer, 0, hostPort(pod4, 8081), 300*time.Millisecond); err == nil {
		t.Error("reached a port that is STRICT by exception")
	}
}

// flowWorld is a world with the gate, and a way to open a tunnel connection.
type flowWorld struct {
	*world
	listener *net.TCPListener
}

func newFlowWorld(t *testing.T) flowWorld {
	w := newWorld(t)
	l := w.listen(t, w.peer, 0, hostPort(peer4, 7000))
	w.attachGate(t)
	return flowWorld{w, l}
}

// open connects, and returns both ends and the look-up of their flow.
func (w flowWorld) open(t *testing.T) (pod, peer net.Conn, flow func() (FlowEntry, bool)) {
	t.Helper()
	c, err := w.dial(t, w.pod, ClassTunnel, hostPort(peer4, 7000), 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	local, remote := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	return c, s, func() (FlowEntry, bool) {
		e, ok, err := w.p.Flow(local, remote)
		if err != nil {
			t.Fatal(err)
		}
		return e, ok
	}
}

// live is how many flows are live.
func (w flowWorld) live(t *testing.T) int {
	t.Helper()
	all, err := w.p.Flows()
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestFlowEnds(t *testing.T) {
	w := newFlowWorld(t)
	// FINs both ways: the entry leaves the table of live flows at once. The
	// peer closes late, and so the last ACK has no full socket.
	c, s, flow := w.open(t)
	if e, ok := flow(); !ok || e.Kind != FlowTunnel || e.Closed || w.live(t) != 1 {
		t.Errorf("open: %+v %v, %d live", e, ok, w.live(t))
	}
	c.Close()
	time.Sleep(100 * time.Millisecond)
	if _, err := io.ReadAll(s); err != nil {
		t.Error(err)
	}
	s.Close()
	testenv.Eventually(t, 3*time.Second, "the flow is closed", func() bool { e, ok := flow(); return ok && e.Closed })
	if w.live(t) != 0 {
		t.Errorf("%d flows are live after FINs both ways", w.live(t))
	}
	// Late data to a socket that is gone draws a reset, without a full socket.
	c, s, _ = w.open(t)
	c.Close()
	time.Sleep(50 * time.Millisecond)
	if _, err := s.Write([]byte("late")); err != nil {
		t.Error(err)
	}
	testenv.Eventually(t, 3*time.Second, "the flow is reset", func() bool { return w.live(t) == 0 })
	if dropped(w.counters(t), DropNoFlow) != 0 || dropped(w.counters(t), DropUnstamped) != 0 {
		t.Errorf("packets of the kernel were dropped: %+v", w.counters(t).Dropped)
	}
}

func TestFlowComesBack(t *testing.T) {
	w := newFlowWorld(t)
	// An entry that expired comes back with the live socket's next segment.
	c, _, flow := w.open(t)
	time.Sleep(50 * time.Millisecond)
	if n, err := w.p.ExpireFlows(0); n != 1 || err != nil {
		t.Errorf("expired %d, %v", n, err)
	}
	if _, ok := flow(); ok {
		t.Error("the flow did not expire")
	}
	if _, err := c.Write([]byte("again")); err != nil {
		t.Error(err)
	}
	testenv.Eventually(t, 2*time.Second, "the flow is back", func() bool { _, ok := flow(); return ok })
	// A live tuple cannot become a passthru.
	err := w.p.AddPassthru(addrPort(c.RemoteAddr()), addrPort(c.LocalAddr()))
	if !errors.Is(err, ErrPassthruBusy) {
		t.Errorf("passthru on a live flow: %v", err)
	}
}

func TestFlowBudget(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.FlowsPerPod = 4 })
	echo(t, w.listen(t, w.peer, 0, hostPort(peer4, 7000)), "peer")
	w.attachGate(t)
	failed := 0
	for range 12 {
		if _, err := w.dial(t, w.pod, ClassTunnel, hostPort(peer4, 7000), 150*time.Millisecond); err != nil {
			failed++
		}
	}
	if failed == 0 || dropped(w.counters(t), DropBudget) == 0 {
		t.Errorf("%d of 12 dials failed, %+v", failed, w.counters(t).Dropped)
	}
}

func TestSynFlood(t *testing.T) {
	w := newWorld(t)
	w.attachGate(t)
	echo(t, w.listen(t, w.pod, ClassTunnel, hostPort(pod4, 15008)), "tunnel")
	frames := make([][]byte, 0, 20000)
	for i := range 20000 {
		frames = append(frames, ip(peer4, pod4, protoTCP, tcp(uint16(i+1), 15008, syn)))
	}
	inject(t, w.node, w.config.HostIfindex, false, frames...)
	if all, err := w.p.Flows(); len(all) > 0 || err != nil {
		t.Errorf("a flood of SYNs made %d flows, %v", len(all), err)
	}
	c, err := w.dial(t, w.peer, 0, hostPort(pod4, 15008), 5*time.Second)
	if err != nil {
		t.Fatalf("no connection after the flood: %v", err)
	}
	if _, err := ask(c); err != nil {
		t.Error(err)
	}
}

func TestSockCreateStamps(t *testing.T) {
	w := newWorld(t)
	echo(t, w.listen(t, w.peer, 0, hostPort(peer4, 7000)), "peer")
	w.attachGate(t)
	insideCgroup(t, w.bpf.cfg.CgroupPath, func() {
		c, err := w.dial(t, w.pod, 0, hostPort(peer4, 7000), 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ask(c); err != nil {
			t.Error(err)
		}
	})
	if c := w.counters(t); c.Egress.Out.Bytes < 100_000 {
		t.Errorf("a socket of the agent's cgroup was not counted as egress: %+v", c)
	}
}

// TestMovingFlowsEnd: what a packet moves from one table to the other while refused
// connections are ended does not stay for that. Each packet comes once its entry was seen.
func TestMovingFlowsEnd(t *testing.T) {
	p := lonePod(t)
	permissive := uint8(FlowPermissive)
	for _, c := range []struct {
		name, from string
		entry      gateFlow
		packet     byte
	}{
		{"a half-open one that is answered", gateMapTransient, gateFlow{Kind: permissive, Half: 2}, ack},
		{"a live one that is over", gateMapFlows, gateFlow{Kind: permissive, FinOut: 1}, fin | ack},
	} {
		seed(t, p, c.from, hostPort(pod4, 80), hostPort(peer4, 999), c.entry)
		seen := 0
		err := p.endFlows(func(string, gateTuple, gateFlow) bool {
			if seen++; seen == 1 {
				runCases(t, p, []packetCase{{name: c.name, in: true, frame: ip(peer4, pod4, protoTCP, tcp(999, 80, c.packet)), as: FlowPermissive}})
			}
			return true
		})
		flow, found, e := p.Flow(netip.MustParseAddrPort(hostPort(pod4, 80)), netip.MustParseAddrPort(hostPort(peer4, 999)))
		if err != nil || e != nil || found || seen != 2 {
			t.Errorf("%s: %+v is left: %v, seen %d times; %v, %v", c.name, flow, found, seen, err, e)
		}
	}
}
