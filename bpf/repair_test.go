package bpf

import (
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// TestAdoptedTableWithoutRules: a table whose last rule was gone when an agent adopted it
// does not keep the next rules from holding.
func TestAdoptedTableWithoutRules(t *testing.T) {
	rule := ruleOut(peer4, 443)
	key := rule.key()
	passes := []packetCase{{name: "out", frame: ip(pod4, peer4, protoUDP, udp(999, 443)), as: FlowDatagram}}
	for name, shared := range map[string]bool{"of an agent that is gone": false, "of one that goes on writing": true} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, func(c *Config) { c.Shared = shared })
			cfg := PodConfig{Name: "lone", ID: 9, NetNS: -1, HostIfindex: 1, Addresses: []netip.Addr{netip.MustParseAddr(pod4)}}
			open := func() *Pod {
				p, err := n.Pod(cfg)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { p.Close() })
				return p
			}
			before := open()
			setDatagrams(t, before, rule)
			if err := before.datagrams.table.Delete(asBytes(&key)); err != nil {
				t.Fatal(err)
			}
			p := open()
			if shared { // the other one takes a rule away to give another
				if err := before.datagrams.table.Put(asBytes(&key), uint32(1)); err != nil {
					t.Fatal(err)
				}
				runCases(t, p, passes)
			} else if p.datagrams.table != nil || p.wrote.Flags&uint32(gatePodFlagsPOD_DATAGRAMS) != 0 {
				t.Error("a pod without rules has a table of them")
			}
			setDatagrams(t, p, rule)
			runCases(t, p, passes)
			if found, _, err := p.Reconcile(true); err != nil || len(found) > 0 {
				t.Errorf("found %q, %v", found, err)
			}
		})
	}
}

// unwritable has a pinned map of a pod refuse to be written until mend is called.
func unwritable(t *testing.T, p *Pod, name string) (mend func()) {
	t.Helper()
	whole := p.maps[name]
	readable, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, name), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { readable.Close() })
	p.maps[name] = readable
	return func() { p.maps[name] = whole }
}

// TestRepairIsTriedAgain: what was found and could not be mended is tried again by each look
// until it is, and counts as repaired then; what is told meanwhile is not taken for written.
func TestRepairIsTriedAgain(t *testing.T) {
	const added = "the rule for datagrams in from 10.77.0.1 to port 22 was added"
	for broken, meanwhile := range map[string]func(p *Pod) error{
		gateMapDatagramRules: nil,
		gateMapConversations: nil,
		gateMapOutside:       nil,
		"changed":            func(p *Pod) error { _, err := p.ChangeDatagrams(nil, []DatagramRule{ruleOut(peer4, 444)}); return err },
		"set": func(p *Pod) error {
			_, err := p.SetDatagrams([]DatagramRule{ruleOut(peer4, 443)}, insideMesh())
			return err
		},
		"kept": func(p *Pod) error { return p.KeepDatagrams([]DatagramRule{ruleOut(peer4, 443)}, insideMesh()) },
	} {
		t.Run(broken, func(t *testing.T) {
			p := lonePod(t)
			rules := append(many(3000), ruleOut(peer4, 443), toOutside(123))
			setDatagrams(t, p, rules...)
			foreign := ruleIn(strange4, 22).key()
			if err := p.datagrams.table.Put(asBytes(&foreign), uint32(1)); err != nil {
				t.Fatal(err)
			}
			if meanwhile != nil {
				broken = gateMapDatagramRules
			}
			mend := unwritable(t, p, broken)
			for range 3 {
				found, _, err := p.Reconcile(true)
				if len(found) > 0 || err == nil || !strings.Contains(err.Error(), added) && !strings.Contains(err.Error(), "what datagrams may leave to") {
					t.Errorf("not mended: found %q, %v", found, err)
				}
			}
			if meanwhile != nil {
				if meanwhile(p) == nil {
					t.Error("told, while the gate cannot be")
				}
				if found, _, err := p.Reconcile(true); len(found) > 0 || !errors.Is(err, errNotWritten) {
					t.Errorf("what was told is not written: found %q, %v", found, err)
				}
			}
			mend()
			if meanwhile != nil {
				setDatagrams(t, p, rules...)
			}
			found, looked, err := p.Reconcile(true) // whatever it reads: there is something to mend
			if err != nil || !slices.Contains(found, added) || !looked.All {
				t.Errorf("mended: found %q, looked at %+v, %v", found, looked, err)
			}
			runCases(t, p, []packetCase{
				{name: "by the rule", frame: ip(pod4, peer4, protoUDP, udp(999, 443)), as: FlowDatagram},
				{name: "outside", frame: ip(pod4, strange4, protoUDP, udp(999, 123)), as: FlowDatagram},
				{name: "by none", in: true, frame: ip(strange4, pod4, protoUDP, udp(999, 22)), drop: DropUDP},
			})
			if found, _, err := p.Reconcile(true); err != nil || len(found) > 0 {
				t.Errorf("after repair: found %q, %v", found, err)
			}
		})
	}
}

// TestRepairThatFailedHalfWay is found by what the gate has then, and leaves what was told.
func TestRepairThatFailedHalfWay(t *testing.T) {
	p := lonePod(t)
	setDatagrams(t, p, ruleOut(peer4, 443), toOutside(123))
	foreign := ruleIn(strange4, 22).key()
	if err := p.datagrams.table.Put(asBytes(&foreign), uint32(1)); err != nil {
		t.Fatal(err)
	}
	mend := unwritable(t, p, gateMapDatagramRules)
	if err := p.Reclaim(); err == nil {
		t.Error("reclaimed what cannot be written")
	}
	mend()
	if found, _, err := p.Reconcile(true); err != nil || len(found) != 2 { // what may leave the mesh, too
		t.Errorf("found %q, %v", found, err)
	}
	if _, err := p.ChangeDatagrams(nil, []DatagramRule{ruleOut(peer4, 444)}); err != nil {
		t.Error(err)
	}
	runCases(t, p, []packetCase{
		{name: "by the rule", frame: ip(pod4, peer4, protoUDP, udp(999, 443)), as: FlowDatagram},
		{name: "by that which was added", frame: ip(pod4, peer4, protoUDP, udp(999, 444)), as: FlowDatagram},
		{name: "outside", frame: ip(pod4, strange4, protoUDP, udp(999, 123)), as: FlowDatagram},
		{name: "by none", in: true, frame: ip(strange4, pod4, protoUDP, udp(999, 22)), drop: DropUDP},
	})
	if found, _, err := p.Reconcile(true); err != nil || len(found) > 0 {
		t.Errorf("after repair: found %q, %v", found, err)
	}
}

// TestRepairOfTheConfigurationIsTriedAgain, also while rules cannot be mended, either.
func TestRepairOfTheConfigurationIsTriedAgain(t *testing.T) {
	p := lonePod(t)
	if err := p.maps[gateMapPorts].Put(uint16(22), uint32(gatePortFlagsPORT_PERMISSIVE)); err != nil {
		t.Fatal(err)
	}
	mend := unwritable(t, p, gateMapActive)
	for range 2 {
		if found, _, err := p.Reconcile(true); len(found) > 0 || err == nil || !strings.Contains(err.Error(), "port 22 was added") {
			t.Errorf("not mended: found %q, %v", found, err)
		}
	}
	mend()
	if found, _, err := p.Reconcile(true); err != nil || !slices.Equal(found, []string{"port 22 was added"}) {
		t.Errorf("mended: found %q, %v", found, err)
	}
}
