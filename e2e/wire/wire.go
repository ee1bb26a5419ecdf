// Package wire judges a packet capture: how many TCP payload bytes on it are
// TLS records to or from the tunnel's port, and how many are anything else. It
// reads what tcpdump wrote, and runs it, so that the judge of "nothing in plaintext"
// shares no code with what it judges. Its functions are safe for concurrent use.
package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// TunnelPort is the port of HBONE.
const TunnelPort = 15008

// Findings are what a capture held, in packets and bytes of TCP payload.
type Findings struct {
	// Packets counts all packets of the capture.
	Packets int
	// TLSBytes are payload bytes on the tunnel's port inside whole TLS records.
	TLSBytes int
	// PlaintextBytes are payload bytes on any other port, or on the tunnel's
	// port outside TLS records.
	PlaintextBytes int
	// PlaintextFlows names the flows that PlaintextBytes were seen on, at most
	// MaxNamed, sorted: with as many there may be others.
	PlaintextFlows []string
	// Markers counts the packets whose payload holds the marker.
	Markers int
	// UDPPayloads and Other count packets that are neither TCP nor needed for
	// addressing (ARP, ICMPv6).
	UDPPayloads, Other int
}

// Sealed is nil when nothing of TCP, nor the marker, was seen outside TLS records, or else
// an error with what was. Whether there was anything at all, TLSBytes says.
func (f Findings) Sealed() error {
	if f.PlaintextBytes == 0 && f.Markers == 0 {
		return nil
	}
	return fmt.Errorf("plaintext on the wire: %s: %v", f, f.PlaintextFlows)
}

// MaxNamed bounds PlaintextFlows.
const MaxNamed = 10_000

// String is one line for a person.
func (f Findings) String() string {
	return fmt.Sprintf("%d packets: %d bytes in TLS records on port %d, %d bytes of plaintext, marker seen %d times",
		f.Packets, f.TLSBytes, TunnelPort, f.PlaintextBytes, f.Markers)
}

// direction is one half of a TCP connection.
type direction struct{ src, dst netip.AddrPort }

func (d direction) String() string { return fmt.Sprintf("%s -> %s", d.src, d.dst) }

// segment is a piece of payload at its sequence number.
type segment struct {
	seq     uint32
	payload []byte
}

// half is what was captured of one direction.
type half struct {
	isn      uint32
	synSeen  bool
	segments []segment
}

// Read judges a capture in pcap form. Only TCP between addresses for which
// judged returns true (either end) counts; nil judges everything. marker, when
// not empty, is searched in every packet.
func Read(r io.Reader, marker []byte, judged func(netip.Addr) bool) (Findings, error) {
	var found Findings
	reader, err := pcapgo.NewReader(r)
	if err != nil {
		return found, fmt.Errorf("read capture: %w", err)
	}
	halves := map[direction][]*half{}
	for {
		data, _, err := reader.ReadPacketData()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break // tcpdump may be stopped in the middle of a packet
		}
		if err != nil {
			return found, fmt.Errorf("read capture: %w", err)
		}
		found.Packets++
		found.add(gopacket.NewPacket(data, reader.LinkType(), gopacket.Lazy), marker, judged, halves)
	}
	for d, connections := range halves {
		for _, h := range connections {
			found.judge(d, h)
		}
	}
	slices.Sort(found.PlaintextFlows)
	return found, nil
}

func (f *Findings) add(p gopacket.Packet, marker []byte, judged func(netip.Addr) bool, halves map[direction][]*half) {
	src, dst, ok := addresses(p)
	if !ok || judged != nil && !judged(src) && !judged(dst) {
		return
	}
	if len(marker) > 0 && bytes.Contains(p.Data(), marker) {
		f.Markers++
	}
	if udp, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP); ok {
		if len(udp.Payload) > 0 {
			f.UDPPayloads++
		}
		return
	}
	tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if !ok {
		if p.Layer(layers.LayerTypeICMPv6) == nil {
			f.Other++
		}
		return
	}
	d := direction{netip.AddrPortFrom(src, uint16(tcp.SrcPort)), netip.AddrPortFrom(dst, uint16(tcp.DstPort))}
	connections := halves[d]
	if tcp.SYN {
		// A retransmitted SYN has the same number; a new connection on the
		// same ports has another.
		if len(connections) == 0 || connections[len(connections)-1].isn != tcp.Seq+1 {
			halves[d] = append(connections, &half{isn: tcp.Seq + 1, synSeen: true})
		}
		connections = halves[d]
	}
	if len(tcp.Payload) == 0 {
		return
	}
	if len(connections) == 0 {
		connections = []*half{{isn: tcp.Seq}}
		halves[d] = connections
	}
	seq := tcp.Seq
	if tcp.SYN {
		seq++
	}
	last := connections[len(connections)-1]
	last.segments = append(last.segments, segment{seq, bytes.Clone(tcp.Payload)})
}

