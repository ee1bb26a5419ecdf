package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// dropped4 drops so many packets of a peer, and returns the bytes of each.
func dropped4(t *testing.T, p *Pod, peer string, packets int) uint64 {
	t.Helper()
	frame := ip(peer, pod4, protoTCP, tcp(1002, 80, syn))
	verdict, _, err := p.program(gateProgHostInbound).Benchmark(frame, packets, nil)
	if err != nil || verdict != 2 {
		t.Fatalf("%d packets of %s: verdict %d, %v", packets, peer, verdict, err)
	}
	return uint64(len(frame) - 14)
}

// TestDropPeersAreExact: a CPU keeps the repeats of a drop to itself until it drops
// something else. Nothing of them is missing before, or counted again after.
func TestDropPeersAreExact(t *testing.T) {
	p := lonePod(t)
	want := map[string]uint64{}
	check := func() {
		t.Helper()
		peers, err := p.DropPeers()
		if err != nil || len(peers) != len(want) {
			t.Fatalf("%+v, %v; want %v", peers, err, want)
		}
		for _, peer := range peers {
			n := want[peer.Remote.String()]
			if peer.Count.Packets != n || peer.Count.Bytes != n*40 || peer.Port != 80 || peer.Protocol != protoTCP ||
				peer.Direction != Inbound || peer.Reason != DropPlaintextInbound || peer.LastSeen > time.Minute {
				t.Errorf("%+v, want %d packets", peer, n)
			}
		}
	}
	check()
	for _, c := range []struct {
		peer    string
		packets int
	}{{peer4, 1}, {peer4, 1}, {strange4, 5}, {peer4, 300}, {node4, 2}, {strange4, 7}} {
		if size := dropped4(t, p, c.peer, c.packets); size != 40 {
			t.Fatalf("a packet has %d bytes", size)
		}
		want[c.peer] += uint64(c.packets)
		check()
	}
}

// TestRepeatsStayOnTheirCPU: what is dropped again and again is no row of the table that all
// CPUs write, until something else is dropped.
func TestRepeatsStayOnTheirCPU(t *testing.T) {
	onOneCPU(t)
	p := lonePod(t)
	key := gateDropPeer{
		Remote: toAddress(netip.MustParseAddr(peer4)), Port: 80,
		Direction: uint8(Inbound), Reason: uint8(DropPlaintextInbound), Proto: protoTCP,
	}
	row := func() (tally gateTally) {
		if err := p.maps[gateMapDropPeers].Lookup(key, &tally); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
		return tally
	}
	dropped4(t, p, peer4, 1000)
	if have := row(); have.Packets != 0 {
		t.Errorf("1,000 repeats: the table has %+v", have)
	}
	dropped4(t, p, strange4, 1)
	if have := row(); have.Packets != 1000 || have.Bytes != 40_000 {
		t.Errorf("another drop came: the table has %+v", have)
	}
}

// TestRecordIsALine: a record and the 8 bytes before it in the ring are one cache line, and
// what an earlier version left in the ring says what it said.
func TestRecordIsALine(t *testing.T) {
	const size = unsafe.Sizeof(gateDropRecord{})
	if size != 56 {
		t.Errorf("a record has %d bytes", size)
	}
	for hook, want := range map[Hook]Drop{
		HostOutbound: {Direction: Outbound}, HostInbound: {Direction: Inbound},
		PodOutbound: {Direction: Outbound, Twin: true}, PodInbound: {Direction: Inbound, Twin: true},
	} {
		raw := make([]byte, size)
		binary.NativeEndian.PutUint32(raw[12:], 40)
		raw[53] = byte(hook)
		earlier := append(raw[:size:size], make([]byte, 8)...)
		if want.Twin {
			earlier[53], earlier[56] = byte(hook-PodOutbound), 1
		}
		for _, b := range [][]byte{raw, earlier} {
			got, ok := decodeDrop(b, time.Time{})
			if !ok || got.Direction != want.Direction || got.Twin != want.Twin || got.Length != 40 {
				t.Errorf("%v in %d bytes: %+v, %v", hook, len(b), got, ok)
			}
		}
		if _, ok := decodeDrop(raw[:size-1], time.Time{}); ok {
			t.Error("a record was read that is too short")
		}
	}
}

// onOneCPU keeps the test's thread on a CPU. It ends with the test.
func onOneCPU(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
}
