package bpf

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

const strange4, strange6 = "10.77.0.1", "fd77::1" // nobody's addresses

// packetCase is one frame at one hook of the host side.
type packetCase struct {
	name  string
	in    bool // from the wire to the pod
	frame []byte
	drop  DropReason // 0: passes
	as    FlowKind   // what it passes as
}

// runCases runs frames through the programs (BPF_PROG_RUN), where a packet
// from the pod has a full socket that is nobody's.
func runCases(t *testing.T, p *Pod, cases []packetCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			name := gateProgHostOutbound
			if c.in {
				name = gateProgHostInbound
			}
			before := readCounters(t, p)
			verdict, err := p.program(name).Run(&ebpf.RunOptions{Data: c.frame})
			if err != nil {
				t.Fatalf("run: %v", err)
			}
			after := readCounters(t, p)
			if dropped := verdict == 2; dropped != (c.drop != 0) {
				t.Errorf("verdict %d, want drop for %v", int32(verdict), c.drop)
			}
			for _, r := range DropReasons() {
				if got := dropped(after, r) - dropped(before, r); (got != 0) != (r == c.drop) {
					t.Errorf("counted %d drops for %v, want them for %v", got, r, c.drop)
				}
			}
			if c.as == 0 {
				return
			}
			if a, b := passedAs(after)[c.as], passedAs(before)[c.as]; a.Out.Packets+a.In.Packets != b.Out.Packets+b.In.Packets+1 {
				t.Errorf("did not pass as %v: %+v, then %+v", c.as, before, after)
			}
		})
	}
}

func passedAs(c Counters) map[FlowKind]Traffic {
	return map[FlowKind]Traffic{
		FlowTunnel: c.Tunnel, FlowEgress: c.Egress, FlowProbe: c.Probe, FlowPermissive: c.Permissive,
		FlowGrandfathered: c.Grandfathered, FlowDatagram: c.Datagram, FlowControl: c.Control,
	}
}

func readCounters(t testing.TB, p *Pod) Counters {
	t.Helper()
	c, err := p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// seed writes a flow as a handshake would have.
func seed(t testing.TB, p *Pod, table, local, remote string, f gateFlow) {
	t.Helper()
	now, err := monotonic()
	if err != nil {
		t.Fatal(err)
	}
	f.LastSeen = now
	if err := p.maps[table].Put(toTuple(netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote)), f); err != nil {
		t.Fatal(err)
	}
}

// lonePod is a pod of which only the programs are of interest.
func lonePod(t testing.TB, change ...func(*PodConfig)) *Pod {
	t.Helper()
	n := newNode(t)
	cfg := PodConfig{
		Name: "lone", ID: 9, NetNS: -1, HostIfindex: 1,
		Addresses: []netip.Addr{netip.MustParseAddr(pod4), netip.MustParseAddr(pod6)},
	}
	for _, fn := range change {
		fn(&cfg)
	}
	p, err := n.Pod(cfg)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := p.Remove(); err != nil {
			t.Errorf("remove the pod: %v", err)
		}
	})
	return p
}

// family runs a test for IPv4 and IPv6.
func family(t *testing.T, fn func(t *testing.T, pod, peer, strange string)) {
	t.Run("v4", func(t *testing.T) { fn(t, pod4, peer4, strange4) })
	t.Run("v6", func(t *testing.T) { fn(t, pod6, peer6, strange6) })
}

