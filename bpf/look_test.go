package bpf

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
)

// TestDatagramRulesAreChanged: rules are taken away and added one by one, as if all had been
// set, also where a table is to grow, and none is left.
func TestDatagramRulesAreChanged(t *testing.T) {
	p := lonePod(t)
	change := func(gone, added []DatagramRule, want int) {
		t.Helper()
		if left, err := p.ChangeDatagrams(gone, added); err != nil || left != want {
			t.Errorf("%d are left, want %d: %v", left, want, err)
		}
		if found, looked, err := p.Reconcile(MaxDatagramRules); err != nil || len(found) > 0 || !looked.All || looked.Rules != len(p.datagrams.rules) {
			t.Errorf("found %q, looked at %+v: %v", found, looked, err)
		}
	}
	first, second := ruleOut(peer4, 443), ruleOut(peer4, 444)
	passes := func(port uint16, drop DropReason) packetCase {
		c := packetCase{name: "out", frame: ip(pod4, peer4, protoUDP, udp(999, port)), drop: drop}
		if drop == 0 {
			c.as = FlowDatagram
		}
		return c
	}
	change(nil, []DatagramRule{first, first}, 0)
	runCases(t, p, []packetCase{passes(443, 0), passes(444, DropUDP)})
	change([]DatagramRule{first, ruleIn(peer4, 1)}, []DatagramRule{second}, 0)
	runCases(t, p, []packetCase{passes(443, DropUDP), passes(444, 0)})
	change(nil, many(3000), 0)
	runCases(t, p, []packetCase{passes(444, 0)})
	change(nil, many(MaxDatagramRules), 1) // 65,535 and the second
	change(many(10), []DatagramRule{first}, 0)
	runCases(t, p, []packetCase{passes(443, 0)})
	change(append(many(MaxDatagramRules), first, second), nil, 0)
	runCases(t, p, []packetCase{passes(443, DropUDP), passes(444, DropUDP)})
	if p.wrote.Flags&uint32(gatePodFlagsPOD_DATAGRAMS) != 0 {
		t.Error("the flag is set without a rule")
	}
}

// TestDatagramRulesAreLookedAtInParts: what changed is found when its part is read, and what
// is told meanwhile is taken for what it is.
func TestDatagramRulesAreLookedAtInParts(t *testing.T) {
	p := lonePod(t)
	rules := many(6000)
	setDatagrams(t, p, rules...)
	round := func(between func(part int)) (found []string, parts int) {
		t.Helper()
		for {
			some, looked, err := p.Reconcile(1)
			if err != nil || looked.Rules > 1024 {
				t.Fatalf("looked at %+v: %v", looked, err)
			}
			found, parts = append(found, some...), parts+1
			if looked.All || len(some) > 0 {
				return found, parts
			}
			between(parts)
		}
	}
	if found, parts := round(func(part int) {
		if _, err := p.ChangeDatagrams(rules[100*part:100*part+50], []DatagramRule{ruleOut(peer4, uint16(part))}); err != nil {
			t.Fatal(err)
		}
	}); len(found) > 0 || parts < 6 {
		t.Errorf("in %d parts: found %q of what was told", parts, found)
	}
	if _, looked, err := p.Reconcile(0); err != nil || looked.All || looked.Rules > 0 {
		t.Errorf("without a part: looked at %+v: %v", looked, err)
	}
	key := rules[5999].key()
	if err := p.datagrams.table.Delete(asBytes(&key)); err != nil {
		t.Fatal(err)
	}
	if found, _ := round(func(int) {}); !slices.Equal(found, []string{"the rule for datagrams " + rules[5999].String() + " was removed"}) {
		t.Errorf("found %q", found)
	}
	if found, _ := round(func(int) {}); len(found) > 0 {
		t.Errorf("after repair: found %q", found)
	}
}

// TestDatagramsAreLookedAfterFromTheStart: an agent that takes over from nobody mends what it
// adopted before it has told the pod anything, the flag, too.
func TestDatagramsAreLookedAfterFromTheStart(t *testing.T) {
	n := newNode(t)
	cfg := PodConfig{Name: "lone", ID: 9, NetNS: -1, HostIfindex: 1, Addresses: []netip.Addr{netip.MustParseAddr(pod4)}}
	var p *Pod
	reopen := func() {
		t.Helper()
		var err error
		if p, err = n.Pod(cfg); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { p.Close() })
	reopen()
	setDatagrams(t, p, ruleOut(peer4, 443), toOutside(123))
	flags := func(clear uint32) error {
		bad := p.wrote
		bad.Flags &^= clear
		return errors.Join(p.maps[gateMapConfig].Put(uint32(0), bad), p.maps[gateMapConfig].Put(uint32(1), bad))
	}
	foreign := ruleIn(strange4, 22).key()
	for what, harm := range map[string]func() error{
		"the pod's configuration was changed":                           func() error { return flags(uint32(gatePodFlagsPOD_DATAGRAMS)) },
		"the rule for datagrams in from 10.77.0.1 to port 22 was added": func() error { return p.datagrams.table.Put(asBytes(&foreign), uint32(1)) },
		"what datagrams may leave to was changed":                       func() error { return p.maps[gateMapOutside].Delete(uint32(0)) },
	} {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		reopen()
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		if found, _, err := p.Reconcile(MaxDatagramRules); err != nil || !slices.Equal(found, []string{what}) {
			t.Errorf("found %q, want %q: %v", found, what, err)
		}
		runCases(t, p, []packetCase{
			{name: "by the rule", frame: ip(pod4, peer4, protoUDP, udp(999, 443)), as: FlowDatagram},
			{name: "outside", frame: ip(pod4, strange4, protoUDP, udp(999, 123)), as: FlowDatagram},
			{name: "by none", in: true, frame: ip(strange4, pod4, protoUDP, udp(999, 22)), drop: DropUDP},
		})
	}
}
