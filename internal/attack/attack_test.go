package attack

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func ends(t *testing.T, six bool) aim {
	t.Helper()
	a := aim{pod: netip.MustParseAddr("10.1.0.2"), peer: netip.MustParseAddr("10.2.0.2"), forged: netip.MustParseAddr("10.3.0.2"), port: 80, tunnelPort: 15008}
	if six {
		a = aim{pod: netip.MustParseAddr("fd01::2"), peer: netip.MustParseAddr("fd02::2"), forged: netip.MustParseAddr("fd03::2"), port: 80, tunnelPort: 15008}
	}
	a.app, a.client = netip.AddrPortFrom(a.pod, 9000), netip.AddrPortFrom(a.peer, 40000)
	return a
}

// disguises are the layers that another implementation must find in packets of that name.
var disguises = map[string][]gopacket.LayerType{
	"IPv4 in IP":        {layers.LayerTypeIPv4, layers.LayerTypeTCP},
	"IPv6 in IP":        {layers.LayerTypeIPv6, layers.LayerTypeTCP},
	"UDP to 15008":      {layers.LayerTypeUDP},
	"IPPROTO_RAW, UDP":  {layers.LayerTypeUDP},
	"routing header":    {layers.LayerTypeIPv6Routing, layers.LayerTypeTCP},
	"hop-by-hop header": {layers.LayerTypeIPv6HopByHop, layers.LayerTypeTCP},
	"chain of headers":  {layers.LayerTypeIPv6HopByHop, layers.LayerTypeIPv6Destination, layers.LayerTypeIPv6Routing, layers.LayerTypeTCP},
	"atomic fragment":   {layers.LayerTypeIPv6Fragment},
}

// TestPacketsAreWellFormed has another implementation read every packet: one
// that is malformed would be dropped for that, and show nothing.
func TestPacketsAreWellFormed(t *testing.T) {
	for _, six := range []bool{false, true} {
		a := ends(t, six)
		for _, attack := range append(a.outbound(), a.inbound()...) {
			if attack.craft == nil {
				continue
			}
			first := layers.LayerTypeIPv4
			if six {
				first = layers.LayerTypeIPv6
			}
			for _, data := range attack.craft(1234, []byte("a marker of some length, and a bit")).encode() {
				p := gopacket.NewPacket(data, first, gopacket.Default)
				if e := p.ErrorLayer(); e != nil && attack.name != "fragments" && attack.name != "other protocol" {
					t.Errorf("%s, v6 %v: %v", attack.name, six, e.Error())
				}
				if attack.name == "ping" {
					isEcho(t, p)
				}
				for _, layer := range disguises[attack.name] {
					if p.Layer(layer) == nil {
						t.Errorf("%s, v6 %v: no %v in %v", attack.name, six, layer, p)
					}
				}
				if tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP); ok {
					checkSum(t, attack.name, p, tcp)
				}
			}
		}
	}
}

// isEcho wants an echo request whose checksum is good: over a message with it in place the sum is 0.
func isEcho(t *testing.T, p gopacket.Packet) {
	t.Helper()
	if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		if sum := checksum(append(slices.Clone(icmp.Contents), icmp.Payload...)); icmp.TypeCode.Type() != layers.ICMPv4TypeEchoRequest || sum != 0 {
			t.Errorf("ping: %v, checksum off by %#x", icmp.TypeCode, sum)
		}
		return
	}
	icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	if !ok || icmp.TypeCode.Type() != layers.ICMPv6TypeEchoRequest {
		t.Fatalf("ping: %v", p)
	}
	ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	message := append(slices.Clone(icmp.Contents), icmp.Payload...)
	pseudo := slices.Concat(ip.SrcIP.To16(), ip.DstIP.To16(), []byte{0, 0, 0, byte(len(message)), 0, 0, 0, unix.IPPROTO_ICMPV6}, message)
	if sum := checksum(pseudo); sum != 0 {
		t.Errorf("ping: checksum is off by %#x", sum)
	}
}

func checkSum(t *testing.T, name string, p gopacket.Packet, tcp *layers.TCP) {
	t.Helper()
	var network gopacket.NetworkLayer // the one around it, of several
	for _, l := range p.Layers() {
		if n, ok := l.(gopacket.NetworkLayer); ok {
			network = n
		}
	}
	if err := tcp.SetNetworkLayerForChecksum(network); err != nil {
		t.Fatal(err)
	}
	if have, err := tcp.ComputeChecksum(); err != nil || have != 0 {
		// Over a segment with its checksum in place the sum is 0.
		t.Errorf("%s: checksum is off by %#x, %v", name, have, err)
	}
}

func TestSign(t *testing.T) {
	for _, six := range []bool{false, true} {
		a := ends(t, six)
		for _, attack := range a.outbound() {
			if attack.craft == nil {
				continue
			}
			s := signOf(a, attack, 1234, []byte("marker-one"))
			other := attack.craft(4321, []byte("marker-two"))
			found := false
			for _, data := range attack.craft(1234, []byte("marker-one")).encode() {
				found = found || s.in(data)
			}
			if !found {
				t.Errorf("%s: its own packet is not recognized", attack.name)
			}
			for _, data := range other.encode() {
				if s.in(data) {
					t.Errorf("%s: another packet is taken for its own", attack.name)
				}
			}
		}
	}
}

