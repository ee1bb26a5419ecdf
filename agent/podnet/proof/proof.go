// Package proof proves that a gate sees a pod's traffic, by packets that it must
// drop: bare TCP segments to and from an address that nobody has.
// Only a Gate keeps anything; all else is safe for concurrent use.
package proof

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Address is the other end of test packets: the last address of TEST-NET-1
// (RFC 5737), or one of the discard-only prefix (RFC 6666).
func Address(family int) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte{192, 0, 2, 254})
	}
	return netip.AddrFrom16([16]byte{0: 1, 15: 0xfe})
}

// Is reports whether an address is Address of its family.
func Is(a netip.Addr) bool {
	return a == Address(unix.AF_INET) || a == Address(unix.AF_INET6)
}

// Frame is an Ethernet frame with one TCP segment from src to dst, ACK with
// payload, both ports equal.
func Frame(to, from net.HardwareAddr, src, dst netip.Addr, port uint16) []byte {
	tcp := make([]byte, 20, 22)
	binary.BigEndian.PutUint16(tcp[0:], port)
	binary.BigEndian.PutUint16(tcp[2:], port)
	tcp[12], tcp[13] = 5<<4, 0x10
	tcp = append(tcp, 'h', 'i')
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudoHeader(src, dst, len(tcp)), tcp...)))

	frame := append(append(make([]byte, 0, 80), to...), from...)
	if src.Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(tcp)))
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		frame = append(binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP), ip...)
	} else {
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_TCP, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], dst.AsSlice())
		frame = append(binary.BigEndian.AppendUint16(frame, unix.ETH_P_IPV6), ip...)
	}
	return append(frame, tcp...)
}

func pseudoHeader(src, dst netip.Addr, length int) []byte {
	h := append(src.AsSlice(), dst.AsSlice()...)
	if src.Is4() {
		return binary.BigEndian.AppendUint16(append(h, 0, unix.IPPROTO_TCP), uint16(length))
	}
	return append(binary.BigEndian.AppendUint32(h, uint32(length)), 0, 0, 0, unix.IPPROTO_TCP)
}

// checksum is the Internet checksum (RFC 1071) of an even or odd number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Send sends one frame on an interface of the calling thread's namespace. It returns the socket
// that it has sent by, -1 if there is none: who closes it waits for a grace period of RCU
// (packet_release, net/packet/af_packet.c).
func Send(ifindex, family int, frame []byte, bypass bool) (socket int, err error) {
	protocol := uint16(unix.ETH_P_IP)
	if family == unix.AF_INET6 {
		protocol = unix.ETH_P_IPV6
	}
	// Protocol 0: it sends, and takes nothing in.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if bypass {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	}
	if err == nil {
		err = unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifindex, Protocol: protocol<<8 | protocol>>8})
	}
	if errors.Is(err, unix.ENOBUFS) {
		err = nil // how a drop on the way out is told to the sender (net_xmit_errno)
	}
	return fd, err
}
