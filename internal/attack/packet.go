package attack

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// TCP flags (RFC 9293, section 3.1).
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagPSH = 0x08
	flagACK = 0x10
)

// packet is what a crafted IP packet is made of. Its addresses are of one family.
type packet struct {
	source, destination netip.AddrPort
	protocol            uint8 // of the transport header; 0 means TCP
	flags               uint8 // TCP
	// payload follows the ports. Of ICMPv6 it is the addresses of sources in an MLD report about
	// the group that it goes to, or an option of a neighbour solicitation.
	payload []byte
	// echo makes ICMP, of either family, a ping with payload as its data.
	echo bool
	// inner is an IP packet that is the body, in place of a transport header and payload.
	inner []byte
	// options makes IPv4 options, or an IPv6 destination options header.
	options bool
	// headers are the IPv6 extension headers before the transport header, by their numbers.
	headers []uint8
	// fragments cuts the packet in two.
	fragments bool
}

// encode returns the IP packets: one, or two fragments.
func (p packet) encode() [][]byte {
	if p.fragments {
		// A node that tracks connections puts fragments together, and cuts them anew by the
		// longer one: the marker stays whole.
		p.payload = append(slices.Clip(p.payload), make([]byte, 64)...)
	}
	body, protocol := p.transport(), p.protocol
	if protocol == 0 {
		protocol = unix.IPPROTO_TCP
	}
	if !p.fragments {
		return [][]byte{p.wrap(body, protocol, 0, false)}
	}
	// The first has less than a TCP header, as a filter evasion would.
	const cut = 16
	return [][]byte{p.wrap(body[:cut], protocol, 0, true), p.wrap(body[cut:], protocol, cut, false)}
}

func (p packet) transport() []byte {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.source.Port()), p.destination.Port())
	switch p.protocol {
	case unix.IPPROTO_IPIP, unix.IPPROTO_IPV6:
		return p.inner // RFC 2003, section 3; RFC 2473, section 3
	case 0, unix.IPPROTO_TCP:
		h := append(ports, 0, 0, 0, 1, 0, 0, 0, 1, 5<<4, p.flags, 0xff, 0xff, 0, 0, 0, 0)
		return p.checked(append(h, p.payload...), unix.IPPROTO_TCP, 16)
	case unix.IPPROTO_UDP:
		h := binary.BigEndian.AppendUint16(ports, uint16(8+len(p.payload)))
		return p.checked(append(append(h, 0, 0), p.payload...), unix.IPPROTO_UDP, 6)
	case unix.IPPROTO_ICMP:
		m := append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, p.payload...) // RFC 792
		binary.BigEndian.PutUint16(m[2:], checksum(m))
		return m
	case unix.IPPROTO_ICMPV6:
		if p.echo {
			return p.checked(append([]byte{128, 0, 0, 0, 0, 1, 0, 1}, p.payload...), unix.IPPROTO_ICMPV6, 2) // RFC 4443, section 4.1
		}
		if !p.destination.Addr().IsMulticast() {
			return p.checked(p.solicitation(), unix.IPPROTO_ICMPV6, 2)
		}
		return p.checked(p.report(), unix.IPPROTO_ICMPV6, 2)
	default:
		return append(ports, p.payload...)
	}
}

// solicitation asks for the neighbour that it goes to, and has an option that nothing defines
// (RFC 4861, sections 4.3 and 4.6; RFC 4727, section 5.1.3).
func (p packet) solicitation() []byte {
	const kind, experiment, unit = 135, 253, 8
	units := (2 + len(p.payload) + unit - 1) / unit
	m := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, p.destination.Addr().AsSlice()...)
	m = append(append(m, experiment, byte(units)), p.payload...)
	return append(m, make([]byte, units*unit-2-len(p.payload))...)
}

