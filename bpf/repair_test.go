package bpf

import (
	"net/netip"
	"testing"
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
			if found, _, err := p.Reconcile(MaxDatagramRules); err != nil || len(found) > 0 {
				t.Errorf("found %q, %v", found, err)
			}
		})
	}
}
