package flow

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

var _ Sink = (*list)(nil)

type list []Record

func (l *list) Add(r Record) { *l = append(*l, r) }

func dropOf(pod mesh.Key, source, destination string) Record {
	return Record{Start: time.Now(), Reason: mesh.ReasonKernelUnstamped, Rule: -1,
		Source:      Endpoint{Workload: pod, Addr: netip.MustParseAddrPort(source)},
		Destination: Endpoint{Addr: netip.MustParseAddrPort(destination)}}
}

func TestEqualDropsBecomeOneRecordPerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got list
		d := NewDrops(&got)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); d.Run(ctx) }()
		pod := mesh.Key{Namespace: "shop", Name: "web"}
		for second := range 3 {
			for i := range 1000 {
				source := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(i+1024)).String()
				d.Add(pod, dropOf(pod, source, "10.0.0.2:80"))
				time.Sleep(100 * time.Microsecond)
			}
			time.Sleep(time.Duration(second+1)*time.Second + time.Millisecond - time.Duration(time.Now().UnixNano())%time.Second)
		}
		cancel()
		<-done
		var packets uint64
		for _, r := range got {
			packets += r.Packets
			if r.Direction != DirectionKernel || r.Verdict != mesh.VerdictDeny || r.Duration <= 0 {
				t.Errorf("wrong record: %+v", r)
			}
		}
		if packets != 3000 || len(got) > 4 {
			t.Fatalf("%d records of %d packets, want at most 4 of 3000", len(got), packets)
		}
	})
}

func TestFloodOfDifferentDropsIsBounded(t *testing.T) {
	var got list
	d := NewDrops(&got)
	quiet, loud := mesh.Key{Namespace: "shop", Name: "quiet"}, mesh.Key{Namespace: "shop", Name: "loud"}
	for i := range 50000 {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), uint16(i)).String()
		d.Add(loud, dropOf(loud, "10.0.0.1:1", to))
	}
	d.Add(quiet, dropOf(quiet, "10.0.0.7:1", "10.0.0.2:80"))
	in := dropOf(mesh.Key{}, "10.0.0.9:1", "10.0.0.1:81")
	in.Destination.Workload = loud
	d.Add(loud, in)
	d.Flush()
	d.Flush() // nothing twice
	var packets uint64
	pods := map[mesh.Key]int{}
	for _, r := range got {
		packets += r.Packets
		pods[r.Source.Workload]++
	}
	if packets != 50002 || pods[loud] != dropsPerPod+1 || pods[quiet] != 1 || pods[mesh.Key{}] != 1 {
		t.Fatalf("%d packets in records %v", packets, pods)
	}
}

// TestQueries: equal queries are one record, of one name; a flood of names is bounded
// as a flood of drops is, and does not mix with them.
func TestQueries(t *testing.T) {
	var got list
	d := NewDrops(&got)
	pod := mesh.Key{Namespace: "shop", Name: "web"}
	query := func(name string) {
		d.AddQuery(pod, Record{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonDNSStale, Rule: -1, Protocol: 17, Detail: name,
			Source: Endpoint{Workload: pod}, Destination: Endpoint{Addr: netip.MustParseAddrPort("10.96.0.10:53")}})
	}
	for range 100 {
		query("a.example A: no answer")
		query("b.example A: no answer")
	}
	d.Flush()
	if len(got) != 2 || got[0].Packets != 100 || got[0].Detail != "a.example A: no answer" || got[0].Direction != DirectionDNS || got[0].Verdict != mesh.VerdictAllow {
		t.Fatalf("%+v", got)
	}
	got = nil
	for i := range 5000 {
		query(fmt.Sprint(i))
		d.Add(pod, dropOf(pod, "10.0.0.1:1", netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 80).String()))
	}
	d.Flush()
	packets := map[Direction]uint64{}
	for _, r := range got {
		packets[r.Direction] += r.Packets
		if r.Direction == DirectionDNS && r.Verdict != mesh.VerdictAllow || r.Direction == DirectionKernel && r.Verdict != mesh.VerdictDeny {
			t.Errorf("%+v", r)
		}
	}
	if len(got) > dropsPerPod+2 || packets[DirectionDNS] != 5000 || packets[DirectionKernel] != 5000 {
		t.Errorf("%d records of %v", len(got), packets)
	}
}
