package attack

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// connectWait is how long a socket's attempt to connect may take: the first SYN
// and one more.
const connectWait = 1200 * time.Millisecond

// try is one attack in one address family.
type try struct {
	name, what string
	inbound    bool
	// craft makes the packet from a source port and a marker; nil for a try
	// that uses an ordinary socket.
	craft func(port uint16, marker []byte) packet
	// connect is such a try: inside the pod, from the port. Its twin without
	// the gate is a SYN.
	connect func(ctx context.Context, from, to netip.AddrPort) error
	to      netip.AddrPort
	// socket is how a crafted packet is sent inside the pod, where that is not by a packet socket.
	socket func(packet) error
	// link says that the packet is for neighbours on the pod's link, and goes no further.
	link bool
}

// listeners is where MLD reports go to (RFC 3810, section 5.2.14).
func listeners() netip.Addr { return netip.AddrFrom16([16]byte{0xff, 0x02, 15: 0x16}) }

// aim is what the attacks of one address family are made of.
type aim struct {
	// pod is attacked, or attacks; peer is on another node; forged is the
	// address of another workload.
	pod, peer, forged netip.Addr
	// port is where applications are said to listen, on either side.
	port, tunnelPort uint16
	mark             uint32
	// eth is the index of the link in the pod that its address is on.
	eth int
	// client and app are ends of a live connection that the agent carries into
	// the pod: the tuple that it used between itself and the application.
	client, app netip.AddrPort
}

func (a aim) from(port uint16) netip.AddrPort { return netip.AddrPortFrom(a.pod, port) }
func (a aim) at(port uint16) netip.AddrPort   { return netip.AddrPortFrom(a.peer, port) }

// outbound are the ways out of the pod.
func (a aim) outbound() []try {
	raw := func(name, what string, change func(*packet)) try {
		return try{name: name, what: what, craft: func(port uint16, marker []byte) packet {
			p := packet{source: a.from(port), destination: a.at(a.port), flags: flagPSH | flagACK, payload: marker}
			change(&p)
			return p
		}}
	}
	tries := []try{
		{name: "agent's mark", what: "a socket with the agent's mark connects to the peer", connect: a.connectBy(a.marked), to: a.at(a.port)},
		{name: "mark to 15008", what: "a socket with the agent's mark connects to the tunnel port, to speak plaintext", connect: a.connectBy(a.marked), to: a.at(a.tunnelPort)},
		{name: "bound to the link", what: "a socket that is bound to the pod's link connects to the peer", connect: a.connectBy(a.bound), to: a.at(a.port)},
		{name: "bound, to 15008", what: "a socket that is bound to the pod's link connects to the tunnel port, to speak plaintext", connect: a.connectBy(a.bound), to: a.at(a.tunnelPort)},
		raw("plaintext to 15008", "a crafted segment with data to the tunnel port", func(p *packet) { p.destination = a.at(a.tunnelPort) }),
		raw("forged source", "a crafted SYN from another workload's address", func(p *packet) {
			p.source = netip.AddrPortFrom(a.forged, p.source.Port())
			p.flags, p.payload = flagSYN, nil
		}),
		raw("raw SYN", "a crafted SYN from the pod's own address", func(p *packet) { p.flags, p.payload = flagSYN, nil }),
		raw("raw ACK", "a crafted ACK with data, as of an established connection", func(p *packet) { p.flags = flagACK }),
		raw("bare ACK", "a crafted ACK without data, as the kernel's own", func(p *packet) { p.flags, p.payload = flagACK, nil }),
		raw("bare RST", "a crafted RST of no connection", func(p *packet) { p.flags, p.payload = flagRST, nil }),
		raw("passthru tuple", "data on the tuple that the agent uses towards the application, out of eth0", func(p *packet) {
			p.source, p.destination = a.app, a.client
		}),
		raw("SYN with data", "data on a SYN, as of TCP fast open", func(p *packet) { p.flags = flagSYN }),
		raw(a.optionsName(), a.optionsName()+" before TCP with data", func(p *packet) { p.options = true }),
		raw("fragments", "data in two fragments, the TCP header cut in two", func(p *packet) { p.fragments = true }),
		raw("UDP", "a datagram, not to DNS", func(p *packet) { p.protocol = unix.IPPROTO_UDP }),
		raw("ping", "data in an ICMP echo", a.ping),
		raw("other protocol", "SCTP, which nothing carries", func(p *packet) { p.protocol = unix.IPPROTO_SCTP }),
	}
	tries = append(tries, a.sockets(raw)...)
	tries = append(tries, a.disguises(raw, false)...)
	if a.pod.Is6() {
		tries = append(tries, a.report(false), a.solicitation(false))
	}
	return tries
}

