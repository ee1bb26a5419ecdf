package bpf

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// toOutside lets the pod begin conversations with whoever is outside, at a port or, of 0,
// at most of them.
func toOutside(port uint16) DatagramRule {
	return DatagramRule{Remote: netip.IPv6Unspecified(), Port: port, Direction: Outbound}
}

// TestRunOutside sends datagrams to each class of destination.
func TestRunOutside(t *testing.T) {
	p := lonePod(t)
	out := func(from, to string, port uint16) []byte {
		return ip(from, to, protoUDP, udp(999, port, 'd', 'a', 't', 'a'))
	}
	// What is to leave when all ports are open, and when 123 alone is.
	type destination struct {
		name, to string
		port     uint16
		all, ntp bool
	}
	destinations := func(v4 bool) []destination {
		if v4 {
			return []destination{
				{"outside", strange4, 123, true, true}, {"outside, another port", strange4, 443, true, false}, {"a node's, outside of the ranges", "203.0.113.4", 123, true, true},
				{"outside, the highest port", strange4, 65535, true, false}, {"outside, no port", strange4, 0, false, false},
				{"outside, VXLAN", strange4, 8472, false, false}, {"outside, VXLAN of the RFC", strange4, 4789, false, false}, {"outside, Geneve", strange4, 6081, false, false},
				{"outside, VXLAN with more in it", strange4, 4790, false, false},
				{"inside", peer4, 123, false, false}, {"inside, of a service", "10.96.0.1", 123, false, false}, {"the last before the range", "10.65.255.255", 123, true, true}, {"the first of it", "10.66.0.0", 123, false, false},
				{"the last of it", "10.66.255.255", 123, false, false}, {"the first behind it", "10.67.0.0", 123, true, true},
				{"a workload's outside of the ranges", "192.0.2.7", 123, false, false}, {"beside that", "192.0.2.8", 123, true, true},
				{"loopback", "127.0.0.1", 123, false, false}, {"link-local", "169.254.169.254", 123, false, false}, {"multicast", "224.0.0.251", 123, false, false},
				{"broadcast", "255.255.255.255", 123, false, false}, {"reserved", "240.0.0.1", 123, false, false},
			}
		}
		return []destination{
			{"outside", strange6, 123, true, true}, {"outside, another port", strange6, 443, true, false}, {"of the world", "2001:db8::1", 123, true, true}, {"outside, VXLAN", strange6, 8472, false, false},
			{"inside", peer6, 123, false, false}, {"a workload's outside of the ranges", "2001:db8::7", 123, false, false}, {"by NAT64", "64:ff9b::cb00:7104", 123, true, true},
			{"unspecified", "::", 123, false, false}, {"unspecified, no port", "::", 0, false, false}, {"loopback", "::1", 123, false, false}, {"link-local", "fe80::1", 123, false, false},
			{"multicast", "ff02::fb", 123, false, false}, {"IPv4, compatible", "::10.77.0.1", 123, false, false},
		}
	}
	family(t, func(t *testing.T, pod, peer, strange string) {
		v4 := !strings.Contains(pod, ":")
		cases := func(says string, open func(destination) bool) (all []packetCase) {
			for _, d := range destinations(v4) {
				c := packetCase{name: says + ": " + d.name, frame: out(pod, d.to, d.port), drop: DropUDP}
				if open(d) {
					c.drop, c.as = 0, FlowDatagram
				}
				all = append(all, c)
			}
			return all
		}
		setDatagrams(t, p, ruleOut(peer, 443))
		runCases(t, p, cases("no rule", func(destination) bool { return false }))
		setDatagrams(t, p, toOutside(0))
		runCases(t, p, cases("all ports", func(d destination) bool { return d.all }))
		setDatagrams(t, p, toOutside(123))
		runCases(t, p, cases("port 123", func(d destination) bool { return d.ntp }))
		setDatagrams(t, p, toOutside(123), toOutside(443), ruleOut(peer, 123))
		runCases(t, p, append(cases("two ports and a peer", func(d destination) bool { return d.ntp || d.all && d.port == 443 || d.to == peer }),
			packetCase{name: "the peer, at a port of outside", frame: out(pod, peer, 443), drop: DropUDP},
			packetCase{name: "with a forged source", frame: out(strange, strange, 123), drop: DropForgedSource}))
		if v4 {
			runCases(t, p, []packetCase{{name: "a fragment", frame: set(out(pod, strange, 123), 6, 0x20), drop: DropFragment}})
		} else {
			runCases(t, p, []packetCase{
				{name: "IPv4, mapped", frame: out(pod, "::ffff:"+strange4, 123), drop: DropMalformed},
				{name: "a fragment", frame: extension(out(pod, strange, 123), 44), drop: DropFragment},
			})
		}
		setDatagrams(t, p)
	})
	// Port 53 is as DNS is, and not outside.
	setDatagrams(t, p, toOutside(0), toOutside(53))
	cfg := p.config()
	cfg.CaptureDNS = true
	update(t, p, cfg)
	runCases(t, p, []packetCase{{name: "captured DNS", frame: out(pod4, strange4, 53), drop: DropUnstamped}})
	cfg.CaptureDNS, cfg.DenyDNS = false, true
	update(t, p, cfg)
	runCases(t, p, []packetCase{{name: "denied DNS", frame: out(pod4, strange4, 53), drop: DropUDP}})
}

