package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/heddle-mesh/heddle/e2e/kernelstate"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/vishvananda/netlink"
)

// connect opens a connection from one end to an address of the other, and returns both ends.
func (w *world) connect(t *testing.T, from, to *testenv.NetNS, at string) (dialled, accepted net.Conn) {
	t.Helper()
	l := w.listen(t, to, 0, at)
	c, err := w.dial(t, from, 0, l.Addr().String(), 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l.Close()
	return c, s
}

// pairs opens connections between pod and peer, dialled from either end, and
// returns the pod's and the peer's ends.
func (w *world) pairs(t *testing.T) (pods, peers []net.Conn) {
	t.Helper()
	for _, f := range []struct{ pod, peer string }{{pod4, peer4}, {pod6, peer6}} {
		c, s := w.connect(t, w.pod, w.peer, hostPort(f.peer, 0))
		pods, peers = append(pods, c), append(peers, s)
		c, s = w.connect(t, w.peer, w.pod, hostPort(f.pod, 0))
		pods, peers = append(pods, s), append(peers, c)
	}
	return pods, peers
}

// exchange sends a few bytes each way.
func exchange(a, b net.Conn, limit time.Duration) error {
	buf := make([]byte, 16)
	for range 3 {
		for _, d := range [][2]net.Conn{{a, b}, {b, a}} {
			deadline := time.Now().Add(limit)
			if err := errors.Join(d[0].SetDeadline(deadline), d[1].SetDeadline(deadline)); err != nil {
				return err
			}
			if _, err := d[0].Write([]byte("hello")); err != nil {
				return err
			}
			if _, err := d[1].Read(buf); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) grandfather(t *testing.T, want int) {
	t.Helper()
	n, err := w.p.Grandfather()
	if err != nil || n != want {
		t.Errorf("grandfathered %d, %v; want %d", n, err, want)
	}
}

func TestGrandfather(t *testing.T) {
	w := newWorld(t)
	pods, peers := w.pairs(t)
	w.grandfather(t, len(pods))
	w.attachGate(t)
	w.capturing(t)
	if err := w.p.AttachRedirect(); err != nil {
		t.Fatal(err)
	}
	w.grandfather(t, 0) // a second pass finds nothing new
	for i := range pods {
		if err := exchange(pods[i], peers[i], 3*time.Second); err != nil {
			t.Errorf("connection %d did not survive: %v %+v", i, err, w.counters(t).Dropped)
		}
		flow, ok, err := w.p.Flow(addrPort(pods[i].LocalAddr()), addrPort(pods[i].RemoteAddr()))
		if err != nil || !ok || flow.Kind != FlowGrandfathered || flow.Remaining <= 0 || flow.BytesOut == 0 || flow.BytesIn == 0 {
			t.Errorf("flow %d: %+v %v %v", i, flow, ok, err)
		}
	}
	if c := w.counters(t); c.Grandfathered.Out.Packets == 0 || c.Grandfathered.In.Packets == 0 {
		t.Errorf("not counted: %+v", c)
	}
	if _, err := w.dial(t, w.pod, 0, hostPort(peer4, 7000), 300*time.Millisecond); err == nil {
		t.Error("a new connection passed")
	}
	// Half-closing and closing go on as they would without us.
	if err := pods[0].(*net.TCPConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if err := peers[0].SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Error(err)
	}
	if _, err := peers[0].Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("half-close: %v", err)
	}
	// Enrolled anew, live sockets are found anew.
	w.node.Must(t, w.p.Remove)
	w.enroll(t)
	n, err := w.p.Grandfather()
	if err != nil || n < len(pods)-1 {
		t.Errorf("enrolled anew: %d, %v", n, err)
	}
}

// TestConnectionsToWaypointsAreNotGrandfathered: whoever had one open before the
// pod was enrolled could say on it for whom it likes, once the pod is believed to
// hear nobody but the agent. So none goes on, nor one that an earlier version kept.
func TestConnectionsToWaypointsAreNotGrandfathered(t *testing.T) {
	for _, family := range []struct{ pod, peer string }{{pod4, peer4}, {pod6, peer6}} {
		t.Run(family.pod, func(t *testing.T) {
			w := newWorld(t)
			open := func(port int) (pods, peers net.Conn) {
				c, s := w.connect(t, w.peer, w.pod, hostPort(family.pod, port))
				if err := exchange(c, s, 3*time.Second); err != nil {
					t.Fatal(err)
				}
				return s, c
			}
			near := func(c net.Conn) (FlowEntry, bool) {
				flow, ok, err := w.p.Flow(addrPort(c.LocalAddr()), addrPort(c.RemoteAddr()))
				if err != nil {
					t.Fatal(err)
				}
				return flow, ok
			}
			pods, peers := open(15009)
			last, lastPeers := open(15009) // of which the pod's end speaks first
			other, others := open(15010)
			over, overPeers := open(15009) // that the pod's end has closed: TIME_WAIT
			over.Close()
			overPeers.Close()
			w.grandfather(t, 1)
			w.attachGate(t)
			w.grandfather(t, 0)
			for name, c := range map[string]net.Conn{"live": pods, "closed": over} {
				if flow, ok := near(c); ok {
					t.Errorf("the gate knows a %s connection to the waypoint: %+v", name, flow)
				}
			}
			before := w.counters(t).Dropped[DropNoFlow].In.Packets
			if err := peers.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := peers.Write([]byte("header")); err != nil {
				t.Fatal(err)
			}
			if err := pods.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if n, err := pods.Read(make([]byte, 16)); err == nil {
				t.Errorf("the waypoint read %d bytes", n)
			}
			if after := w.counters(t).Dropped[DropNoFlow].In.Packets; after == before {
				t.Error("the gate has not dropped what the waypoint did not read")
			}
			if err := exchange(last, lastPeers, 500*time.Millisecond); err == nil {
				t.Error("what the waypoint sends leaves the pod")
			}
			if err := exchange(other, others, 3*time.Second); err != nil {
				t.Errorf("a connection to another port: %v", err)
			}
		})
	}
	t.Run("kept by an earlier version", func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.WaypointPort = 1 })
		l := w.listen(t, w.pod, 0, hostPort(pod4, 15009))
		peers, err := w.dial(t, w.peer, 0, l.Addr().String(), 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		pods, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer pods.Close()
		w.grandfather(t, 1)
		w.attachGate(t)
		if err := exchange(peers, pods, 3*time.Second); err != nil {
			t.Fatal(err)
		}
		w.bpf.cfg.WaypointPort = 15009
		w.node.Must(t, w.p.Refresh)
		if err := exchange(peers, pods, 500*time.Millisecond); err == nil {
			t.Error("it goes on")
		}
	})
}