func TestRunTCPOutbound(t *testing.T) {
	p := lonePod(t)
	family(t, func(t *testing.T, pod, peer, strange string) {
		seed(t, p, gateMapFlows, hostPort(pod, 1000), hostPort(peer, 15008), gateFlow{Kind: uint8(FlowTunnel)})
		runCases(t, p, []packetCase{
			{name: "syn of an app", frame: ip(pod, peer, protoTCP, tcp(999, 80, syn)), drop: DropUnstamped},
			{name: "raw ack on a live flow", frame: ip(pod, peer, protoTCP, tcp(1000, 15008, ack)), drop: DropUnstamped},
			{name: "data on a live flow", frame: ip(pod, peer, protoTCP, tcp(1000, 15008, ack|psh, 'x')), drop: DropUnstamped},
			{name: "syn-ack", frame: ip(pod, peer, protoTCP, tcp(15008, 80, syn|ack)), drop: DropUnstamped},
			{name: "forged source", frame: ip(strange, peer, protoTCP, tcp(999, 80, syn)), drop: DropForgedSource},
			{name: "syn and fin", frame: ip(pod, peer, protoTCP, tcp(999, 80, syn|fin)), drop: DropMalformed},
			{name: "truncated tcp", frame: ip(pod, peer, protoTCP, tcp(999, 80, syn)[:12]), drop: DropMalformed},
			{name: "header longer than packet", frame: ip(pod, peer, protoTCP, append(tcp(999, 80, ack)[:12], 0xf0, ack, 0, 0, 0, 0, 0, 0)), drop: DropMalformed},
			{name: "header shorter than a header", frame: ip(pod, peer, protoTCP, append(tcp(999, 80, ack)[:12], 0x10, ack, 0, 0, 0, 0, 0, 0)), drop: DropMalformed},
			{name: "trailer behind the packet", frame: pad(ip(pod, peer, protoTCP, tcp(999, 80, ack)), 8), drop: DropMalformed},
		})
	})
}

func TestRunTCPInbound(t *testing.T) {
	p := lonePod(t, func(c *PodConfig) {
		c.PortModes = map[uint16]Mode{8081: ModePermissive, 8082: ModeStrict}
		c.ProbePorts = []uint16{8083}
	})
	family(t, func(t *testing.T, pod, peer, strange string) {
		past := gateFlow{Kind: uint8(FlowGrandfathered), Deadline: 1}
		future := gateFlow{Kind: uint8(FlowGrandfathered), Deadline: 1 << 62}
		seed(t, p, gateMapFlows, hostPort(pod, 15008), hostPort(peer, 1000), gateFlow{Kind: uint8(FlowTunnel)})
		seed(t, p, gateMapTransient, hostPort(pod, 15008), hostPort(peer, 1001), gateFlow{Kind: uint8(FlowTunnel), Half: 2})
		seed(t, p, gateMapTransient, hostPort(pod, 15008), hostPort(peer, 1002), gateFlow{Kind: uint8(FlowTunnel), Half: 1})
		seed(t, p, gateMapTransient, hostPort(pod, 15008), hostPort(peer, 1003), gateFlow{Kind: uint8(FlowTunnel), FinIn: 1, FinOut: 1})
		seed(t, p, gateMapFlows, hostPort(pod, 80), hostPort(peer, 1004), past)
		seed(t, p, gateMapFlows, hostPort(pod, 80), hostPort(peer, 1005), future)
		if err := p.AddPassthru(netip.MustParseAddrPort(hostPort(peer, 2000)), netip.MustParseAddrPort(hostPort(pod, 8081))); err != nil {
			t.Fatal(err)
		}
		runCases(t, p, []packetCase{
			{name: "syn to the tunnel", in: true, frame: ip(peer, pod, protoTCP, tcp(999, 15008, syn)), as: FlowTunnel},
			{name: "syn with data", in: true, frame: ip(peer, pod, protoTCP, tcp(999, 15008, syn, 'x')), drop: DropSynPayload},
			{name: "data to the tunnel without a flow", in: true, frame: ip(peer, pod, protoTCP, tcp(998, 15008, ack|psh, 'x')), drop: DropNoFlow},
			{name: "data before the syn-ack", in: true, frame: ip(peer, pod, protoTCP, tcp(1002, 15008, ack|psh, 'x')), drop: DropNoFlow},
			{name: "data on a flow", in: true, frame: ip(peer, pod, protoTCP, tcp(1000, 15008, ack|psh, 'x')), as: FlowTunnel},
			{name: "last ack of the handshake", in: true, frame: ip(peer, pod, protoTCP, tcp(1001, 15008, ack)), as: FlowTunnel},
			{name: "fin again after the end", in: true, frame: ip(peer, pod, protoTCP, tcp(1003, 15008, fin|ack)), as: FlowTunnel},
			{name: "syn to a strict port", in: true, frame: ip(peer, pod, protoTCP, tcp(999, 80, syn)), drop: DropPlaintextInbound},
			{name: "syn to a port strict by name", in: true, frame: ip(peer, pod, protoTCP, tcp(999, 8082, syn)), drop: DropPlaintextInbound},
			{name: "syn to a permissive port", in: true, frame: ip(peer, pod, protoTCP, tcp(999, 8081, syn)), as: FlowPermissive},
			{name: "syn to a probe port from nobody", in: true, frame: ip(peer, pod, protoTCP, tcp(999, 8083, syn)), drop: DropPlaintextInbound},
			{name: "syn-ack of nobody's syn", in: true, frame: ip(peer, pod, protoTCP, tcp(80, 999, syn|ack)), drop: DropNoFlow},
			{name: "rst of no flow", in: true, frame: ip(peer, pod, protoTCP, tcp(80, 999, rst)), drop: DropNoFlow},
			{name: "syn on a passthru tuple", in: true, frame: ip(peer, pod, protoTCP, tcp(2000, 8081, syn)), drop: DropPassthruReuse},
			{name: "data on a passthru tuple", in: true, frame: ip(peer, pod, protoTCP, tcp(2000, 8081, ack, 'x')), drop: DropPassthruReuse},
			{name: "grandfathered", in: true, frame: ip(peer, pod, protoTCP, tcp(1005, 80, ack, 'x')), as: FlowGrandfathered},
			{name: "grandfathered too long", in: true, frame: ip(peer, pod, protoTCP, tcp(1004, 80, ack, 'x')), drop: DropNoFlow},
			{name: "to somebody else", in: true, frame: ip(peer, strange, protoTCP, tcp(999, 15008, syn)), drop: DropNoFlow},
			{name: "from the pod's own address", in: true, frame: ip(pod, pod, protoTCP, tcp(999, 15008, syn)), drop: DropForgedSource},
			{name: "padded by the wire", in: true, frame: pad(ip(peer, pod, protoTCP, tcp(997, 15008, syn)), 6), as: FlowTunnel},
		})
	})
}

