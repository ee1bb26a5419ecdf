package bpf

import (
	"encoding/binary"
	"net/netip"
)

// Frames by hand, because most of them no library would make. Checksums are
// left out: the gate reads none.

const (
	fin, syn, rst, psh, ack, urg = 1, 2, 4, 8, 16, 32

	protoICMP, protoTCP, protoUDP, protoICMPv6 = 1, 6, 17, 58
)

func ethernet(etherType uint16, payload []byte) []byte {
	f := append(make([]byte, 12, 14+len(payload)), byte(etherType>>8), byte(etherType))
	return append(f, payload...)
}

// ip makes a frame with an IPv4 or IPv6 packet, by the family of source.
func ip(source, destination string, proto byte, payload []byte) []byte {
	src, dst := netip.MustParseAddr(source), netip.MustParseAddr(destination)
	if src.Is4() {
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		return ethernet(0x0800, append(h, payload...))
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return ethernet(0x86dd, append(h, payload...))
}

func tcp(from, to uint16, flags byte, payload ...byte) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, from)
	binary.BigEndian.PutUint16(h[2:], to)
	h[12], h[13] = 5<<4, flags
	return append(h, payload...)
}

func udp(from, to uint16, payload ...byte) []byte {
	h := make([]byte, 8)
	binary.BigEndian.PutUint16(h, from)
	binary.BigEndian.PutUint16(h[2:], to)
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(payload)))
	return append(h, payload...)
}

// icmp makes a message of a type with eight bytes of header.
func icmp(kind byte, rest ...byte) []byte {
	return append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, rest...)
}

// mldReport is an MLDv1 report or done: eight bytes of header and the group (RFC 2710, section 3).
func mldReport(kind byte, group string, rest ...byte) []byte {
	return icmp(kind, append(netip.MustParseAddr(group).AsSlice(), rest...)...)
}

// mld2Report is an MLDv2 report that leaves groups (RFC 3810, section 5.2).
func mld2Report(groups ...string) []byte {
	m := icmp(143)
	binary.BigEndian.PutUint16(m[6:], uint16(len(groups)))
	for _, g := range groups {
		m = append(append(m, 3, 0, 0, 0), netip.MustParseAddr(g).AsSlice()...)
	}
	return m
}

func arp(operation byte, sender, target string) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, operation}
	b = append(append(b, make([]byte, 6)...), netip.MustParseAddr(sender).AsSlice()...)
	b = append(append(b, make([]byte, 6)...), netip.MustParseAddr(target).AsSlice()...)
	return ethernet(0x0806, b)
}

// set changes one byte of a frame, counted from the IP header.
func set(f []byte, at int, value byte) []byte {
	f[14+at] = value
	return f
}

// pad adds bytes behind the packet.
func pad(f []byte, n int) []byte { return append(f, make([]byte, n)...) }

// ipOptions gives an IPv4 frame a no-operation option.
func ipOptions(f []byte) []byte {
	out := append([]byte{}, f[:34]...)
	out[14] = 0x46
	binary.BigEndian.PutUint16(out[16:], uint16(len(f)-14+4))
	return append(append(out, 1, 1, 1, 0), f[34:]...)
}

// extension puts an extension header of eight bytes into an IPv6 frame.
func extension(f []byte, kind byte, body ...byte) []byte {
	out := append([]byte{}, f[:54]...)
	header := append([]byte{f[20], 0}, body...)
	for len(header) < 8 {
		header = append(header, 0)
	}
	out[20] = kind
	binary.BigEndian.PutUint16(out[18:], uint16(len(f)-54+8))
	return append(append(out, header...), f[54:]...)
}

func routerAlert(f []byte) []byte { return extension(f, 0, 5, 2, 0, 0, 1, 0) }

// quote is what an ICMP error carries of a packet.
func quote(f []byte, n int) []byte { return f[14 : 14+n] }