// TestRunOutsideAnswers: the pod begins, nobody else does, and what is begun ends with the rule,
// or with what is outside.
func TestRunOutsideAnswers(t *testing.T) {
	p := lonePod(t)
	family(t, func(t *testing.T, pod, peer, strange string) {
		frame := func(from string, fromPort uint16, to string, toPort uint16) []byte {
			return ip(from, to, protoUDP, udp(fromPort, toPort, 'd', 'a', 't', 'a'))
		}
		asks, answers := frame(pod, 999, strange, 123), frame(strange, 123, pod, 999)
		control, hop, unreachable := byte(protoICMP), 28, byte(3)
		if strings.Contains(pod, ":") {
			control, hop, unreachable = protoICMPv6, 48, 1
		}
		failed := ip(peer, pod, control, icmp(unreachable, quote(asks, hop)...))
		setDatagrams(t, p, toOutside(123))
		runCases(t, p, []packetCase{
			{name: "an answer before anything was asked", in: true, frame: answers, drop: DropUDP},
			{name: "an error before anything was asked", in: true, frame: failed, drop: DropICMP},
			{name: "begun from outside, at the port of the rule", in: true, frame: frame(strange, 999, pod, 123), drop: DropUDP},
			{name: "asks", frame: asks, as: FlowDatagram},
			{name: "is answered", in: true, frame: answers, as: FlowDatagram},
			{name: "an error about it", in: true, frame: failed, as: FlowControl},
			{name: "an answer to another port", in: true, frame: frame(strange, 123, pod, 998), drop: DropUDP},
			{name: "an answer from another port", in: true, frame: frame(strange, 124, pod, 999), drop: DropUDP},
			{name: "an answer from another address", in: true, frame: frame(peer, 123, pod, 999), drop: DropUDP},
			{name: "an answer to an address that is not the pod's", in: true, frame: frame(strange, 123, peer, 999), drop: DropUDP},
		})
		wantConversation(t, p, hostPort(pod, 999), hostPort(strange, 123), Outbound)
		ageConversation(t, p, hostPort(pod, 999), hostPort(strange, 123), 29*time.Second)
		runCases(t, p, []packetCase{{name: "an answer after 29 s", in: true, frame: answers, as: FlowDatagram}})
		ageConversation(t, p, hostPort(pod, 999), hostPort(strange, 123), 31*time.Second)
		runCases(t, p, []packetCase{
			{name: "an answer after 31 s", in: true, frame: answers, drop: DropUDP}, {name: "an error after 31 s", in: true, frame: failed, drop: DropICMP},
			{name: "asks again", frame: asks, as: FlowDatagram}, {name: "is answered again", in: true, frame: answers, as: FlowDatagram},
		})
		over := func(why string) []packetCase {
			return []packetCase{{name: why + ": asks", frame: asks, drop: DropUDP}, {name: why + ": is answered", in: true, frame: answers, drop: DropUDP}, {name: why + ": an error", in: true, frame: failed, drop: DropICMP}}
		}
		on := []packetCase{{name: "asks", frame: asks, as: FlowDatagram}, {name: "is answered", in: true, frame: answers, as: FlowDatagram}}
		setDatagrams(t, p, toOutside(124))
		runCases(t, p, over("another port"))
		setDatagrams(t, p, toOutside(0))
		runCases(t, p, on)
		setDatagrams(t, p, ruleOut(peer, 123))
		runCases(t, p, over("no rule outside"))
		setDatagrams(t, p, toOutside(123))
		runCases(t, p, on)
		whole, err := netip.MustParseAddr(strange).Prefix(len(netip.MustParseAddr(strange).AsSlice()) * 8)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.SetDatagrams([]DatagramRule{toOutside(123)}, append(insideMesh(), whole)); err != nil {
			t.Fatal(err)
		}
		runCases(t, p, over("inside now"))
		setDatagrams(t, p, toOutside(123))
		runCases(t, p, on)
		setDatagrams(t, p)
		runCases(t, p, over("no rule"))
		if c, err := p.Conversations(); err != nil || len(c) > 0 {
			t.Errorf("conversations without a rule: %v %v", c, err)
		}
	})
}