// world is a pod, its node and a peer behind it.
func world(t *testing.T) Config {
	t.Helper()
	pod, node, peer := testenv.NewNetNS(t, "pod"), testenv.NewNetNS(t, "node"), testenv.NewNetNS(t, "peer")
	testenv.Veth(t, pod, "eth0", []string{"10.1.0.2/24", "fd01::2/64"}, node, "pod0", []string{"10.1.0.1/24", "fd01::1/64"})
	testenv.Veth(t, peer, "eth0", []string{"10.2.0.2/24", "fd02::2/64"}, node, "peer0", []string{"10.2.0.1/24", "fd02::1/64"})
	for _, ns := range []*testenv.NetNS{pod, peer} {
		gateway, gateway6 := "10.1.0.1", "fd01::1"
		if ns == peer {
			gateway, gateway6 = "10.2.0.1", "fd02::1"
		}
		testenv.DefaultRoute(t, ns, gateway)
		testenv.DefaultRoute(t, ns, gateway6)
	}
	addrs := func(list ...string) (out []netip.Addr) {
		for _, s := range list {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	other := Pod{NetNS: peer.Path, Node: node.Path, Addresses: addrs("10.2.0.2", "fd02::2")}
	return Config{
		Target: Pod{NetNS: pod.Path, Node: node.Path, Addresses: addrs("10.1.0.2", "fd01::2")},
		Peer:   other, Other: Pod{Addresses: addrs("10.3.0.9", "fd03::9")}, Port: 8080,
	}
}

// TestWithoutAGateEverythingGetsThrough shows that the tap sees what there is to
// see: with a deaf tap the suite would praise any gate.
func TestWithoutAGateEverythingGetsThrough(t *testing.T) {
	cfg := world(t)
	var reads atomic.Uint64
	// Rises at every other read, so that nothing waits for it: a quiet reading
	// takes two.
	cfg.Dropped = func(context.Context) (map[string]uint64, error) {
		return map[string]uint64{"KernelUnstamped": (reads.Add(1) + 1) / 2}, nil
	}
	tried := 0
	err := Run(t.Context(), cfg, func(r Result) {
		tried++
		if r.Direction == "outbound" && !r.Control {
			t.Errorf("%s %s %s: the twin was not seen", r.Direction, r.Family, r.Name)
		}
		// The kernel itself refuses its own address from outside.
		if r.Through == 0 && r.Name != "forged source" || r.Held() && r.Name != "forged source" {
			t.Errorf("%s %s %s: not seen although nothing stops it", r.Direction, r.Family, r.Name)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if tried != 80 {
		t.Errorf("%d attacks, want 80", tried)
	}
}

// wall drops every frame at the host side of the pod's veth.
func wall(t *testing.T, node string) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "BSD", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, int32(netlink.TC_ACT_SHOT)), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	err = inside(node, func() error {
		pod, err := netlink.LinkByName("pod0")
		if err != nil {
			return err
		}
		at := netlink.QdiscAttrs{LinkIndex: pod.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: at}); err != nil {
			return err
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			attrs := netlink.FilterAttrs{LinkIndex: pod.Attrs().Index, Parent: parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL}
			if err := netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: attrs, Fd: prog.FD(), Name: "wall", DirectAction: true}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestBehindAWallNothingGetsThrough has nothing pass from or to the pod.
func TestBehindAWallNothingGetsThrough(t *testing.T) {
	cfg := world(t)
	var reads atomic.Uint64
	cfg.Dropped = func(context.Context) (map[string]uint64, error) {
		return map[string]uint64{"KernelUnstamped": (reads.Add(1) + 1) / 2}, nil
	}
	wall(t, cfg.Target.Node)
	if err := Run(t.Context(), cfg, func(r Result) {
		if !r.Held() {
			t.Errorf("%s %s %s: %+v", r.Direction, r.Family, r.Name, r)
		}
	}); err != nil {
		t.Fatal(err)
	}
	err := inside(cfg.Target.Node, func() error {
		if _, err := netlink.LinkByName(openLinkName); err == nil {
			t.Error("the link without a gate was left behind")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestHeldNeedsProof(t *testing.T) {
	rose := []Rise{{"KernelUnstamped", 1, 2}}
	for _, tc := range []struct {
		r    Result
		want bool
	}{
		{Result{Direction: "outbound", Control: true, Reasons: rose}, true},
		{Result{Direction: "inbound", Reasons: rose}, true},
		{Result{Direction: "outbound", Reasons: rose}, false},
		{Result{Direction: "outbound", Control: true}, false},
		{Result{Direction: "outbound", Control: true, Reasons: rose, Through: 1}, false},
	} {
		if got := tc.r.Held(); got != tc.want {
			t.Errorf("%+v: held is %v", tc.r, got)
		}
	}
}

func TestTargetsThatAreNotThere(t *testing.T) {
	missing := "/run/netns/heddle-no-such"
	if _, err := os.Stat(missing); err == nil {
		t.Fatal("it is there")
	}
	for _, cfg := range []Config{{}, {Target: Pod{NetNS: missing, Node: missing, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.2")}}}} {
		if err := Run(t.Context(), cfg, nil); err == nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
}
