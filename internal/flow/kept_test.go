package flow

import (
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestKeptLosesNothing: a record comes out of the ring as it went in.
func TestKeptLosesNothing(t *testing.T) {
	whole := sample()
	for name, change := range map[string]func(*Record){
		"whole":            func(*Record) {},
		"zero":             func(r *Record) { *r = Record{} },
		"no policy":        func(r *Record) { r.Policy, r.Rule = mesh.Key{}, -1 },
		"no address":       func(r *Record) { r.Source.Addr = netip.AddrPort{} },
		"a port alone":     func(r *Record) { r.Source.Addr = netip.AddrPortFrom(netip.Addr{}, 9) },
		"IPv4 in IPv6":     func(r *Record) { r.Source.Addr = netip.MustParseAddrPort("[::ffff:10.0.0.1]:80") },
		"a zone":           func(r *Record) { r.Destination.Addr = netip.MustParseAddrPort("[fe80::1%eth0]:80") },
		"IPv4 zeroes":      func(r *Record) { r.Destination.Addr = netip.MustParseAddrPort("0.0.0.0:0") },
		"drops":            func(r *Record) { r.Direction, r.Protocol, r.Packets = DirectionKernel, 17, 1<<40 },
		"before the epoch": func(r *Record) { r.Start = time.Unix(-5, 3) },
	} {
		want := whole
		change(&want)
		if got := compact(&want).record(); got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, want)
		}
	}
}

// TestFullRing: a full ring of an agent's own size takes 16 MB at most, with the
// half that the collector lets a heap grow by (agent: GOGC 50).
func TestFullRing(t *testing.T) {
	const size, pairs, most = 65536, 1000, 16e6
	if one := unsafe.Sizeof(kept{}); one > 144 {
		t.Errorf("a record takes %d bytes", one)
	}
	before := inUse()
	r := NewRing(size)
	rec := sample()
	for i := range size {
		rec.Source.Workload.Name = strconv.Itoa(i % pairs) // strings of their own, as decoded ones are
		rec.Policy.Name = fmt.Sprint("policy of ", i%pairs)
		rec.Detail = ""
		r.Add(rec)
	}
	took := inUse() - before
	t.Logf("%.1f MB, %.1f MB before a collection", took/1e6, took*1.5/1e6)
	if took*1.5 > most {
		t.Errorf("a full ring takes %.1f MB, and %.1f MB before a collection", took/1e6, took*1.5/1e6)
	}
	runtime.KeepAlive(r)
}

func inUse() float64 {
	var stats runtime.MemStats
	for range 2 { // what unique forgets goes in the second one
		runtime.GC()
	}
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc)
}