// TestOutsideIsRefused: what is told wrongly opens nothing, and what was there stays.
func TestOutsideIsRefused(t *testing.T) {
	p := lonePod(t)
	for _, c := range []struct {
		why    string
		inside []netip.Prefix
	}{
		{"0 blocks of addresses are inside", nil},
		{"4097 blocks of addresses are inside", slices.Repeat(insideMesh()[:1], MaxInside+1)},
		{"is no block of addresses", []netip.Prefix{{}}},
		{"is no block of addresses", []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.1"), 128)}},
	} {
		if _, err := p.SetDatagrams([]DatagramRule{toOutside(0)}, c.inside); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%d blocks: %v, want %q", len(c.inside), err, c.why)
		}
		runCases(t, p, []packetCase{{name: "after " + c.why, frame: ip(pod4, strange4, protoUDP, udp(999, 123)), drop: DropUDP}})
	}
	// All of it inside, by families and at once.
	for _, all := range [][]string{{"0.0.0.0/0", "::/0"}, {"0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"}} {
		var inside []netip.Prefix
		for _, text := range all {
			inside = append(inside, netip.MustParsePrefix(text))
		}
		if _, err := p.SetDatagrams([]DatagramRule{toOutside(0)}, inside); err != nil {
			t.Fatal(err)
		}
		runCases(t, p, []packetCase{
			{name: "inside " + all[0], frame: ip(pod4, strange4, protoUDP, udp(999, 123)), drop: DropUDP},
			{name: "inside " + all[1], frame: ip(pod6, strange6, protoUDP, udp(999, 123)), drop: DropUDP},
		})
		if found, _, err := p.Reconcile(true); err != nil || len(found) > 0 {
			t.Errorf("found %q, %v", found, err)
		}
	}
	most := make([]netip.Prefix, 0, MaxInside)
	for i := range MaxInside {
		most = append(most, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 66, byte(i >> 8), byte(i)}), 32))
	}
	if _, err := p.SetDatagrams([]DatagramRule{toOutside(0)}, most); err != nil {
		t.Fatalf("as many blocks as there may be: %v", err)
	}
}