// report is an MLDv2 report of one group, by sources (RFC 3810, section 5.2).
func (p packet) report() []byte {
	const kind, allow, address = 143, 5, 16
	sources := (len(p.payload) + address - 1) / address
	m := append([]byte{kind, 0, 0, 0, 0, 0, 0, 1, allow, 0, byte(sources >> 8), byte(sources)}, p.destination.Addr().AsSlice()...)
	m = append(m, p.payload...)
	return append(m, make([]byte, sources*address-len(p.payload))...)
}

// checked puts the transport checksum at the given offset.
func (p packet) checked(segment []byte, protocol uint8, at int) []byte {
	pseudo := append(p.source.Addr().AsSlice(), p.destination.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, 0, byte(len(segment)>>8), byte(len(segment)), 0, 0, 0, protocol)
	binary.BigEndian.PutUint16(segment[at:], checksum(append(pseudo, segment...)))
	return segment
}

func (p packet) wrap(body []byte, protocol uint8, offset int, more bool) []byte {
	if p.source.Addr().Is4() {
		return p.wrap4(body, protocol, offset, more)
	}
	return p.wrap6(body, protocol, offset, more)
}

// wrap4 puts an IPv4 header before body (RFC 791, section 3.1).
func (p packet) wrap4(body []byte, protocol uint8, offset int, more bool) []byte {
	header := make([]byte, 20)
	if p.options {
		header = append(header, 1, 1, 1, 0) // no operation, end of options
	}
	header[0] = 0x40 | byte(len(header)/4)
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(body)))
	binary.BigEndian.PutUint16(header[4:], p.source.Port()) // the same for all fragments
	fragment := uint16(offset / 8)
	if more {
		fragment |= 0x2000
	}
	binary.BigEndian.PutUint16(header[6:], fragment)
	header[8], header[9] = 64, protocol
	copy(header[12:], p.source.Addr().AsSlice())
	copy(header[16:], p.destination.Addr().AsSlice())
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(header, body...)
}

// wrap6 puts an IPv6 header, and extension headers, before body (RFC 8200).
func (p packet) wrap6(body []byte, protocol uint8, offset int, more bool) []byte {
	next := protocol
	if p.fragments {
		h := []byte{next, 0, 0, 0, 0, 0, 0, 0}
		word := uint16(offset)
		if more {
			word |= 1
		}
		binary.BigEndian.PutUint16(h[2:], word)
		binary.BigEndian.PutUint32(h[4:], uint32(p.source.Port()))
		body, next = append(h, body...), unix.IPPROTO_FRAGMENT
	}
	headers := p.headers
	if p.options {
		headers = []uint8{unix.IPPROTO_DSTOPTS}
	}
	for _, kind := range slices.Backward(headers) {
		body, next = append(p.extension(kind, next), body...), kind
	}
	limit := byte(64)
	switch {
	case protocol != unix.IPPROTO_ICMPV6, p.echo:
	case !p.destination.Addr().IsMulticast():
		limit = 255 // RFC 4861, section 7.1
	default: // a router alert, and not off the link
		body, next, limit = append([]byte{next, 0, 5, 2, 0, 0, 1, 0}, body...), unix.IPPROTO_HOPOPTS, 1
	}
	header := make([]byte, 40)
	header[0], header[6], header[7] = 0x60, next, limit
	binary.BigEndian.PutUint16(header[4:], uint16(len(body)))
	copy(header[8:], p.source.Addr().AsSlice())
	copy(header[24:], p.destination.Addr().AsSlice())
	return append(header, body...)
}

// extension is an IPv6 extension header that a node on the way passes on, and its destination
// passes over: a route that has been gone to its end (RFC 5095, section 3), a fragment that is all
// of its packet (RFC 6946), options that are padding.
func (p packet) extension(kind, next uint8) []byte {
	switch kind {
	case unix.IPPROTO_ROUTING:
		return append([]byte{next, 2, 0, 0, 0, 0, 0, 0}, p.destination.Addr().AsSlice()...)
	case unix.IPPROTO_FRAGMENT:
		return binary.BigEndian.AppendUint32([]byte{next, 0, 0, 0}, uint32(p.source.Port()))
	default:
		return []byte{next, 0, 1, 4, 0, 0, 0, 0} // PadN
	}
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
