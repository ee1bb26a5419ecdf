package flow

import (
	"net/netip"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

type collected []Record

func (c *collected) Add(r Record) { *c = append(*c, r) }

// Datagrams between the same two are a record at once, then one each ten seconds while
// there are any, and nothing is lost on the way.
func TestDatagramsBecomeRecords(t *testing.T) {
	var sink collected
	d := NewDrops(&sink)
	begin := time.Now()
	add := func(port uint16, packets uint64) {
		d.AddDatagrams(Record{Start: begin, Direction: DirectionInbound, Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Rule: 0, Protocol: 17,
			Source:      Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "web"}, Addr: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port)},
			Destination: Endpoint{Workload: mesh.Key{Namespace: "shop", Name: "db"}, Addr: netip.MustParseAddrPort("10.0.0.2:443")},
			Packets:     packets, BytesSent: 10 * packets, BytesReceived: packets})
	}
	want := func(after time.Duration, records int, packets uint64) {
		t.Helper()
		d.flushDatagrams(begin.Add(after), false)
		if len(sink) != records || records > 0 && sink[records-1].Packets != packets {
			t.Fatalf("after %v: %+v, want %d records, the last of %d packets", after, sink, records, packets)
		}
	}
	add(1000, 2)
	add(1001, 3) // another port of the same client
	want(0, 1, 5)
	if sink[0].BytesSent != 50 || sink[0].BytesReceived != 5 {
		t.Errorf("bytes of the first record: %+v", sink[0])
	}
	add(1000, 7)
	want(9*time.Second, 1, 5)
	add(1000, 1)
	want(11*time.Second, 2, 8)
	want(30*time.Second, 2, 8) // silence, after which it is new again
	add(1000, 4)
	want(31*time.Second, 3, 4)
	add(1000, 6)
	d.flushDatagrams(begin.Add(32*time.Second), true)
	if len(sink) != 4 || sink[3].Packets != 6 || len(d.exchanges) != 0 {
		t.Errorf("at the end: %+v, and %d are kept", sink, len(d.exchanges))
	}
	for port := range 2 * datagramsKept {
		d.AddDatagrams(Record{Packets: 1, Destination: Endpoint{Addr: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(port))}})
	}
	if len(d.exchanges) > datagramsKept+1 {
		t.Errorf("%d are kept", len(d.exchanges))
	}
}

// TestDatagramsThatAreAudited are a record of their own, which says by whom.
func TestDatagramsThatAreAudited(t *testing.T) {
	var sink collected
	d := NewDrops(&sink)
	for _, by := range []Names{"", "shop/all", "shop/all"} {
		d.AddDatagrams(Record{Start: time.Now(), Direction: DirectionInbound, Verdict: mesh.VerdictAudit, Packets: 1, Audited: by})
	}
	d.flushDatagrams(time.Now(), true)
	packets := map[Names]uint64{}
	for _, r := range sink {
		packets[r.Audited] += r.Packets
	}
	if len(sink) != 2 || packets[""] != 1 || packets["shop/all"] != 2 {
		t.Errorf("%+v", sink)
	}
}

// TestDropsAreExplainedOnce: of equal drops, the first is explained, and the record says so.
func TestDropsAreExplainedOnce(t *testing.T) {
	var got collected
	d := NewDrops(&got)
	explained := 0
	for range 1000 {
		d.AddExplained(mesh.Key{Namespace: "shop", Name: "web"}, Record{Reason: mesh.ReasonKernelUDP, Rule: -1}, func(r *Record) { explained++; r.Detail = "why" })
	}
	d.Flush()
	if explained != 1 || len(got) != 1 || got[0].Packets != 1000 || got[0].Detail != "why" || got[0].Verdict != mesh.VerdictDeny {
		t.Errorf("explained %d times: %+v", explained, got)
	}
}