// report is the way over the link for what multicast listeners say, which passes in both directions.
func (a aim) report(inbound bool) try {
	source := a.pod
	if inbound {
		source = a.peer
	}
	return try{
		name: "MLD report", what: "data as the sources of an IPv6 group, in a report to all on the link", inbound: inbound, link: true,
		craft: func(_ uint16, marker []byte) packet {
			return packet{source: netip.AddrPortFrom(source, 0), destination: netip.AddrPortFrom(listeners(), 0), protocol: unix.IPPROTO_ICMPV6, payload: marker}
		},
	}
}

// solicitation is a question for one neighbour, which nodes forward. What comes to the pod
// is sent on its link, as routed ones drop for that.
func (a aim) solicitation(inbound bool) try {
	from, to := a.pod, a.peer
	if inbound {
		from, to = to, from
	}
	return try{
		name: "neighbour solicitation", what: "data as an option of a neighbour solicitation, which nodes forward", inbound: inbound, link: inbound,
		craft: func(_ uint16, marker []byte) packet {
			return packet{source: netip.AddrPortFrom(from, 0), destination: netip.AddrPortFrom(to, 0), protocol: unix.IPPROTO_ICMPV6, payload: marker}
		},
	}
}

// ping makes a packet an echo request of the family: the oldest tunnel there is.
func (a aim) ping(p *packet) {
	p.echo, p.protocol = true, unix.IPPROTO_ICMP
	if a.pod.Is6() {
		p.protocol = unix.IPPROTO_ICMPV6
	}
}

func (a aim) optionsName() string {
	if a.pod.Is4() {
		return "IP options"
	}
	return "extension header"
}

// inbound are the ways into the pod, from the wire.
func (a aim) inbound() []try {
	raw := func(name, what string, change func(*packet)) try {
		return try{name: name, what: what, inbound: true, craft: func(port uint16, marker []byte) packet {
			p := packet{source: netip.AddrPortFrom(a.peer, port), destination: netip.AddrPortFrom(a.pod, a.port), flags: flagPSH | flagACK, payload: marker}
			change(&p)
			return p
		}}
	}
	tries := []try{
		raw("plaintext", "a SYN to the application's port", func(p *packet) { p.flags, p.payload = flagSYN, nil }),
		raw("raw ACK", "data of no connection", func(p *packet) { p.flags = flagACK }),
		raw("passthru tuple", "data on the tuple that the agent uses towards the application, from the wire", func(p *packet) {
			p.source, p.destination = a.client, a.app
		}),
		raw("forged source", "data from the pod's own address, from the wire", func(p *packet) {
			p.source = netip.AddrPortFrom(a.pod, p.source.Port())
		}),
		raw(a.optionsName(), a.optionsName()+" before TCP with data", func(p *packet) { p.options = true }),
		raw("fragments", "data in two fragments", func(p *packet) { p.fragments = true }),
		raw("UDP", "a datagram that answers nothing", func(p *packet) { p.protocol = unix.IPPROTO_UDP }),
		raw("ping", "data in an ICMP echo", a.ping),
	}
	tries = append(tries, a.disguises(raw, true)...)
	if a.pod.Is6() {
		tries = append(tries, a.report(true), a.solicitation(true))
	}
	return tries
}
