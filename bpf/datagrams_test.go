package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func ruleOut(remote string, port uint16) DatagramRule {
	return DatagramRule{Remote: netip.MustParseAddr(remote), Port: port, Direction: Outbound}
}

func ruleIn(remote string, port uint16) DatagramRule {
	return DatagramRule{Remote: netip.MustParseAddr(remote), Port: port, Direction: Inbound}
}

// insideMesh is what the pods of these tests have as the inside of their mesh.
func insideMesh() (all []netip.Prefix) {
	for _, text := range []string{"10.66.0.0/16", "fd66::/16", "10.96.0.0/16", "192.0.2.7/32", "2001:db8::7/128", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/96", "fe80::/10", "ff00::/8"} {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func setDatagrams(t testing.TB, p *Pod, rules ...DatagramRule) {
	t.Helper()
	if left, err := p.SetDatagrams(rules, insideMesh()); err != nil || left != 0 {
		t.Fatalf("set datagrams: %d left, %v", left, err)
	}
}

// ageConversation makes a conversation's last datagram of who opened it as old as given.
func ageConversation(t *testing.T, p *Pod, local, remote string, age time.Duration) {
	t.Helper()
	key := toTuple(netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote))
	var c gateConversation
	if err := p.datagrams.conversations.Lookup(key, &c); err != nil {
		t.Fatal(err)
	}
	now, err := monotonic()
	if err != nil {
		t.Fatal(err)
	}
	c.Asked = now - uint64(age)
	if err := p.datagrams.conversations.Put(key, c); err != nil {
		t.Fatal(err)
	}
}