func TestRunHeaders(t *testing.T) {
	p := lonePod(t)
	out := func(proto byte, payload []byte) []byte { return ip(pod4, peer4, proto, payload) }
	out6 := func(proto byte, payload []byte) []byte { return ip(pod6, peer6, proto, payload) }
	segment := tcp(999, 80, syn)
	var cases []packetCase
	for _, in := range []bool{false, true} {
		name := map[bool]string{false: "out/", true: "in/"}[in]
		add := func(c packetCase) {
			c.name, c.in = name+c.name, in
			cases = append(cases, c)
		}
		add(packetCase{name: "more fragments", frame: set(out(protoTCP, segment), 6, 0x20), drop: DropFragment})
		add(packetCase{name: "fragment offset", frame: set(out(protoTCP, segment), 7, 1), drop: DropFragment})
		add(packetCase{name: "options", frame: ipOptions(out(protoTCP, segment)), drop: DropIPOptions})
		add(packetCase{name: "short ihl", frame: set(out(protoTCP, segment), 0, 0x44), drop: DropMalformed})
		add(packetCase{name: "version 5", frame: set(out(protoTCP, segment), 0, 0x55), drop: DropMalformed})
		add(packetCase{name: "length beyond the frame", frame: set(out(protoTCP, segment), 3, 200), drop: DropMalformed})
		add(packetCase{name: "length below a header", frame: set(out(protoTCP, segment), 3, 10), drop: DropMalformed})
		add(packetCase{name: "sctp", frame: out(132, make([]byte, 20)), drop: DropProtocol})
		add(packetCase{name: "gre", frame: out(47, make([]byte, 20)), drop: DropProtocol})
		add(packetCase{name: "ip in ip", frame: out(4, quote(out(protoTCP, segment), 40)), drop: DropProtocol})
		add(packetCase{name: "v6 fragment", frame: extension(out6(protoTCP, segment), 44), drop: DropFragment})
		for kind, what := range map[byte]string{0: "hop-by-hop", 43: "routing", 60: "destination", 51: "authentication", 135: "mobility"} {
			add(packetCase{name: "v6 " + what, frame: extension(out6(protoTCP, segment), kind), drop: DropExtensionHeader})
		}
		add(packetCase{name: "v6 no next header", frame: out6(59, nil), drop: DropProtocol})
		add(packetCase{name: "v6 length beyond the frame", frame: set(out6(protoTCP, segment), 5, 200), drop: DropMalformed})
		add(packetCase{name: "v6 mapped address", frame: ip("::ffff:"+pod4, peer6, protoTCP, segment), drop: DropMalformed})
		add(packetCase{name: "vlan", frame: ethernet(0x8100, make([]byte, 40)), drop: DropProtocol})
		add(packetCase{name: "llc", frame: ethernet(0x26, make([]byte, 60)), drop: DropProtocol})
	}
	runCases(t, p, cases)
}

