package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// FuzzOutbound looks for a frame that leaves the pod and should not: from a
// socket that is not the agent's only ARP, neighbour discovery, MLD and DNS
// may. The judge is written on its own, from the table in protocols.h.
func FuzzOutbound(f *testing.F) {
	p := lonePod(f)
	prog := p.program(gateProgHostOutbound)
	for _, frame := range [][]byte{
		arp(1, pod4, node4), ip(pod4, peer4, protoUDP, udp(1, 53, 'q')), ip(pod6, peer6, protoUDP, udp(1, 53)),
		ip(pod4, peer4, protoTCP, tcp(1, 80, syn)), ip(pod6, peer6, protoTCP, tcp(1, 15008, ack, 'x')),
		ipOptions(ip(pod4, peer4, protoTCP, tcp(1, 80, syn))), extension(ip(pod6, peer6, protoTCP, tcp(1, 80, syn)), 60),
		set(ip(pod6, node6, protoICMPv6, icmp(135, netip.MustParseAddr(node6).AsSlice()...)), 7, 255),
		set(ip(pod6, node6, protoICMPv6, icmp(136, netip.MustParseAddr(pod6).AsSlice()...)), 7, 255), set(ip(pod6, strange6, protoICMPv6, icmp(136, netip.MustParseAddr("fe80::5").AsSlice()...)), 7, 255),
		routerAlert(set(ip("fe80::1", "ff02::16", protoICMPv6, mld2Report("ff02::fb", "ff02::1:ff00:2")), 7, 1)),
		routerAlert(set(ip("fe80::1", "ff02::fb", protoICMPv6, mldReport(131, "ff02::fb")), 7, 1)),
		ip(pod4, peer4, protoICMP, icmp(8)),
	} {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 54 || len(frame) > 1500 {
			return // the kernel's test run refuses short ones
		}
		verdict, err := prog.Run(&ebpf.RunOptions{Data: frame})
		if err != nil {
			t.Fatalf("run: %v", err)
		}
		if verdict != 2 && !mayLeave(frame) {
			t.Fatalf("a frame left that must not: %x", frame)
		}
	})
}

func mayLeave(f []byte) bool {
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0806:
		return len(f) == 42
	case 0x0800:
		return f[14] == 0x45 && f[23] == protoUDP && binary.BigEndian.Uint16(f[36:]) == 53 &&
			int(binary.BigEndian.Uint16(f[16:])) == len(f)-14
	case 0x86dd:
		if int(binary.BigEndian.Uint16(f[18:])) != len(f)-54 {
			return false
		}
		return f[20] == protoICMPv6 && maySolicit(f[22:38], f[38:54], f[54:]) || f[20] == protoUDP && binary.BigEndian.Uint16(f[56:]) == 53 ||
			f[20] == 0 && f[54] == protoICMPv6 && f[38] == 0xff && f[39] == 0x02 && mayReport(f[62:])
	}
	return false
}

// maySolicit judges what neighbour discovery says by its length: a header, the address that
// it is about, and an option of eight bytes; and by where it goes to: the link's groups, or,
// when nothing in that is free, one address.
func maySolicit(from, to, m []byte) bool {
	fixed := 24
	if m[0] == 133 {
		fixed = 8
	}
	if m[0] < 133 || m[0] > 136 || len(m) != fixed && (len(m) != fixed+8 || m[fixed+1] != 1) {
		return false
	}
	if to[0] == 0xff {
		return to[1] == 0x02
	}
	return m[0] == 135 && bytes.Equal(m[8:24], to) ||
		m[0] == 136 && (bytes.Equal(m[8:24], from) || bytes.Equal(m[8:24], netip.MustParseAddr(pod6).AsSlice()))
}

// mayReport judges what MLD says by its length: a header and one group, or up to 16
// records of a group each.
func mayReport(m []byte) bool {
	if len(m) < 24 || m[0] != 143 {
		return len(m) == 24
	}
	return len(m) == 8+20*int(m[7]) && m[7] <= 16
}

// FuzzDropRecord feeds the decoder of the ring's records.
func FuzzDropRecord(f *testing.F) {
	f.Add(make([]byte, 80))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, ok := decodeDrop(b, time.Unix(0, 0)); ok && d.Reason.String() == "" {
			t.Error("a reason without a word")
		}
	})
}