// TestRunDatagramRules: what a rule names may open a conversation, answers pass for a
// while, and nothing else does.
func TestRunDatagramRules(t *testing.T) {
	p := lonePod(t)
	family(t, func(t *testing.T, pod, peer, strange string) {
		out := func(from string, fromPort uint16, to string, toPort uint16) []byte {
			return ip(from, to, protoUDP, udp(fromPort, toPort, 'd', 'a', 't', 'a'))
		}
		setDatagrams(t, p, ruleOut(peer, 443), ruleIn(peer, 8443))
		control, hop := byte(protoICMP), 28
		unreachable := byte(3)
		if strings.Contains(pod, ":") {
			control, hop, unreachable = protoICMPv6, 48, 1
		}
		runCases(t, p, []packetCase{
			{name: "an answer before anything was asked", in: true, frame: out(peer, 443, pod, 999), drop: DropUDP},
			{name: "out, to a port with a rule", frame: out(pod, 999, peer, 443), as: FlowDatagram},
			{name: "its answer", in: true, frame: out(peer, 443, pod, 999), as: FlowDatagram},
			{name: "an answer to another port", in: true, frame: out(peer, 443, pod, 998), drop: DropUDP},
			{name: "an answer from another port", in: true, frame: out(peer, 444, pod, 999), drop: DropUDP},
			{name: "an answer from another address", in: true, frame: out(strange, 443, pod, 999), drop: DropUDP},
			{name: "out, to another port", frame: out(pod, 999, peer, 444), drop: DropUDP},
			{name: "out, to another address", frame: out(pod, 999, strange, 443), drop: DropUDP},
			{name: "out, to the port of the rule inwards", frame: out(pod, 999, peer, 8443), drop: DropUDP},
			{name: "out, with a forged source", frame: out(strange, 999, peer, 443), drop: DropForgedSource},
			{name: "out of the served port, unasked", frame: out(pod, 8443, peer, 777), drop: DropUDP},
			{name: "in, to a port with a rule", in: true, frame: out(peer, 777, pod, 8443), as: FlowDatagram},
			{name: "the pod's answer", frame: out(pod, 8443, peer, 777), as: FlowDatagram},
			{name: "the pod's answer to another port", frame: out(pod, 8443, peer, 778), drop: DropUDP},
			{name: "in, to another port", in: true, frame: out(peer, 777, pod, 8444), drop: DropUDP},
			{name: "in, to the port of the rule outwards", in: true, frame: out(peer, 777, pod, 443), drop: DropUDP},
			{name: "in, from another address", in: true, frame: out(strange, 777, pod, 8443), drop: DropUDP},
			{name: "in, to an address that is not the pod's", in: true, frame: out(peer, 777, strange, 8443), drop: DropUDP},
			{name: "in, as the pod itself", in: true, frame: out(pod, 777, pod, 8443), drop: DropForgedSource},
			{name: "out, cut short", frame: ip(pod, peer, protoUDP, udp(999, 443)[:6]), drop: DropMalformed},
			{name: "an error about a datagram of the pod", in: true,
				frame: ip(peer, pod, control, icmp(unreachable, quote(out(pod, 999, peer, 443), hop)...)), as: FlowControl},
			{name: "an error about no datagram of the pod", in: true,
				frame: ip(peer, pod, control, icmp(unreachable, quote(out(pod, 997, peer, 443), hop)...)), drop: DropICMP},
			{name: "an error of the pod's", frame: ip(pod, peer, control, icmp(unreachable, quote(out(peer, 777, pod, 8443), hop)...)), drop: DropICMP},
		})
		if strings.Contains(pod, ":") {
			runCases(t, p, []packetCase{{name: "a fragment", in: true, frame: extension(out(peer, 777, pod, 8443), 44), drop: DropFragment}})
		} else {
			runCases(t, p, []packetCase{{name: "a fragment", in: true, frame: set(out(peer, 777, pod, 8443), 6, 0x20), drop: DropFragment}})
		}
		wantConversation(t, p, hostPort(pod, 999), hostPort(peer, 443), Outbound)
		wantConversation(t, p, hostPort(pod, 8443), hostPort(peer, 777), Inbound)

		ageConversation(t, p, hostPort(pod, 999), hostPort(peer, 443), 31*time.Second)
		ageConversation(t, p, hostPort(pod, 8443), hostPort(peer, 777), 29*time.Second)
		runCases(t, p, []packetCase{
			{name: "an answer after 31 s", in: true, frame: out(peer, 443, pod, 999), drop: DropUDP},
			{name: "an error after 31 s", in: true,
				frame: ip(strange, pod, control, icmp(unreachable, quote(out(pod, 999, peer, 443), hop)...)), drop: DropICMP},
			{name: "the pod's answer after 29 s", frame: out(pod, 8443, peer, 777), as: FlowDatagram},
			{name: "asked again", frame: out(pod, 999, peer, 443), as: FlowDatagram},
			{name: "its answer again", in: true, frame: out(peer, 443, pod, 999), as: FlowDatagram},
		})
		setDatagrams(t, p, ruleIn(peer, 8443))
		runCases(t, p, []packetCase{
			{name: "out, without the rule", frame: out(pod, 999, peer, 443), drop: DropUDP},
			{name: "an answer of what had one", in: true, frame: out(peer, 443, pod, 999), drop: DropUDP},
			{name: "an error about what had one", in: true,
				frame: ip(strange, pod, control, icmp(unreachable, quote(out(pod, 999, peer, 443), hop)...)), drop: DropICMP},
			{name: "in, by the rule that stays", in: true, frame: out(peer, 777, pod, 8443), as: FlowDatagram},
		})
		setDatagrams(t, p, ruleIn(peer, 999))
		runCases(t, p, []packetCase{
			{name: "in, by a rule of its own, where the conversation's is gone", in: true, frame: out(peer, 443, pod, 999), as: FlowDatagram},
			{name: "the pod's answer to it", frame: out(pod, 999, peer, 443), as: FlowDatagram},
		})
		setDatagrams(t, p)
		runCases(t, p, []packetCase{
			{name: "in, without any rule", in: true, frame: out(peer, 777, pod, 8443), drop: DropUDP},
			{name: "the pod's answer, without any rule", frame: out(pod, 8443, peer, 777), drop: DropUDP},
		})
		if c, err := p.Conversations(); err != nil || len(c) > 0 {
			t.Errorf("conversations without a rule: %v %v", c, err)
		}
	})
}