func TestRunDatagrams(t *testing.T) {
	p := lonePod(t)
	family(t, func(t *testing.T, pod, peer, strange string) {
		runCases(t, p, []packetCase{
			{name: "reply without a query", in: true, frame: ip(peer, pod, protoUDP, udp(53, 999)), drop: DropUDP},
			{name: "dns query", frame: ip(pod, peer, protoUDP, udp(999, 53, 'q')), as: FlowDatagram},
			{name: "dns reply", in: true, frame: ip(peer, pod, protoUDP, udp(53, 999, 'a')), as: FlowDatagram},
			{name: "dns reply from another", in: true, frame: ip(strange, pod, protoUDP, udp(53, 999, 'a')), drop: DropUDP},
			{name: "dns query from a forged source", frame: ip(strange, peer, protoUDP, udp(999, 53)), drop: DropForgedSource},
			{name: "other udp", frame: ip(pod, peer, protoUDP, udp(999, 123)), drop: DropUDP},
			{name: "dhcp", frame: ip(pod, peer, protoUDP, udp(68, 67)), drop: DropUDP},
			{name: "truncated udp", frame: ip(pod, peer, protoUDP, udp(999, 53)[:4]), drop: DropMalformed},
			{name: "udp length", frame: ip(pod, peer, protoUDP, append(udp(999, 53), 1, 2)), drop: DropMalformed},
		})
	})
	cfg := p.config()
	cfg.DenyDNS = true
	update(t, p, cfg)
	runCases(t, p, []packetCase{{name: "denied dns", frame: ip(pod4, peer4, protoUDP, udp(999, 53)), drop: DropUDP}})
	cfg.AllowUDP, cfg.DenyDNS, cfg.AllowEcho = true, false, true
	update(t, p, cfg)
	runCases(t, p, []packetCase{
		{name: "allowed udp out", frame: ip(pod4, peer4, protoUDP, udp(999, 123)), as: FlowDatagram},
		{name: "allowed udp in", in: true, frame: ip(peer4, pod4, protoUDP, udp(123, 998)), as: FlowDatagram},
		{name: "allowed echo", frame: ip(pod4, peer4, protoICMP, icmp(8)), as: FlowControl},
		{name: "allowed echo v6", in: true, frame: ip(peer6, pod6, protoICMPv6, icmp(129)), as: FlowControl},
		{name: "forged echo", frame: ip(strange4, peer4, protoICMP, icmp(8)), drop: DropForgedSource},
	})
}

func update(t *testing.T, p *Pod, cfg PodConfig) {
	t.Helper()
	if err := p.Update(cfg); err != nil {
		t.Fatal(err)
	}
}