func addresses(p gopacket.Packet) (src, dst netip.Addr, ok bool) {
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		s, _ := netip.AddrFromSlice(ip.SrcIP) // always 4 bytes in a decoded header
		d, _ := netip.AddrFromSlice(ip.DstIP)
		return s.Unmap(), d.Unmap(), true
	case *layers.IPv6:
		s, _ := netip.AddrFromSlice(ip.SrcIP) // always 16 bytes in a decoded header
		d, _ := netip.AddrFromSlice(ip.DstIP)
		return s, d, true
	}
	return src, dst, false
}

// judge sorts one direction's bytes into TLS records and plaintext.
func (f *Findings) judge(d direction, h *half) {
	if len(h.segments) == 0 {
		return
	}
	if d.src.Port() != TunnelPort && d.dst.Port() != TunnelPort {
		n := 0
		for _, s := range h.segments {
			n += len(s.payload)
		}
		f.plaintext(d, n)
		return
	}
	for _, run := range h.runs() {
		tls, rest := records(run.bytes, run.aligned)
		f.TLSBytes += tls
		if rest > 0 {
			f.plaintext(d, rest)
		}
	}
}

func (f *Findings) plaintext(d direction, n int) {
	f.PlaintextBytes += n
	if len(f.PlaintextFlows) < MaxNamed {
		f.PlaintextFlows = append(f.PlaintextFlows, d.String())
	}
}

// run is a piece of the stream without gaps.
type run struct {
	bytes []byte
	// aligned says that a record begins at the first byte.
	aligned bool
}

// runs puts the segments in order, drops what was sent twice and splits where
// the capture missed something.
func (h *half) runs() []run {
	offset := func(s segment) int64 { return int64(int32(s.seq - h.isn)) }
	slices.SortStableFunc(h.segments, func(a, b segment) int { return int(offset(a) - offset(b)) })
	var all []run
	next := int64(-1)
	for _, s := range h.segments {
		at := offset(s)
		if next < 0 || at > next {
			all = append(all, run{aligned: h.synSeen && at == 0})
			next = at
		}
		if fresh := next - at; fresh < int64(len(s.payload)) {
			current := &all[len(all)-1]
			current.bytes = append(current.bytes, s.payload[fresh:]...)
			next = at + int64(len(s.payload))
		}
	}
	return all
}

// records counts the leading bytes that are TLS records (RFC 8446 section 5.1),
// the last of them possibly cut short, and the bytes that are not. In a run
// that does not begin with a record it first looks for where one begins.
func records(b []byte, aligned bool) (tls, rest int) {
	total := len(b)
	if !aligned {
		at := synchronize(b)
		if at < 0 {
			// No record boundary in sight: within one record, or no TLS at all.
			// A record is at most maxRecord long, so more than that is plaintext.
			if len(b) <= maxRecord {
				return len(b), 0
			}
			return 0, len(b)
		}
		b = b[at:]
	}
	for len(b) > 0 {
		n := record(b)
		if n == 0 {
			return total - len(b), len(b)
		}
		b = b[min(n, len(b)):]
	}
	return total, 0
}

const (
	headerLen = 5
	maxRecord = headerLen + 1<<14 + 256
)

// record returns the length of the record that b begins with, 0 if b does not
// begin with one. A header that is cut short is taken for one when what is
// there fits.
func record(b []byte) int {
	if b[0] < 20 || b[0] > 23 || len(b) > 1 && b[1] != 3 || len(b) > 2 && b[2] > 3 {
		return 0
	}
	if len(b) < headerLen {
		return len(b)
	}
	n := headerLen + int(binary.BigEndian.Uint16(b[3:]))
	if n == headerLen || n > maxRecord {
		return 0
	}
	return n
}

// synchronize finds the first place from which records follow each other to
// the end of b.
func synchronize(b []byte) int {
	for at := 0; at < len(b) && at <= maxRecord; at++ {
		pos := at
		for pos < len(b) {
			n := record(b[pos:])
			if n == 0 {
				break
			}
			pos += n
		}
		if pos >= len(b) {
			return at
		}
	}
	return -1
}