// TestDatagramPeers: a conversation is counted at the port that is served, the pod's or
// the other's, whichever number is lower.
func TestDatagramPeers(t *testing.T) {
	p := lonePod(t)
	setDatagrams(t, p, ruleOut(peer4, 9000), ruleIn(peer4, 8443))
	runCases(t, p, []packetCase{
		{name: "asks", frame: ip(pod4, peer4, protoUDP, udp(1234, 9000)), as: FlowDatagram},
		{name: "is answered", in: true, frame: ip(peer4, pod4, protoUDP, udp(9000, 1234)), as: FlowDatagram},
		{name: "is asked", in: true, frame: ip(peer4, pod4, protoUDP, udp(777, 8443)), as: FlowDatagram},
		{name: "answers", frame: ip(pod4, peer4, protoUDP, udp(8443, 777)), as: FlowDatagram},
	})
	peers, err := p.PlaintextPeers()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, peer := range peers {
		got = append(got, fmt.Sprint(peer.Direction, " ", peer.Port))
	}
	slices.Sort(got)
	if want := []string{"inbound 8443", "inbound 9000", "outbound 8443", "outbound 9000"}; !slices.Equal(got, want) {
		t.Errorf("peers %q, want %q", got, want)
	}
}

// TestDatagramsAfterAnError: what could not be written is written the next time, whatever
// was done of it.
func TestDatagramsAfterAnError(t *testing.T) {
	for name, rules := range map[string][]DatagramRule{"in another table": many(300), "in the same": {ruleOut(peer4, 444)}, "none": nil} {
		p := lonePod(t)
		setDatagrams(t, p, ruleOut(peer4, 443))
		for _, broken := range []string{gateMapActive, gateMapDatagramRules} {
			whole := p.maps[broken]
			closed, err := whole.Clone()
			if err != nil {
				t.Fatal(err)
			}
			closed.Close()
			p.maps[broken] = closed
			_, failed := p.SetDatagrams(rules, insideMesh())
			p.maps[broken] = whole
			if failed == nil && name != "in the same" {
				t.Errorf("%s: written without %s", name, broken)
			}
		}
		setDatagrams(t, p, append([]DatagramRule{ruleOut(peer4, 445)}, rules...)...)
		runCases(t, p, []packetCase{
			{name: name + ": by the rule of now", frame: ip(pod4, peer4, protoUDP, udp(999, 445)), as: FlowDatagram},
			{name: name + ": by that of before", frame: ip(pod4, peer4, protoUDP, udp(999, 443)), drop: DropUDP},
		})
		if found, _, err := p.Reconcile(true); err != nil || len(found) > 0 {
			t.Errorf("%s: found %q, %v", name, found, err)
		}
	}
}

func many(n int) (rules []DatagramRule) {
	for i := range n {
		rules = append(rules, DatagramRule{Remote: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Port: 1, Direction: Inbound})
	}
	return rules
}

