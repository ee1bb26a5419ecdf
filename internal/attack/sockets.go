package attack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// crafting makes a try of a packet that differs from the direction's ordinary one.
type crafting func(name, what string, change func(*packet)) try

// sockets are the ways out by raw sockets: the kernel sees a socket of the pod behind the
// packet, and routes it.
func (a aim) sockets(raw crafting) []try {
	by := func(t try, socket func(packet) error) try {
		t.socket = socket
		return t
	}
	return []try{
		by(raw("IPPROTO_RAW, TCP", "a segment with data, headers and all, from a raw socket", func(*packet) {}), a.sendRaw),
		by(raw("IPPROTO_RAW, UDP", "a datagram, headers and all, from a raw socket", func(p *packet) { p.protocol = unix.IPPROTO_UDP }), a.sendRaw),
		by(raw("raw TCP socket", "a segment with data from a raw socket of TCP, as the kernel's own for what has no socket", func(*packet) {}), a.sendTCP),
	}
}

// marked gives a socket the agent's mark, as a pod with NET_ADMIN can: routing leads it past the agent.
func (a aim) marked(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(a.mark))
}

// bound keeps a socket to the pod's link, as SO_BINDTODEVICE does: no rule can lead it back to the agent on lo.
func (a aim) bound(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, a.eth)
}

// connectBy connects, and says something, by a socket that was prepared.
func (a aim) connectBy(prepare func(fd int) error) func(ctx context.Context, from, to netip.AddrPort) error {
	return func(ctx context.Context, from, to netip.AddrPort) error {
		ctx, cancel := context.WithTimeout(ctx, connectWait)
		defer cancel()
		dialer := net.Dialer{
			LocalAddr: net.TCPAddrFromAddrPort(from),
			Control: func(_, _ string, raw syscall.RawConn) error {
				var err error
				return errors.Join(raw.Control(func(fd uintptr) { err = prepare(int(fd)) }), err)
			},
		}
		dialer.SetMultipathTCP(false)
		conn, err := dialer.DialContext(ctx, "tcp", to.String())
		if err != nil {
			if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EPERM) {
				return fmt.Errorf("connect around the agent: %w", err)
			}
			return nil // refused or silent: the tap and the counters say the rest
		}
		_, err = conn.Write([]byte("plaintext"))
		return errors.Join(err, conn.Close())
	}
}

// sendRaw sends IP packets whose headers are as they were made (raw(7)).
func (a aim) sendRaw(p packet) error {
	return a.sendBy(unix.IPPROTO_RAW, p.destination.Addr(), p.encode())
}

// sendTCP sends a segment that the kernel makes the IP header of.
func (a aim) sendTCP(p packet) error {
	return a.sendBy(unix.IPPROTO_TCP, p.destination.Addr(), [][]byte{p.transport()})
}

// sendBy sends by a raw socket that is past what leads the pod's connections to the agent. It
// must be called inside the pod's namespace.
func (a aim) sendBy(protocol int, to netip.Addr, packets [][]byte) error {
	family := unix.AF_INET
	if to.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return os.NewSyscallError("open raw socket", err)
	}
	err = errors.Join(a.marked(fd), a.bound(fd), unix.Bind(fd, socketAddress(a.pod)))
	for _, data := range packets {
		if err == nil {
			err = unix.Sendto(fd, data, 0, socketAddress(to))
		}
	}
	// ENOBUFS: a hook of the link itself dropped it, which is an outcome.
	if errors.Is(err, unix.ENOBUFS) {
		err = nil
	}
	return errors.Join(os.NewSyscallError("send by a raw socket", err), unix.Close(fd))
}

func socketAddress(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// disguises are TCP and UDP as something that a gate might take for none of its business: in
// another IP packet, behind IPv6 extension headers, or at the tunnel's port by the other protocol.
func (a aim) disguises(raw crafting, inbound bool) []try {
	within := "out of the pod"
	if inbound {
		within = "into the pod"
	}
	tries := []try{
		raw("UDP to 15008", "a datagram to the tunnel port", func(p *packet) {
			p.protocol, p.destination = unix.IPPROTO_UDP, netip.AddrPortFrom(p.destination.Addr(), a.tunnelPort)
		}),
		raw("IPv4 in IP", "a segment with data in an IPv4 packet in another, "+within, func(p *packet) {
			p.enclose(unix.IPPROTO_IPIP, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"))
		}),
		raw("IPv6 in IP", "a segment with data in an IPv6 packet in another, "+within, func(p *packet) {
			p.enclose(unix.IPPROTO_IPV6, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"))
		}),
	}
	if a.pod.Is4() {
		return tries
	}
	behind := func(name, what string, headers ...uint8) {
		tries = append(tries, raw(name, what+" before TCP with data", func(p *packet) { p.headers = headers }))
	}
	behind("routing header", "an IPv6 routing header", unix.IPPROTO_ROUTING)
	behind("hop-by-hop header", "IPv6 hop-by-hop options", unix.IPPROTO_HOPOPTS)
	behind("chain of headers", "hop-by-hop options, destination options and a routing header", unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS, unix.IPPROTO_ROUTING)
	behind("atomic fragment", "a fragment header of a packet that is in one piece", unix.IPPROTO_FRAGMENT)
	return tries
}

// enclose puts what the packet is into an IP packet of its own, by the addresses where they are of
// another family than its own, and that into the packet.
func (p *packet) enclose(protocol uint8, from, to netip.Addr) {
	inner := *p
	if from.Is4() != p.source.Addr().Is4() {
		inner.source, inner.destination = netip.AddrPortFrom(from, p.source.Port()), netip.AddrPortFrom(to, p.destination.Port())
	}
	p.protocol, p.inner = protocol, inner.encode()[0]
}