// TestRevokedKeepsNoOldConnection: when a pod's identity is revoked, the gate passes nothing
// more of what was open before the pod was enrolled, whoever opened it, and says of each
// connection once that it has ended; another pod's go on. Nothing brings them back: neither
// a restart of the agent nor that the identity is revoked no longer.
func TestRevokedKeepsNoOldConnection(t *testing.T) {
	w := newWorld(t)
	pods, peers := w.pairs(t)
	other := w.config // the peer is another pod of the node
	other.Name, other.ID, other.NetNS = "other", 8, w.peer.Fd()
	other.HostIfindex, other.PodIfindex = ifindex(t, w.node, "vpeer"), ifindex(t, w.peer, "eth0")
	other.Addresses = []netip.Addr{netip.MustParseAddr(peer4), netip.MustParseAddr(peer6)}
	near, far := w.connect(t, w.node, w.peer, hostPort(peer4, 0))
	var another *Pod
	w.node.Must(t, func() (err error) {
		another, err = w.bpf.Pod(other)
		return err
	})
	t.Cleanup(func() { w.node.Must(t, another.Remove) })
	if n, err := another.Grandfather(); err != nil || n != len(peers)+1 {
		t.Fatalf("of the other pod %d, %v", n, err)
	}
	w.grandfather(t, len(pods))
	w.attachGate(t)
	w.node.Must(t, another.AttachGate)
	for i := range pods {
		if err := exchange(pods[i], peers[i], 3*time.Second); err != nil {
			t.Fatalf("connection %d before: %v", i, err)
		}
	}

	w.update(t, func(c *PodConfig) { c.Revoked = true })
	before := w.counters(t).Grandfathered
	ended := w.p.TakeEnded()
	if len(ended) != len(pods) || len(w.p.TakeEnded()) > 0 {
		t.Errorf("of %d connections that ended %d are told of: %+v", len(pods), len(ended), ended)
	}
	silent := func(when string) {
		t.Helper()
		for i := range pods {
			if err := errors.Join(pods[i].SetDeadline(time.Time{}), peers[i].SetDeadline(time.Time{})); err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(ended, func(e FlowEntry) bool {
				return e.Kind == FlowGrandfathered && e.Local == addrPort(pods[i].LocalAddr()) && e.Remote == addrPort(pods[i].RemoteAddr())
			}) {
				t.Errorf("%s: nothing says that connection %d has ended", when, i)
			}
			for name, ends := range map[string][2]net.Conn{"leaves": {pods[i], peers[i]}, "enters": {peers[i], pods[i]}} {
				if _, err := ends[0].Write([]byte("secret")); err != nil {
					t.Error(err)
				}
				if err := ends[1].SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				if n, err := ends[1].Read(make([]byte, 16)); err == nil {
					t.Errorf("%s: %d bytes of connection %d: %s the pod", when, n, i, name)
				}
			}
		}
		if after := w.counters(t).Grandfathered; after != before {
			t.Errorf("%s: packets passed: %+v, then %+v", when, before, after)
		}
		if err := exchange(near, far, 3*time.Second); err != nil {
			t.Errorf("%s: a connection of another pod: %v", when, err)
		}
	}
	silent("revoked")
	w.grandfather(t, 0)
	if err := w.p.Close(); err != nil {
		t.Fatal(err)
	}
	w.enroll(t) // as the next agent adopts it
	silent("adopted")
	w.update(t, func(c *PodConfig) { c.Revoked = false })
	silent("revoked no longer")
	if again := append(w.p.TakeEnded(), another.TakeEnded()...); len(again) > 0 {
		t.Errorf("more have ended: %+v", again)
	}
}