// TestDatagramsOfTwoAgents: an agent that adopted a pod while the one before went on
// writing puts its rules in place of whatever that wrote, in the table that the gate
// looks at, and does not mend by what it read.
func TestDatagramsOfTwoAgents(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Shared = true })
	cfg := PodConfig{Name: "lone", ID: 9, NetNS: -1, HostIfindex: 1, Addresses: []netip.Addr{netip.MustParseAddr(pod4)}}
	open := func() *Pod {
		p, err := n.Pod(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p
	}
	rule, other := ruleOut(peer4, 443), ruleOut(peer4, 444)
	sent := func(port uint16, drop DropReason) []packetCase {
		c := packetCase{name: fmt.Sprintf("to %d", port), frame: ip(pod4, peer4, protoUDP, udp(999, port)), drop: drop}
		if drop == 0 {
			c.as = FlowDatagram
		}
		return []packetCase{c}
	}
	for name, c := range map[string]struct{ before, meanwhile, told []DatagramRule }{
		"in the same table":  {[]DatagramRule{rule}, []DatagramRule{other}, []DatagramRule{rule}},
		"in a larger one":    {[]DatagramRule{rule}, append(many(300), other), []DatagramRule{rule}},
		"the first":          {nil, []DatagramRule{other}, []DatagramRule{rule}},
		"the first, to none": {nil, []DatagramRule{other}, nil},
		"the last":           {[]DatagramRule{rule}, nil, []DatagramRule{rule}},
	} {
		t.Run(name, func(t *testing.T) {
			donor := open()
			setDatagrams(t, donor, c.before...)
			successor := open()
			setDatagrams(t, donor, c.meanwhile...)
			if found, _, err := successor.Reconcile(true); err != nil || len(found) > 0 {
				t.Errorf("found %q of the other agent's, %v", found, err)
			}
			setDatagrams(t, successor, c.told...)
			if len(c.told) > 0 {
				runCases(t, successor, sent(443, 0))
			} else {
				runCases(t, successor, sent(443, DropUDP))
			}
			runCases(t, successor, sent(444, DropUDP))
			if found, _, err := successor.Reconcile(true); err != nil || len(found) > 0 {
				t.Errorf("found %q, %v", found, err)
			}
			if err := errors.Join(donor.Close(), successor.Close()); err != nil {
				t.Fatal(err)
			}
			if err := n.RemovePod("lone"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// wantConversation looks for one with a datagram of four bytes each way.
func wantConversation(t *testing.T, p *Pod, local, remote string, opened Direction) {
	t.Helper()
	all, err := p.Conversations()
	if err != nil {
		t.Fatal(err)
	}
	want := Count{Packets: 1, Bytes: 4}
	i := slices.IndexFunc(all, func(c Conversation) bool { return c.Local.String() == local && c.Remote.String() == remote })
	if i < 0 || all[i].Direction != opened || all[i].Out != want || all[i].In != want || all[i].LastSeen > time.Minute {
		t.Errorf("no conversation of %s and %s as it was, %v: %+v", local, remote, opened, all)
	}
}

// A table grows, and changes in place, to what was asked for and nothing else.
func TestDatagramRulesAreThoseThatWereSet(t *testing.T) {
	p := lonePod(t)
	numbered := func(from, to int) (rules []DatagramRule) {
		for i := from; i < to; i++ {
			rules = append(rules, ruleOut(fmt.Sprintf("10.9.%d.%d", i/250, 1+i%250), uint16(1+i)), ruleIn(fmt.Sprintf("fd09::%x", i+1), 443))
		}
		return rules
	}
	held := func() (rules []string) {
		var table *ebpf.Map
		if err := p.maps[gateMapDatagramRules].Lookup(uint32(0), &table); errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		} else if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		all, err := rulesIn(table)
		if err != nil {
			t.Fatal(err)
		}
		for key := range all {
			rules = append(rules, key.rule().String())
		}
		slices.Sort(rules)
		return rules
	}
	for _, rules := range [][]DatagramRule{numbered(0, 10), numbered(5, 100), numbered(0, 1000), numbered(990, 1010), nil, numbered(3, 4)} {
		setDatagrams(t, p, rules...)
		var want []string
		for _, r := range rules {
			want = append(want, r.String())
		}
		slices.Sort(want)
		if have := held(); !slices.Equal(have, want) {
			t.Fatalf("%d rules were set, the kernel has %d", len(want), len(have))
		}
		if on := p.wrote.Flags&uint32(gatePodFlagsPOD_DATAGRAMS) != 0; on != (len(rules) > 0) {
			t.Errorf("with %d rules, they hold: %v", len(rules), on)
		}
	}
	if left, err := p.SetDatagrams(many(MaxDatagramRules+10), nil); err != nil || left != 10 {
		t.Errorf("%d are left, want 10: %v", left, err)
	}
}

// Rules hold while no agent is there, and for the next one; not after an agent that knew
// none, and not under another name.
func TestDatagramRulesAreAdopted(t *testing.T) {
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
	rule := ruleOut(peer4, 443)
	p := reopen()
	setDatagrams(t, p, rule)
	passes := []packetCase{{name: "passes", frame: ip(pod4, peer4, protoUDP, udp(999, 443)), as: FlowDatagram}}
	drops := []packetCase{{name: "drops", frame: ip(pod4, peer4, protoUDP, udp(999, 443)), drop: DropUDP}}
	runCases(t, p, passes)
	gate, err := p.program(gateProgHostOutbound).Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for frame, want := range map[string]uint32{string(passes[0].frame): ^uint32(0), string(ip(pod4, peer4, protoUDP, udp(999, 444))): 2} {
		if verdict, err := gate.Run(&ebpf.RunOptions{Data: []byte(frame)}); err != nil || verdict != want {
			t.Errorf("with no agent: verdict %d, want %d: %v", int32(verdict), int32(want), err)
		}
	}

	p = reopen()
	runCases(t, p, passes)
	if found, _, err := p.Reconcile(true); err != nil || len(found) > 0 {
		t.Errorf("after adoption: found %q, %v", found, err)
	}
	// An agent of a version that keeps no rules writes its configuration.
	old := p.wrote
	old.Flags &^= uint32(gatePodFlagsPOD_DATAGRAMS)
	for slot := range uint32(2) {
		if err := p.maps[gateMapConfig].Put(slot, old); err != nil {
			t.Fatal(err)
		}
	}
	runCases(t, p, drops)
	p.Close()
	p = reopen()
	runCases(t, p, drops)
	setDatagrams(t, p, rule)
	runCases(t, p, passes)

	p.Close()
	if err := n.RenamePod("lone", "retired-1-2-3"); err != nil {
		t.Fatal(err)
	}
	cfg.Name = "retired-1-2-3"
	p = reopen()
	runCases(t, p, drops)
	p.Close()
}

// TestDatagramDrift: what somebody else changes of the tables is named and mended.
func TestDatagramDrift(t *testing.T) {
	p := lonePod(t)
	setDatagrams(t, p, ruleOut(peer4, 443))
	foreign := ruleIn(strange4, 22)
	for _, harm := range []struct {
		found string
		do    func() error
	}{
		{"the rule for datagrams in from 10.77.0.1 to port 22 was added", func() error { key := foreign.key(); return p.datagrams.table.Put(asBytes(&key), uint32(1)) }},
		{"the rule for datagrams out to 10.66.2.2:443 was removed", func() error { key := ruleOut(peer4, 443).key(); return p.datagrams.table.Delete(asBytes(&key)) }},
		{"the table of rules for datagrams was replaced", func() error { return p.maps[gateMapDatagramRules].Delete(uint32(0)) }},
		{"the table of conversations was replaced", func() error { return p.maps[gateMapConversations].Delete(uint32(0)) }},
		{"the pod's configuration was changed", func() error {
			bad := p.wrote
			bad.Flags &^= uint32(gatePodFlagsPOD_DATAGRAMS)
			return errors.Join(p.maps[gateMapConfig].Put(uint32(0), bad), p.maps[gateMapConfig].Put(uint32(1), bad))
		}},
	} {
		if err := harm.do(); err != nil {
			t.Fatal(err)
		}
		if found, _, err := p.Reconcile(true); err != nil || !slices.Equal(found, []string{harm.found}) {
			t.Errorf("found %q, want %q: %v", found, harm.found, err)
		}
		if found, _, err := p.Reconcile(true); err != nil || len(found) > 0 {
			t.Errorf("after repair of %q: found %q, %v", harm.found, found, err)
		}
		runCases(t, p, []packetCase{
			{name: "by the rule", frame: ip(pod4, peer4, protoUDP, udp(999, 443)), as: FlowDatagram},
			{name: "by none", in: true, frame: ip(strange4, pod4, protoUDP, udp(999, 22)), drop: DropUDP},
		})
	}
	setDatagrams(t, p)
	if found, _, err := p.Reconcile(true); err != nil || len(found) > 0 {
		t.Errorf("without rules: found %q, %v", found, err)
	}
}

// asks sends a datagram from a namespace, and returns the answer or "nothing".
func (w *world) asks(t testing.TB, in func(func() error) error, to string, wait time.Duration) string {
	t.Helper()
	var c net.Conn
	if err := in(func() (err error) { c, err = net.Dial("udp", to); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	b := make([]byte, 100)
	if _, err := c.Write([]byte("ask")); err != nil {
		return "error: " + err.Error()
	}
	n, err := c.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "nothing"
	}
	if err != nil {
		return "error: " + err.Error()
	}
	return string(b[:n])
}

// TestDatagrams sends datagrams through both pairs of hooks.
func TestDatagrams(t *testing.T) {
	w := newWorld(t)
	w.attachGate(t)
	const short, long = 300 * time.Millisecond, 10 * time.Second
	for _, f := range []struct{ pod, peer string }{{pod4, peer4}, {pod6, peer6}} {
		out, in := hostPort(f.peer, 7443), hostPort(f.pod, 7444)
		w.answerer(t, w.peer.Do, "udp", out, "peer")
		w.answerer(t, w.pod.Do, "udp", in, "pod")
		if got := w.asks(t, w.pod.Do, out, short) + w.asks(t, w.peer.Do, in, short); got != "nothingnothing" {
			t.Errorf("%s without rules: %s", f.peer, got)
		}
		setDatagrams(t, w.p, ruleOut(f.peer, 7443))
		if got := w.asks(t, w.pod.Do, out, long) + w.asks(t, w.peer.Do, in, short); got != "peernothing" {
			t.Errorf("%s with a rule outwards: %s", f.peer, got)
		}
		setDatagrams(t, w.p, ruleIn(f.peer, 7444))
		if got := w.asks(t, w.pod.Do, out, short) + w.asks(t, w.peer.Do, in, long); got != "nothingpod" {
			t.Errorf("%s with a rule inwards: %s", f.peer, got)
		}
		setDatagrams(t, w.p)
		if got := w.asks(t, w.pod.Do, out, short) + w.asks(t, w.peer.Do, in, short); got != "nothingnothing" {
			t.Errorf("%s with its rules taken away: %s", f.peer, got)
		}
	}
	setDatagrams(t, w.p, ruleOut(peer4, 7445))
	w.segments(t)
}

// segments has the kernel cut one write into datagrams (UDP_SEGMENT), as servers of QUIC
// do: the gate sees all of it as one packet.
func (w *world) segments(t *testing.T) {
	t.Helper()
	var server net.PacketConn
	w.peer.Must(t, func() (err error) { server, err = net.ListenPacket("udp", hostPort(peer4, 7445)); return err })
	defer server.Close()
	var c net.Conn
	w.pod.Must(t, func() (err error) { c, err = net.Dial("udp", hostPort(peer4, 7445)); return err })
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	if err := errors.Join(raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000) }), set); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 8500)); err != nil {
		t.Fatal(err)
	}
	server.SetDeadline(time.Now().Add(10 * time.Second))
	for i := range 9 {
		n, _, err := server.ReadFrom(make([]byte, 2000))
		if want := min(1000, 8500-1000*i); err != nil || n != want {
			t.Fatalf("datagram %d has %d bytes, want %d: %v", i, n, want, err)
		}
	}
}