func TestRunControl(t *testing.T) {
	p := lonePod(t)
	seed(t, p, gateMapFlows, hostPort(pod4, 1000), hostPort(peer4, 15008), gateFlow{Kind: uint8(FlowTunnel)})
	seed(t, p, gateMapFlows, hostPort(pod6, 1000), hostPort(peer6, 15008), gateFlow{Kind: uint8(FlowTunnel)})
	ours := quote(ip(pod4, peer4, protoTCP, tcp(1000, 15008, ack)), 28)
	foreign := quote(ip(pod4, peer4, protoTCP, tcp(1001, 15008, ack)), 28)
	ours6 := quote(ip(pod6, peer6, protoTCP, tcp(1000, 15008, ack)), 48)
	ll, solicited := "fe80::1", "ff02::1:ff00:2"
	hop := func(f []byte, limit byte) []byte { return set(f, 7, limit) }
	target := func(a string) []byte { return netip.MustParseAddr(a).AsSlice() }
	runCases(t, p, []packetCase{
		{name: "arp request", frame: arp(1, pod4, node4), as: FlowControl},
		{name: "arp probe", frame: arp(1, "0.0.0.0", pod4), as: FlowControl},
		{name: "arp spoof", frame: arp(2, node4, peer4), drop: DropForgedSource},
		{name: "arp with a trailer", frame: pad(arp(1, pod4, node4), 10), drop: DropMalformed},
		{name: "arp in", in: true, frame: pad(arp(2, node4, pod4), 18), as: FlowControl},
		{name: "arp in as the pod", in: true, frame: arp(2, pod4, pod4), drop: DropForgedSource},
		{name: "arp of another protocol", frame: func() []byte { f := arp(1, pod4, node4); f[16] = 9; return f }(), drop: DropMalformed},
		{name: "echo", frame: ip(pod4, peer4, protoICMP, icmp(8)), drop: DropICMP},
		{name: "echo v6", frame: ip(pod6, peer6, protoICMPv6, icmp(128)), drop: DropICMP},
		{name: "timestamp", frame: ip(pod4, peer4, protoICMP, icmp(13)), drop: DropICMP},
		{name: "error out", frame: ip(pod4, peer4, protoICMP, icmp(3, ours...)), drop: DropICMP},
		{name: "error out v6", frame: ip(pod6, peer6, protoICMPv6, icmp(1, ours6...)), drop: DropICMP},
		{name: "error in", in: true, frame: ip(node4, pod4, protoICMP, icmp(3, ours...)), as: FlowControl},
		{name: "error in of no flow", in: true, frame: ip(node4, pod4, protoICMP, icmp(3, foreign...)), drop: DropICMP},
		{name: "error in with a short quote", in: true, frame: ip(node4, pod4, protoICMP, icmp(3, ours[:22]...)), drop: DropICMP},
		{name: "error in v6", in: true, frame: ip(node6, pod6, protoICMPv6, icmp(2, ours6...)), as: FlowControl},
		{name: "redirect in", in: true, frame: ip(node4, pod4, protoICMP, icmp(5, ours...)), drop: DropICMP},
		{name: "icmpv6 in ipv4", frame: ip(pod4, peer4, protoICMPv6, icmp(135)), drop: DropProtocol},
		{name: "neighbour solicitation", frame: hop(ip(pod6, "ff02::1:ff00:1", protoICMPv6, icmp(135, target(node6)...)), 255), as: FlowControl},
		{name: "duplicate address detection", frame: hop(ip("::", "ff02::1:ff00:2", protoICMPv6, icmp(135, target(pod6)...)), 255), as: FlowControl},
		{name: "solicitation that was routed", frame: ip(pod6, node6, protoICMPv6, icmp(135, target(node6)...)), drop: DropICMP},
		{name: "solicitation with a load", frame: hop(ip(pod6, node6, protoICMPv6, icmp(135, make([]byte, 100)...)), 255), drop: DropICMP},
		{name: "solicitation from a forged source", frame: hop(ip(strange6, node6, protoICMPv6, icmp(135, target(node6)...)), 255), drop: DropForgedSource},
		{name: "neighbour advertisement", frame: hop(ip(pod6, node6, protoICMPv6, icmp(136, target(pod6)...)), 255), as: FlowControl},
		{name: "advertisement of another", frame: hop(ip(pod6, node6, protoICMPv6, icmp(136, target(node6)...)), 255), drop: DropForgedSource},
		{name: "router solicitation", frame: hop(ip(ll, "ff02::2", protoICMPv6, icmp(133)), 255), as: FlowControl},
		{name: "router advertisement out", frame: hop(ip(ll, "ff02::1", protoICMPv6, icmp(134)), 255), drop: DropICMP},
		{name: "router advertisement in", in: true, frame: hop(ip(ll, "ff02::1", protoICMPv6, icmp(134)), 255), as: FlowControl},
		{name: "neighbour advertisement in", in: true, frame: hop(ip(node6, pod6, protoICMPv6, icmp(136, target(node6)...)), 255), as: FlowControl},
		{name: "routed advertisement in", in: true, frame: ip(node6, pod6, protoICMPv6, icmp(136, target(node6)...)), drop: DropICMP},
		{name: "mld report off the link", frame: routerAlert(hop(ip(pod6, peer6, protoICMPv6, mld2Report(solicited)), 1)), drop: DropICMP},
		{name: "mld without router alert", frame: hop(ip(ll, "ff02::16", protoICMPv6, mld2Report(solicited)), 1), drop: DropICMP},
		{name: "mld report from a forged source", frame: routerAlert(hop(ip(strange6, "ff02::16", protoICMPv6, mld2Report(solicited)), 1)), drop: DropForgedSource},
		{name: "mld query in", in: true, frame: routerAlert(hop(ip(ll, "ff02::1", protoICMPv6, icmp(130, make([]byte, 16)...)), 1)), as: FlowControl},
		{name: "echo with router alert", frame: routerAlert(ip(pod6, peer6, protoICMPv6, icmp(128))), drop: DropICMP},
		{name: "truncated icmp", frame: ip(pod4, peer4, protoICMP, []byte{8}), drop: DropMalformed},
	})
}