// TestRevokedIsEnrolledWithoutConnections: a pod whose identity is revoked before it is
// enrolled loses what it has open as one that is enrolled.
func TestRevokedIsEnrolledWithoutConnections(t *testing.T) {
	w := newTopology(t)
	w.bpf = newNode(t)
	w.config.Revoked = true
	w.enroll(t)
	pods, peers := w.pairs(t)
	w.grandfather(t, 0)
	w.attachGate(t)
	w.grandfather(t, 0)
	if ended := w.p.TakeEnded(); len(ended) != len(pods) {
		t.Errorf("of %d connections that ended %d are told of", len(pods), len(ended))
	}
	for i := range pods {
		if err := exchange(pods[i], peers[i], 200*time.Millisecond); err == nil {
			t.Errorf("connection %d goes on", i)
		}
		if err := exchange(peers[i], pods[i], 200*time.Millisecond); err == nil {
			t.Errorf("connection %d goes on to the pod", i)
		}
	}
	if c := w.counters(t).Grandfathered; c != (Traffic{}) {
		t.Errorf("packets passed: %+v", c)
	}
}

func TestGrandfatherEnds(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.GrandfatherFor = 500 * time.Millisecond })
	pods, peers := w.pairs(t)
	w.grandfather(t, len(pods))
	w.attachGate(t)
	time.Sleep(700 * time.Millisecond)
	w.grandfather(t, 0)
	if err := exchange(pods[0], peers[0], 300*time.Millisecond); err == nil {
		t.Error("a grandfathered connection outlived its time")
	}
	if n, err := w.p.ExpireFlows(time.Hour); n != len(pods) || err != nil {
		t.Errorf("expired %d, %v", n, err)
	}
	ended := w.p.TakeEnded()
	if len(ended) != len(pods) || len(w.p.TakeEnded()) > 0 || slices.ContainsFunc(ended, func(e FlowEntry) bool { return e.Remaining > 0 }) {
		t.Errorf("of %d connections whose time is over it says %+v", len(pods), ended)
	}
}