// TestOutsideIsAdopted: what is outside holds while no agent is there, and for the next one;
// not after one that knew nothing of it, and not under another name.
func TestOutsideIsAdopted(t *testing.T) {
	n := newNode(t)
	cfg := PodConfig{Name: "lone", ID: 9, NetNS: -1, HostIfindex: 1, Addresses: []netip.Addr{netip.MustParseAddr(pod4)}}
	reopen := func() *Pod {
		p, err := n.Pod(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p
	}
	outside := packetCase{name: "outside", frame: ip(pod4, strange4, protoUDP, udp(999, 123)), as: FlowDatagram}
	peer := packetCase{name: "the peer", frame: ip(pod4, peer4, protoUDP, udp(999, 443)), as: FlowDatagram}
	inside := packetCase{name: "inside", frame: ip(pod4, peer4, protoUDP, udp(999, 123)), drop: DropUDP}
	shut := outside
	shut.as, shut.drop = 0, DropUDP
	withFlags := func(p *Pod, without gatePodFlags) {
		t.Helper()
		cfg := p.wrote
		cfg.Flags &^= uint32(without)
		for slot := range uint32(2) {
			if err := p.maps[gateMapConfig].Put(slot, cfg); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := reopen()
	setDatagrams(t, p, toOutside(0), ruleOut(peer4, 443))
	runCases(t, p, []packetCase{outside, peer, inside})
	gate, err := p.program(gateProgHostOutbound).Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	p.Close()
	for _, c := range []packetCase{outside, inside} {
		want := ^uint32(0)
		if c.drop != 0 {
			want = 2
		}
		if verdict, err := gate.Run(&ebpf.RunOptions{Data: c.frame}); err != nil || verdict != want {
			t.Errorf("with no agent, %s: verdict %d, want %d: %v", c.name, int32(verdict), int32(want), err)
		}
	}
	p = reopen()
	runCases(t, p, []packetCase{outside, peer, inside})
	if found, _, err := p.Reconcile(true); err != nil || len(found) > 0 {
		t.Errorf("after adoption: found %q, %v", found, err)
	}
	// Told the same again, the blocks stay, so that no datagram is lost; told others, they go.
	setDatagrams(t, p, toOutside(0), ruleOut(peer4, 443))
	runCases(t, p, []packetCase{outside, peer, inside})

	// An agent of a version that has rules, and none outside, writes its configuration.
	withFlags(p, gatePodFlagsPOD_OUTSIDE)
	runCases(t, p, []packetCase{shut, peer, inside})
	p.Close()
	p = reopen()
	runCases(t, p, []packetCase{shut, peer, inside})
	setDatagrams(t, p, toOutside(123), ruleOut(peer4, 443))
	runCases(t, p, []packetCase{outside, peer, inside})

	// And one of a version that has no rules.
	withFlags(p, gatePodFlagsPOD_OUTSIDE|gatePodFlagsPOD_DATAGRAMS)
	p.Close()
	p = reopen()
	runCases(t, p, []packetCase{shut, inside})
	setDatagrams(t, p, toOutside(0))
	runCases(t, p, []packetCase{outside, inside})

	p.Close()
	if err := n.RenamePod("lone", "retired-1-2-3"); err != nil {
		t.Fatal(err)
	}
	cfg.Name = "retired-1-2-3"
	p = reopen()
	runCases(t, p, []packetCase{shut, inside})
}

// TestOutsideOfTwoAgents: an agent that adopted a pod while the one before went on writing
// has what it is told hold, and nothing else.
func TestOutsideOfTwoAgents(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Shared = true })
	cfg := PodConfig{Name: "lone", ID: 9, NetNS: -1, HostIfindex: 1, Addresses: []netip.Addr{netip.MustParseAddr(pod4)}}
	for name, c := range map[string]struct{ before, meanwhile, told []DatagramRule }{
		"opened meanwhile":       {nil, []DatagramRule{toOutside(0)}, nil},
		"opened beside a peer":   {[]DatagramRule{ruleOut(peer4, 443)}, []DatagramRule{toOutside(0)}, []DatagramRule{ruleOut(peer4, 443)}},
		"shut meanwhile":         {[]DatagramRule{toOutside(0)}, nil, []DatagramRule{toOutside(123)}},
		"another port meanwhile": {[]DatagramRule{toOutside(123)}, []DatagramRule{toOutside(124)}, []DatagramRule{toOutside(123)}},
		"the same":               {[]DatagramRule{toOutside(123)}, []DatagramRule{toOutside(123)}, []DatagramRule{toOutside(123)}},
	} {
		t.Run(name, func(t *testing.T) {
			open := func() *Pod {
				p, err := n.Pod(cfg)
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			donor := open()
			setDatagrams(t, donor, c.before...)
			successor := open()
			setDatagrams(t, donor, c.meanwhile...)
			if found, _, err := successor.Reconcile(true); err != nil || len(found) > 0 {
				t.Errorf("found %q of the other agent's, %v", found, err)
			}
			setDatagrams(t, successor, c.told...)
			ntp := packetCase{name: "to 123", frame: ip(pod4, strange4, protoUDP, udp(999, 123)), drop: DropUDP}
			if slices.Contains(c.told, toOutside(123)) {
				ntp.drop, ntp.as = 0, FlowDatagram
			}
			runCases(t, successor, []packetCase{ntp, {name: "to 124", frame: ip(pod4, strange4, protoUDP, udp(999, 124)), drop: DropUDP}})
			if found, _, err := successor.Reconcile(true); err != nil || len(found) > 0 {
				t.Errorf("found %q, %v", found, err)
			}
			if err := errors.Join(donor.Close(), successor.Close(), n.RemovePod("lone")); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestOutsideDrift: what somebody else changes of what is outside is named and mended.
func TestOutsideDrift(t *testing.T) {
	p := lonePod(t)
	setDatagrams(t, p, toOutside(123))
	table := func(do func(*ebpf.Map) error) func() error {
		return func() error {
			m, err := p.slot(gateMapOutside)
			if err != nil {
				return err
			}
			return errors.Join(do(m), m.Close())
		}
	}
	const changed, config = "what datagrams may leave to was changed", "the pod's configuration was changed"
	for _, harm := range []struct {
		what, found string
		do          func() error
	}{
		{"a range opened", changed, table(func(m *ebpf.Map) error {
			key := blockKey(netip.MustParsePrefix("10.66.0.0/16"))
			return m.Put(asBytes(&key), uint32(1))
		})},
		{"a range removed", changed, table(func(m *ebpf.Map) error {
			key := blockKey(netip.MustParsePrefix("10.66.0.0/16"))
			return m.Delete(asBytes(&key))
		})},
		{"a block opened", changed, table(func(m *ebpf.Map) error {
			key := blockKey(netip.MustParsePrefix("10.66.2.0/24"))
			return m.Put(asBytes(&key), uint32(1))
		})},
		{"the table removed", changed, func() error { return p.maps[gateMapOutside].Delete(uint32(0)) }},
		{"the rule removed", "the rule for datagrams outside to port 123 was removed", func() error { key := toOutside(123).key(); return p.datagrams.table.Delete(asBytes(&key)) }},
		{"another rule", "the rule for datagrams outside to port 124 was added", func() error { key := toOutside(124).key(); return p.datagrams.table.Put(asBytes(&key), uint32(1)) }},
		{"the flag gone", config, func() error {
			bad := p.wrote
			bad.Flags &^= uint32(gatePodFlagsPOD_OUTSIDE)
			return errors.Join(p.maps[gateMapConfig].Put(uint32(0), bad), p.maps[gateMapConfig].Put(uint32(1), bad))
		}},
	} {
		if err := harm.do(); err != nil {
			t.Fatal(err)
		}
		if found, _, err := p.Reconcile(true); err != nil || !slices.Equal(found, []string{harm.found}) {
			t.Errorf("%s: found %q, want %q: %v", harm.what, found, harm.found, err)
		}
		if found, _, err := p.Reconcile(true); err != nil || len(found) > 0 {
			t.Errorf("%s, after repair: found %q, %v", harm.what, found, err)
		}
		runCases(t, p, []packetCase{
			{name: harm.what + ": outside", frame: ip(pod4, strange4, protoUDP, udp(999, 123)), as: FlowDatagram},
			{name: harm.what + ": another port", frame: ip(pod4, strange4, protoUDP, udp(999, 124)), drop: DropUDP},
			{name: harm.what + ": inside", frame: ip(pod4, peer4, protoUDP, udp(999, 123)), drop: DropUDP},
		})
	}
	setDatagrams(t, p, ruleOut(peer4, 443))
	var foreign *ebpf.Map
	if err := p.insert(gateMapOutside, 0, &foreign, func(m *ebpf.Map) error { return putInside(m, insideMesh()) }); err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if found, _, err := p.Reconcile(true); err != nil || !slices.Equal(found, []string{changed}) {
		t.Errorf("a table where there should be none: found %q, %v", found, err)
	}
	if m, err := p.slot(gateMapOutside); m != nil || err != nil {
		t.Errorf("it is still there: %v", err)
	}
}

// TestOutside sends datagrams through both pairs of hooks, to an address that is outside.
func TestOutside(t *testing.T) {
	w := newWorld(t)
	w.attachGate(t)
	const short, long = 300 * time.Millisecond, 10 * time.Second
	inside := []netip.Prefix{netip.MustParsePrefix(pod4 + "/24").Masked(), netip.MustParsePrefix(pod6 + "/64").Masked()}
	for _, f := range []struct{ pod, peer string }{{pod4, peer4}, {pod6, peer6}} {
		out, in := hostPort(f.peer, 7443), hostPort(f.pod, 7444)
		w.answerer(t, w.peer.Do, "udp", out, "peer")
		w.answerer(t, w.pod.Do, "udp", in, "pod")
		for _, c := range []struct {
			rules  []DatagramRule
			inside []netip.Prefix
			want   string
			wait   time.Duration
		}{
			{nil, inside, "nothing", short}, {[]DatagramRule{toOutside(0)}, inside, "peer", long}, {[]DatagramRule{toOutside(7443)}, inside, "peer", long},
			{[]DatagramRule{toOutside(7444)}, inside, "nothing", short}, {[]DatagramRule{toOutside(0)}, insideMesh(), "nothing", short}, {nil, nil, "nothing", short},
		} {
			if _, err := w.p.SetDatagrams(c.rules, c.inside); err != nil {
				t.Fatal(err)
			}
			if got := w.asks(t, w.pod.Do, out, c.wait) + w.asks(t, w.peer.Do, in, short); got != c.want+"nothing" {
				t.Errorf("%s with %v beside %v: %s", f.peer, c.rules, c.inside, got)
			}
		}
	}
}