// TestRunMulticastListeners: reports and dones of both versions of MLD pass as a kernel
// sends them, in both directions, and carry nothing else.
func TestRunMulticastListeners(t *testing.T) {
	p := lonePod(t)
	const solicited, all, reports, routers = "ff02::1:ff00:2", "ff02::fb", "ff02::16", "ff02::2"
	data := make([]byte, 16)
	many := func(n int) []byte { return mld2Report(slices.Repeat([]string{solicited}, n)...) }
	changed := func(m []byte, at int, value byte) []byte { m[at] = value; return m }
	var cases []packetCase
	for _, c := range []struct {
		name    string
		to      string
		message []byte
		passes  bool
	}{
		{"v1 report", solicited, mldReport(131, solicited), true},
		{"v1 report with data", solicited, mldReport(131, solicited, data...), false},
		{"v1 report that is short", solicited, icmp(131, data[:15]...), false},
		{"v1 report of another group", solicited, mldReport(131, all), false},
		{"v1 report with a delay", solicited, changed(mldReport(131, solicited), 4, 1), false},
		{"v1 report with its reserved bytes in use", solicited, changed(mldReport(131, solicited), 7, 1), false},
		{"v1 report with a code", solicited, changed(mldReport(131, solicited), 1, 1), false},
		{"v1 done", routers, mldReport(132, all), true},
		{"v1 done to a group", all, mldReport(132, all), false},
		{"v1 done with data", routers, mldReport(132, all, data...), false},
		{"v1 done of no group", routers, icmp(132, data...), false},
		{"v2 report", reports, mld2Report(solicited), true},
		{"v2 report of several groups", reports, mld2Report(solicited, all, "ff05::1:3"), true},
		{"v2 report of as many groups as fit", reports, many(16), true},
		{"v2 report of more groups", reports, many(17), false},
		{"v2 report of none", reports, mld2Report(), false},
		{"v2 report to a group", all, mld2Report(all), false},
		{"v2 report with data behind", reports, append(mld2Report(solicited), data...), false},
		{"v2 report that says more records than it has", reports, changed(mld2Report(solicited), 7, 2), false},
		{"v2 report that says fewer", reports, changed(mld2Report(solicited, all), 7, 1), false},
		{"v2 report with sources", reports, append(changed(mld2Report(all), 11, 1), data...), false},
		{"v2 report whose last record says sources", reports, changed(many(16), 8+15*20+3, 1), false},
		{"v2 report with auxiliary data", reports, append(changed(mld2Report(all), 9, 4), data...), false},
		{"v2 report of no group", reports, changed(mld2Report(all), 12, 0xfe), false},
		{"v2 report of no known kind", reports, changed(mld2Report(all), 8, 7), false},
		{"v2 report with its reserved bytes in use", reports, changed(mld2Report(all), 5, 1), false},
	} {
		frame := routerAlert(set(ip("fe80::1", c.to, protoICMPv6, c.message), 7, 1))
		want := packetCase{name: c.name, frame: frame, as: FlowControl}
		if !c.passes {
			want = packetCase{name: c.name, frame: frame, drop: DropICMP}
		}
		cases = append(cases, want)
		want.name, want.in = want.name+" in", true
		cases = append(cases, want)
	}
	runCases(t, p, cases)
}

