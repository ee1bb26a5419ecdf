package bpf

import (
	"errors"
	"math/bits"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
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
		if found, looked, err := p.Reconcile(true); err != nil || len(found) > 0 || !looked.All || looked.Rules != len(p.datagrams.rules) {
			t.Errorf("found %q, looked at %+v: %v", found, looked, err)
		}
		if d := p.datagrams; d.table != nil && int(d.digest.rules) != len(d.rules) {
			t.Errorf("of %d rules, %d are in the digest", len(d.rules), d.digest.rules)
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
	change([]DatagramRule{first, ruleIn(peer4, 1)}, []DatagramRule{second, second}, 0)
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

// TestDatagramRulesAreLookedAt: by their digest, which follows whatever is told, and of which
// no rule that somebody else takes away, adds or puts in another's place is a part.
func TestDatagramRulesAreLookedAt(t *testing.T) {
	p := lonePod(t)
	rules := many(6000)
	setDatagrams(t, p, rules...)
	looks := func(want ...string) {
		t.Helper()
		found, looked, err := p.Reconcile(true)
		slices.Sort(want)
		if slices.Sort(found); err != nil || !slices.Equal(found, want) || looked != (Looked{len(p.datagrams.rules), true}) {
			t.Errorf("found %q, want %q, looked at %+v: %v", found, want, looked, err)
		}
		whole := p.datagrams.rules.digest()
		if now, err := p.digestOf(whole.seed); err != nil || now != whole {
			t.Errorf("the kernel has %v, and was told %v: %v", now, whole, err)
		}
		if now, err := p.digestOf(p.datagrams.digest.seed); err != nil || now != p.datagrams.digest || now == whole {
			t.Errorf("the kernel has %v, followed is %v: %v", now, p.datagrams.digest, err)
		}
	}
	looks()
	for i := range 20 { // the table grows, and is made anew
		if _, err := p.ChangeDatagrams(rules[100*i:100*i+50], many(2000 + 500*i)[2000:]); err != nil {
			t.Fatal(err)
		}
		looks()
	}
	if _, looked, err := p.Reconcile(false); err != nil || looked != (Looked{}) {
		t.Errorf("when it is not to look, looked at %+v: %v", looked, err)
	}
	have := p.datagrams.table
	take := func(r DatagramRule) error { key := r.key(); return have.Delete(asBytes(&key)) }
	put := func(r DatagramRule) error { key := r.key(); return have.Put(asBytes(&key), uint32(1)) }
	last, other := rules[5999], rules[5999]
	other.Port++
	removed, added := "the rule for datagrams "+last.String()+" was removed", "the rule for datagrams "+other.String()+" was added"
	for _, harm := range []struct {
		do    func() error
		found []string
	}{
		{func() error { return take(last) }, []string{removed}},
		{func() error { return put(other) }, []string{added}},
		{func() error { return errors.Join(take(last), put(other)) }, []string{added, removed}},
		{func() error { return put(ruleOut(peer4, 1)) }, []string{"the rule for datagrams out to 10.66.2.2:1 was added"}},
		{func() error { return put(ruleIn(pod6, 1)) }, []string{"the rule for datagrams in from " + pod6 + " to port 1 was added"}},
		{func() error { return put(toOutside(9)) }, []string{"the rule for datagrams outside to port 9 was added"}},
	} {
		have = p.datagrams.table // of the repair
		if err := harm.do(); err != nil {
			t.Fatal(err)
		}
		looks(harm.found...)
		looks()
	}
}

// TestDigestOfARule: by each of a rule's bits its number is another, and half of that, about.
func TestDigestOfARule(t *testing.T) {
	key := ruleIn(pod6, 443).key()
	was, flips := key.number(1), 0
	for i := range asBytes(&key) {
		for bit := range 8 {
			asBytes(&key)[i] ^= 1 << bit
			flips += bits.OnesCount64(key.number(1) ^ was)
			asBytes(&key)[i] ^= 1 << bit
		}
	}
	if mean := float64(flips) / 160; mean < 24 || mean > 40 {
		t.Errorf("one bit of a rule changes %.1f of its number's 64", mean)
	}
}

// TestLookCost holds looking at 131,072 rules, as an agent does within 1.8 s, to a hundredth
// of a processor where HEDDLE_COST is set, and to two otherwise: see TestGateCost.
func TestLookCost(t *testing.T) {
	const rules, within, attempts = 2 * MaxDatagramRules, 1800 * time.Millisecond, 20
	most := within / 100
	if os.Getenv("HEDDLE_COST") == "" {
		most *= 2
	}
	p := lonePod(t)
	setDatagrams(t, p, many(MaxDatagramRules)...)
	took := make([]time.Duration, 0, attempts)
	for range attempts {
		began := processor(t)
		for range rules / MaxDatagramRules {
			if found, looked, err := p.Reconcile(true); err != nil || len(found) > 0 || looked != (Looked{MaxDatagramRules, true}) {
				t.Fatalf("found %q, looked at %+v: %v", found, looked, err)
			}
		}
		took = append(took, processor(t)-began)
	}
	slices.Sort(took)
	if t.Logf("%d rules: best %v, median %v of a processor", rules, took[0], took[attempts/2]); took[0] > most {
		t.Errorf("to look at %d rules takes %v of a processor at best, more than %v", rules, took[0], most)
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
		if found, _, err := p.Reconcile(true); err != nil || !slices.Equal(found, []string{what}) {
			t.Errorf("found %q, want %q: %v", found, what, err)
		}
		runCases(t, p, []packetCase{
			{name: "by the rule", frame: ip(pod4, peer4, protoUDP, udp(999, 443)), as: FlowDatagram},
			{name: "outside", frame: ip(pod4, strange4, protoUDP, udp(999, 123)), as: FlowDatagram},
			{name: "by none", in: true, frame: ip(strange4, pod4, protoUDP, udp(999, 22)), drop: DropUDP},
		})
	}
}
