package listener

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Queries is the agent's UDP socket in a pod, of one address family, to which the
// kernel steers the pod's queries wherever they were sent, and the way back: an
// answer has to come from where its query was sent to, port included, whatever
// else in the pod is bound there. So it leaves by a raw socket, and never leaves
// the pod's loopback. It is safe for concurrent use.
type Queries struct {
	conn    *net.UDPConn
	answers *os.File // raw, IPPROTO_RAW: the header is ours
	v6      bool
}

// OpenQueries opens a socket on loopback at port, in the calling thread's network
// namespace. family is AF_INET or AF_INET6.
func OpenQueries(family int, port uint16, mark uint32) (*Queries, error) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}}
	if family == unix.AF_INET6 {
		at = &unix.SockaddrInet6{Port: int(port), Addr: netip.IPv6Loopback().As16()}
	}
	if err := unix.Bind(fd, at); errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("UDP port %d is in use in the pod: move the program that has it, the agent takes the pod's DNS there: %w", port, err)
	} else if err != nil {
		return nil, fmt.Errorf("bind to UDP port %d of the pod's loopback: %w", port, err)
	}
	return AdoptQueries(fd, family, mark)
}

// AdoptQueries makes Queries of one that another agent has opened in the calling
// thread's network namespace. It duplicates the descriptor, which stays the
// caller's.
func AdoptQueries(fd, family int, mark uint32) (*Queries, error) {
	s := &Queries{v6: family == unix.AF_INET6}
	level, option := unix.SOL_IP, unix.IP_RECVORIGDSTADDR
	if s.v6 {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return nil, fmt.Errorf("ask for datagrams' destinations: %w", err)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate a UDP socket: %w", err)
	}
	f := os.NewFile(uintptr(dup), "queries")
	defer f.Close()
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("adopt a UDP socket: %w", err)
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("adopt a UDP socket: not UDP but %T", conn), conn.Close())
	}
	raw, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a raw socket (the agent needs CAP_NET_RAW): %w", err), udp.Close())
	}
	s.conn, s.answers = udp, os.NewFile(uintptr(raw), "answers")
	if err := unix.SetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return nil, errors.Join(fmt.Errorf("set SO_MARK: %w", err), s.Close())
	}
	return s, nil
}

// SyscallConn implements syscall.Conn, with the socket that takes queries.
func (s *Queries) SyscallConn() (syscall.RawConn, error) { return s.conn.SyscallConn() }

// IsIPv6 reports the socket's family.
func (s *Queries) IsIPv6() bool { return s.v6 }

// Stop ends reading, here and now: who reads gets os.ErrDeadlineExceeded. Answers
// can be sent until Close.
func (s *Queries) Stop() error { return s.conn.SetReadDeadline(time.Unix(1, 0)) }

// Close closes the socket. Who reads from it gets net.ErrClosed.
func (s *Queries) Close() error {
	err := s.answers.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	return errors.Join(s.conn.Close(), err)
}

// Read waits for a datagram, and returns its length, where it was sent to and by
// whom. One that does not fit into b is cut off, and n is len(b).
func (s *Queries) Read(b []byte) (n int, to, from netip.AddrPort, err error) {
	var oob [128]byte
	n, oobn, _, from, err := s.conn.ReadMsgUDPAddrPort(b, oob[:])
	if err != nil {
		return 0, netip.AddrPort{}, netip.AddrPort{}, err
	}
	return n, destination(oob[:oobn]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), nil
}

// destination finds where a datagram was sent to; invalid when it is not said.
func destination(control []byte) netip.AddrPort {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.AddrPort{}
	}
	for i := range messages {
		switch sa, _ := unix.ParseOrigDstAddr(&messages[i]); sa := sa.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
		}
	}
	return netip.AddrPort{}
}

// Header sizes, and the largest payload that an IPv4 packet has room for.
const (
	ipv4Len    = 20
	ipv6Len    = 40
	udpLen     = 8
	MaxPayload = 65535 - ipv4Len - udpLen
)

// Reply sends an answer of at most MaxPayload bytes to an address of the pod, as
// from where the query was sent to. It does not wait: what there is no room for
// is lost, as on any network.
func (s *Queries) Reply(payload []byte, from, to netip.AddrPort) error {
	if len(payload) > MaxPayload || from.Addr().Is4() == s.v6 || to.Addr().Is4() == s.v6 {
		return fmt.Errorf("answer of %d bytes from %v to %v does not fit the socket", len(payload), from, to)
	}
	packet := Packet(payload, from, to)
	var dst unix.Sockaddr
	if s.v6 {
		dst = &unix.SockaddrInet6{Addr: to.Addr().As16()} // a port here would be a protocol (rawv6_sendmsg)
	} else {
		dst = &unix.SockaddrInet4{Addr: to.Addr().As4()}
	}
	raw, err := s.answers.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = unix.Sendto(int(fd), packet, 0, dst) }); err != nil {
		return err
	}
	return os.NewSyscallError("sendto", inner)
}

// Packet makes an IP packet that carries a UDP datagram (RFC 768, RFC 791, RFC
// 8200). Both addresses are of one family, IPv4 ones unmapped.
func Packet(payload []byte, from, to netip.AddrPort) []byte {
	length := udpLen + len(payload)
	var packet []byte
	pseudo := uint32(unix.IPPROTO_UDP) + uint32(length)
	if from.Addr().Is4() {
		packet = make([]byte, ipv4Len, ipv4Len+length)
		packet[0] = 4<<4 | ipv4Len/4
		binary.BigEndian.PutUint16(packet[2:], uint16(ipv4Len+length))
		packet[8], packet[9] = 64, unix.IPPROTO_UDP
		// The kernel fills in the identification and the header's checksum.
		copy(packet[12:], from.Addr().AsSlice())
		copy(packet[16:], to.Addr().AsSlice())
		pseudo += sum(packet[12:20])
	} else {
		packet = make([]byte, ipv6Len, ipv6Len+length)
		packet[0] = 6 << 4
		binary.BigEndian.PutUint16(packet[4:], uint16(length))
		packet[6], packet[7] = unix.IPPROTO_UDP, 64
		copy(packet[8:], from.Addr().AsSlice())
		copy(packet[24:], to.Addr().AsSlice())
		pseudo += sum(packet[8:40])
	}
	at := len(packet)
	packet = binary.BigEndian.AppendUint16(packet, from.Port())
	packet = binary.BigEndian.AppendUint16(packet, to.Port())
	packet = binary.BigEndian.AppendUint16(packet, uint16(length))
	packet = append(packet, 0, 0)
	packet = append(packet, payload...)
	checksum := fold(pseudo + sum(packet[at:]))
	if checksum == 0 {
		checksum = 0xffff // 0 would say that there is none
	}
	binary.BigEndian.PutUint16(packet[at+6:], checksum)
	return packet
}

// sum adds 16-bit words; 64 KiB of them fit into 32 bits.
func sum(b []byte) (total uint32) {
	for ; len(b) > 1; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	return total
}

func fold(total uint32) uint16 {
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}