func TestAdopt(t *testing.T) {
	w := newWorld(t)
	echo(t, w.listen(t, w.peer, 0, hostPort(peer4, 7000)), "peer")
	w.attachGate(t)
	if err := errors.Join(w.p.AttachRedirect(), w.p.AttachRefusal()); err != nil {
		t.Fatal(err)
	}
	w.capturing(t)
	live, err := w.agentDial(t, ClassTunnel, "", hostPort(peer4, 7000))
	if err != nil {
		t.Fatal(err)
	}
	before := w.counters(t)
	// The agent dies: its handles go, nothing else does.
	if err := errors.Join(w.p.Close(), w.bpf.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.dial(t, w.pod, 0, hostPort(peer4, 7000), 300*time.Millisecond); err == nil {
		t.Error("connected with the agent dead")
	}
	next, err := Load(w.bpf.cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.bpf.stamps, w.bpf.drops, w.bpf.stamp, w.bpf.vacant, w.bpf.vacantUntil = next.stamps, next.drops, next.stamp, next.vacant, next.vacantUntil
	names, err := next.Pods()
	if err != nil || len(names) != 1 || names[0] != "pod" {
		t.Errorf("pods to adopt: %v, %v", names, err)
	}
	old := w.p.enrolment
	w.node.Must(t, func() error {
		p, err := next.Pod(w.config)
		if err == nil {
			w.p = p
		}
		return err
	})
	if w.p.enrolment != old {
		t.Error("adoption counts as a new enrolment")
	}
	if len(w.p.links) == 0 && !hasFilters(t, w) {
		t.Error("nothing was adopted")
	}
	if _, err := ask(live); err != nil {
		t.Errorf("the connection of the agent's socket did not survive: %v", err)
	}
	if after := w.counters(t); after.Tunnel.Out.Bytes <= before.Tunnel.Out.Bytes {
		t.Error("the counters began anew")
	}
	w.node.Must(t, w.p.CheckGate)
	w.agentListenAll(t)
	c, err := w.dial(t, w.pod, 0, hostPort(peer4, 7000), time.Second)
	if line := w.reached(t, c, err); !strings.HasPrefix(line, "outbound") {
		t.Errorf("after adoption the app reached %q", line)
	}
}

func hasFilters(t *testing.T, w *world) (found bool) {
	w.node.Must(t, func() error {
		ours, _, err := ourFilter(places()[0], w.config.HostIfindex)
		found = ours != nil
		return err
	})
	return found
}

func TestRemoveLeavesNothing(t *testing.T) {
	w := newTopology(t)
	list := func() string {
		var out strings.Builder
		for _, at := range []struct {
			ns    *testenv.NetNS
			index int
		}{{w.node, w.config.HostIfindex}, {w.pod, w.config.PodIfindex}, {w.pod, loopbackIfindex}} {
			at.ns.Must(t, func() error {
				qdiscs, err := netlink.QdiscList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: at.index}})
				for _, q := range qdiscs {
					fmt.Fprintln(&out, q)
				}
				l, linkErr := netlink.LinkByIndex(at.index)
				if linkErr != nil {
					return linkErr
				}
				fmt.Fprintln(&out, "queue length", l.Attrs().TxQLen)
				for _, pl := range places()[:2] {
					// Kernels before 6.6 do not know the query.
					if r, err := link.QueryPrograms(link.QueryOptions{Target: at.index, Attach: pl.attachType()}); err == nil {
						fmt.Fprintln(&out, r.Programs)
					}
				}
				return err
			})
		}
		return out.String()
	}
	before := list()
	n, err := Load(nodeConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	w.bpf = n
	w.node.Must(t, func() (err error) {
		w.p, err = n.Pod(w.config)
		return err
	})
	w.attachGate(t)
	if err := errors.Join(w.p.AttachRedirect(), w.p.AttachRefusal()); err != nil {
		t.Fatal(err)
	}
	if list() == before {
		t.Error("attaching shows nowhere")
	}
	w.node.Must(t, w.p.Remove)
	if after := list(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	w.node.Must(t, func() (err error) {
		w.p, err = n.Pod(w.config)
		return err
	})
	w.attachGate(t)
	if err := w.p.Close(); err != nil {
		t.Error(err)
	}
	objects, err := kernelstate.Pinned(n.cfg.PinDir)
	if err != nil || len(objects) < 10 {
		t.Errorf("pinned are %v, %v", objects, err)
	}
	if programs, err := kernelstate.CgroupPrograms(n.cfg.CgroupPath); err != nil || len(programs) != 1 {
		t.Errorf("the agent's cgroup has %q, %v", programs, err)
	}
	w.node.Must(t, n.Remove) // takes its pods with it
	if !slices.ContainsFunc(objects, func(o kernelstate.Object) bool {
		return o.Kind == "link" && strings.HasSuffix(o.Pin, "/"+linkNames()[0])
	}) {
		objects = nil // before 6.6 filters inside a pod's namespace, which has no name here, go with it
	}
	var left []kernelstate.Object
	t.Cleanup(func() {
		if len(left) > 0 {
			t.Logf("left are %v", left)
		}
	})
	testenv.Eventually(t, 10*time.Second, "the kernel has none of the objects that were pinned", func() bool {
		if left, err = kernelstate.Alive(objects); err != nil {
			t.Fatal(err)
		}
		return len(left) == 0
	})
	if programs, err := kernelstate.CgroupPrograms(n.cfg.CgroupPath); err != nil || len(programs) > 0 {
		t.Errorf("the agent's cgroup has %q, %v", programs, err)
	}
	if _, err := os.Stat(n.cfg.PinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins are left: %v", err)
	}
}

func TestCheckGate(t *testing.T) {
	w := newWorld(t)
	check := func(want string) {
		t.Helper()
		err := w.node.Do(w.p.CheckGate)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	check("not attached")
	w.attachGate(t)
	check("")
	other := newNode(t)
	w.node.Must(t, func() error {
		cfg := w.config
		cfg.Name = "other"
		p, err := other.Pod(cfg)
		if err != nil {
			return err
		}
		t.Cleanup(func() { w.node.Must(t, p.Remove) })
		if len(w.p.links) == 0 {
			return nil // clsact: one filter of ours replaces the other
		}
		if err := p.AttachGate(); err != nil {
			return err
		}
		check("before the gate")
		return p.DetachGate()
	})
	check("")
}

// TestDeathOfAgent is the fail-closed promise: an agent that is killed leaves a
// pod from which nothing gets out or in.
func TestDeathOfAgent(t *testing.T) {
	for name, moved := range map[string]int{"attached": -1, "held": 0, "one moved": 1, "two moved": 2, "three moved": 3} {
		t.Run(name, func(t *testing.T) { deathOfAgent(t, moved) })
	}
}

// deathOfAgent kills an agent that has moved so many of the filters by which it has held the gate
// to where they stay; -1: that has attached it at once.
func deathOfAgent(t *testing.T, moved int) {
	w := newTopology(t)
	w.bpf = newNode(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestAgentProcess$", "-test.v")
	cmd.Env = append(os.Environ(), "HEDDLE_TEST_AGENT="+strings.Join([]string{
		w.bpf.cfg.PinDir, w.bpf.cfg.CgroupPath, w.node.Path, w.pod.Path, fmt.Sprint(w.config.HostIfindex), fmt.Sprint(w.config.PodIfindex), fmt.Sprint(moved),
	}, ","))
	alive, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for s := bufio.NewScanner(out); s.Scan(); {
		if said = append(said, s.Text()); strings.Contains(s.Text(), "READY") {
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("agent: %v\n%s", err, strings.Join(said, "\n"))
	}
	for _, host := range []string{peer4, peer6} {
		echo(t, w.listen(t, w.peer, 0, hostPort(host, 7000)), "peer")
	}
	for _, host := range []string{pod4, pod6} {
		echo(t, w.listen(t, w.pod, 0, hostPort(host, 8080)), "app")
	}
	for from, to := range map[*testenv.NetNS]string{w.pod: peer4, w.peer: pod4} {
		port := map[string]int{peer4: 7000, pod4: 8080}[to]
		if _, err := w.dial(t, from, 0, hostPort(to, port), 300*time.Millisecond); err == nil {
			t.Errorf("connected to %s with the agent dead", to)
		}
	}
	names, err := filepath.Glob(filepath.Join(w.bpf.dir, "pods", "*"))
	if err != nil || len(names) != 1 {
		t.Errorf("pins: %v %v", names, err)
	}
	w.enroll(t) // and the next agent adopts it
	w.attachGate(t)
	w.wantWhole(t)
	if c := w.counters(t); len(c.Dropped) == 0 {
		t.Errorf("no drops were counted while the agent was dead: %+v", c)
	}
}

// TestAgentProcess is the process that TestDeathOfAgent kills; on its own it
// does nothing.
func TestAgentProcess(t *testing.T) {
	args := strings.Split(os.Getenv("HEDDLE_TEST_AGENT"), ",")
	if len(args) != 7 {
		return
	}
	runDoomedAgent(t, args)
}