// TestRunSolicitations: neighbour discovery leaves a pod in the forms that Linux sends
// (net/ipv6/ndisc.c), and with nothing in it that is the pod's to choose. It comes in the
// same forms, about any address.
func TestRunSolicitations(t *testing.T) {
	p := lonePod(t)
	const (
		link, routers, all, group = "fe80::1", "ff02::2", "ff02::1", "ff02::1:ff00:1" // of node6
		rs, ns, na                = 133, 135, 136
		own, theirs, nonce        = 1, 2, 14 // options
	)
	option := func(kind byte) []byte { return []byte{kind, 1, 2, 4, 6, 8, 10, 12} }
	about := func(a string, rest ...byte) []byte { return append(netip.MustParseAddr(a).AsSlice(), rest...) }
	secret := []byte("SECRET..")
	for _, c := range []struct {
		name, from, to string
		kind           byte
		rest           []byte
		flags          [4]byte
		passes         bool
	}{
		{"router solicitation", link, routers, rs, nil, [4]byte{}, true},
		{"router solicitation with its address", link, routers, rs, option(own), [4]byte{}, true},
		{"router solicitation of nobody", "::", routers, rs, nil, [4]byte{}, true},
		{"router solicitation of nobody with an address", "::", routers, rs, option(own), [4]byte{}, false},
		{"router solicitation with a load", link, routers, rs, secret, [4]byte{}, false},
		{"router solicitation with two options", link, routers, rs, append(option(own), option(own)...), [4]byte{}, false},
		{"router solicitation to elsewhere", pod6, strange6, rs, option(own), [4]byte{}, false},
		{"router solicitation to all", link, all, rs, nil, [4]byte{}, false},
		{"router solicitation with reserved bytes", link, routers, rs, nil, [4]byte{0, 0, 0, 1}, false},
		{"solicitation", pod6, group, ns, about(node6, option(own)...), [4]byte{}, true},
		{"solicitation of a neighbour that is known", pod6, node6, ns, about(node6, option(own)...), [4]byte{}, true},
		{"solicitation without its address", pod6, node6, ns, about(node6), [4]byte{}, true},
		{"solicitation elsewhere", pod6, strange6, ns, about(node6, option(own)...), [4]byte{}, false},
		{"solicitation in another group", pod6, "ff02::1:ff00:2", ns, about(node6), [4]byte{}, false},
		{"solicitation of all", link, all, ns, about(node6), [4]byte{}, false},
		{"solicitation with a load", pod6, node6, ns, about(node6, secret...), [4]byte{}, false},
		{"solicitation with a longer option", pod6, node6, ns, about(node6, append(append([]byte{own, 2}, secret...), 0, 0, 0, 0, 0, 0)...), [4]byte{}, false},
		{"solicitation with a nonce that is none", pod6, group, ns, about(node6, option(nonce)...), [4]byte{}, false},
		{"solicitation that is short", pod6, node6, ns, about(node6)[:15], [4]byte{}, false},
		{"solicitation with reserved bytes", pod6, node6, ns, about(node6), [4]byte{1}, false},
		{"duplicate address detection with a nonce", "::", "ff02::1:ff00:2", ns, about(pod6, option(nonce)...), [4]byte{}, true},
		{"duplicate address detection of another's", "::", group, ns, about(node6), [4]byte{}, false},
		{"duplicate address detection to an address", "::", pod6, ns, about(pod6), [4]byte{}, false},
		{"advertisement to who asked", pod6, node6, na, about(pod6), [4]byte{0x60}, true},
		{"advertisement of a router, with its address", pod6, node6, na, about(pod6, option(theirs)...), [4]byte{0xe0}, true},
		{"advertisement to all", pod6, all, na, about(pod6, option(theirs)...), [4]byte{0x20}, true},
		{"advertisement to all routers", pod6, routers, na, about(pod6, option(theirs)...), [4]byte{0x20}, true},
		{"advertisement to all as if they had asked", pod6, all, na, about(pod6, option(theirs)...), [4]byte{0x60}, false},
		{"advertisement to a group beyond the link", pod6, "ff05::1", na, about(pod6), [4]byte{0x20}, false},
		{"advertisement of nobody", "::", all, na, about(pod6), [4]byte{0x20}, false},
		{"advertisement of a link-local address", link, node6, na, about(link, option(theirs)...), [4]byte{0x60}, true},
		{"advertisement of another link-local address", pod6, strange6, na, about("fe80::5365:6372:6574"), [4]byte{0x60}, false},
		{"solicitation of a group", pod6, "ff0e::5365:6372:6574", ns, about("ff0e::5365:6372:6574"), [4]byte{}, false},
		{"solicitation of a link-local address", pod6, "ff02::1:ff00:9", ns, about("fe80::9", option(own)...), [4]byte{}, true},
		{"duplicate address detection of a link-local address", "::", group, ns, about(link, option(nonce)...), [4]byte{}, true},
		{"advertisement to a group", pod6, group, na, about(pod6, option(theirs)...), [4]byte{0x20}, false},
		{"advertisement with a load", pod6, strange6, na, about(pod6, secret...), [4]byte{0x60}, false},
		{"advertisement with another option", pod6, node6, na, about(pod6, option(own)...), [4]byte{0x60}, false},
		{"advertisement with reserved bits", pod6, node6, na, about(pod6), [4]byte{0x61}, false},
		{"advertisement with reserved bytes", pod6, node6, na, about(pod6), [4]byte{0x60, 0, 1}, false},
	} {
		message := icmp(c.kind, c.rest...)
		copy(message[4:8], c.flags[:])
		one := packetCase{name: c.name, frame: set(ip(c.from, c.to, protoICMPv6, message), 7, 255), as: FlowControl}
		if !c.passes {
			one.as, one.drop = 0, DropICMP
			switch c.name {
			case "solicitation that is short":
				one.drop = DropMalformed
			case "duplicate address detection of another's", "advertisement of another link-local address":
				one.drop = DropForgedSource
			}
		}
		in := one
		in.name, in.in = c.name+" in", true
		if one.drop == DropForgedSource { // the sender's gate knows, the receiver's does not
			in.drop, in.as = 0, FlowControl
		}
		runCases(t, p, []packetCase{one, in})
	}
}
