package bpf

import (
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documentedCell is a cell of the table in docs/configuration.md: frames that pass, and
// frames that drop, each for the reason that the cell has at the same place.
type documentedCell struct{ pass, drop [][]byte }

// documentedRow is a row: what leaves the pod, and what comes to it.
type documentedRow struct {
	packet  string
	out, in documentedCell
}

// documentedRows are the table's, in its order. Flows of the pods from port 1000 to 15008
// are there.
func documentedRows() []documentedRow {
	frames := func(f ...[]byte) [][]byte { return f }
	control := func(from, to string, kind byte, limit byte, rest ...byte) []byte {
		return set(ip(from, to, protoICMPv6, icmp(kind, rest...)), 7, limit)
	}
	at := func(a string) []byte { return netip.MustParseAddr(a).AsSlice() }
	segment := func(port uint16) []byte { return quote(ip(pod4, peer4, protoTCP, tcp(port, 15008, ack)), 28) }
	segment6 := func(port uint16) []byte { return quote(ip(pod6, peer6, protoTCP, tcp(port, 15008, ack)), 48) }
	const link, all, routers = "fe80::1", "ff02::1", "ff02::2"
	long := make([]byte, 100)
	const listeners, group = "ff02::16", "ff02::fb"
	mld := func(from, to string, message []byte) []byte {
		return routerAlert(set(ip(from, to, protoICMPv6, message), 7, 1))
	}
	withData := append(mld2Report(group), long...)
	never := func(f ...[]byte) documentedCell { return documentedCell{drop: f} }
	return []documentedRow{
		{"ARP", documentedCell{frames(arp(1, pod4, node4), arp(1, "0.0.0.0", pod4)), frames(arp(2, node4, peer4))},
			documentedCell{frames(arp(2, node4, pod4)), frames(arp(2, pod4, pod4))}},
		{"IPv6 router solicitation", documentedCell{frames(control(link, routers, 133, 255)), frames(control(link, routers, 133, 64), control(strange6, routers, 133, 255))},
			documentedCell{frames(control(node6, routers, 133, 255)), frames(control(node6, all, 133, 255))}},
		{"IPv6 neighbour solicitation and advertisement",
			documentedCell{frames(control(pod6, node6, 135, 255, at(node6)...), control(link, node6, 136, 255, at(pod6)...)),
				frames(control(pod6, node6, 135, 255, long...), control(pod6, node6, 136, 255, at(node6)...))},
			documentedCell{frames(control(node6, pod6, 135, 255, at(pod6)...), control(node6, pod6, 136, 255, at(node6)...)), frames(control(node6, pod6, 136, 255, append(at(node6), long...)...))}},
		{"IPv6 router advertisement", never(control(link, all, 134, 255)),
			documentedCell{frames(control(link, all, 134, 255)), frames(control(link, all, 134, 64))}},
		{"MLD report, done",
			documentedCell{frames(mld(link, listeners, mld2Report(group)), mld(link, group, mldReport(131, group)), mld(link, routers, mldReport(132, group))), frames(mld(link, listeners, withData))},
			documentedCell{frames(mld(node6, listeners, mld2Report(group))), frames(mld(node6, listeners, withData))}},
		{"MLD query", never(mld(link, all, mldReport(130, "::"))), documentedCell{frames(mld(node6, all, mldReport(130, "::"))), frames(control(node6, all, 130, 1))}},
		{"ICMP errors: unreachable, too big, time exceeded",
			never(ip(pod4, peer4, protoICMP, icmp(3, segment(1000)...))),
			documentedCell{frames(ip(node4, pod4, protoICMP, icmp(3, segment(1000)...)), ip(node4, pod4, protoICMP, icmp(11, segment(1000)...)),
				ip(node6, pod6, protoICMPv6, icmp(2, segment6(1000)...))), frames(ip(node4, pod4, protoICMP, icmp(3, segment(1001)...)))}},
		{"ICMP echo (`ping`)", never(ip(pod4, peer4, protoICMP, icmp(8))), never(ip(peer6, pod6, protoICMPv6, icmp(129)))},
		{"other ICMP: redirects, timestamps", never(ip(pod4, peer4, protoICMP, icmp(13))), never(ip(node4, pod4, protoICMP, icmp(5, segment(1000)...)))},
		{"UDP to port 53, and its replies", documentedCell{frames(ip(pod4, peer4, protoUDP, udp(999, 53))), nil}, // the drop is TestDocumentedProtocols'
			documentedCell{frames(ip(peer4, pod4, protoUDP, udp(53, 999))), frames(ip(strange4, pod4, protoUDP, udp(53, 999)))}},
		{"other UDP, to whom a policy lets the pod in, and its answers",
			documentedCell{frames(ip(pod4, peer4, protoUDP, udp(2000, 8443))), frames(ip(pod4, strange4, protoUDP, udp(2000, 8443)))},
			documentedCell{frames(ip(peer4, pod4, protoUDP, udp(8443, 2000))), frames(ip(peer4, pod4, protoUDP, udp(8443, 2001)))}},
		{"other UDP, from whom a policy lets in, and the pod's answers",
			documentedCell{frames(ip(pod4, peer4, protoUDP, udp(8444, 3000))), frames(ip(pod4, peer4, protoUDP, udp(8444, 3001)))},
			documentedCell{frames(ip(peer4, pod4, protoUDP, udp(3000, 8444))), frames(ip(strange4, pod4, protoUDP, udp(3000, 8444)))}},
		{"other UDP, to who is not in the mesh, where `egress.udp` lets it out, and the answers",
			documentedCell{frames(ip(pod4, strange4, protoUDP, udp(2000, 123)), ip(pod6, strange6, protoUDP, udp(2000, 123))), frames(ip(pod4, strange4, protoUDP, udp(2000, 124)))},
			documentedCell{frames(ip(strange4, pod4, protoUDP, udp(123, 2000))), frames(ip(strange4, pod4, protoUDP, udp(123, 2001)))}},
		{"other UDP: QUIC, NTP, syslog, DHCP", never(ip(pod4, peer4, protoUDP, udp(999, 443))), never(ip(peer6, pod6, protoUDP, udp(999, 123)))},
		{"SCTP, GRE, IP in IP, every other protocol", never(ip(pod4, peer4, 132, long[:20])), never(ip(peer4, pod4, 47, long[:20]))},
		{"fragments of any protocol", never(set(ip(pod4, peer4, protoUDP, udp(999, 53)), 6, 0x20)), never(set(ip(peer4, pod4, protoTCP, tcp(999, 80, syn)), 7, 1))},
	}
}

// documentedTable reads the table: what each packet's two cells say.
func documentedTable(t *testing.T) (packets []string, cells map[string][2]string) {
	t.Helper()
	page, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "| packet | from the pod | to the pod |\n|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	cells = map[string][2]string{}
	for line := range strings.Lines(table) {
		parts := strings.Split(strings.Trim(line, "|\n"), " | ")
		if len(parts) != 3 {
			t.Fatalf("not three cells: %q", line)
		}
		packet := strings.TrimSpace(parts[0])
		packets = append(packets, packet)
		cells[packet] = [2]string{strings.TrimSpace(parts[1]), strings.TrimSpace(parts[2])}
	}
	return packets, cells
}

// TestDocumentedProtocols holds the table of docs/configuration.md to what the gate does.
func TestDocumentedProtocols(t *testing.T) {
	p := lonePod(t)
	seed(t, p, gateMapFlows, hostPort(pod4, 1000), hostPort(peer4, 15008), gateFlow{Kind: uint8(FlowTunnel)})
	seed(t, p, gateMapFlows, hostPort(pod6, 1000), hostPort(peer6, 15008), gateFlow{Kind: uint8(FlowTunnel)})
	setDatagrams(t, p, ruleOut(peer4, 8443), ruleIn(peer4, 8444), toOutside(123))
	runCases(t, p, []packetCase{{name: "what the pod answers", in: true, frame: ip(peer4, pod4, protoUDP, udp(3000, 8444)), as: FlowDatagram}})
	packets, cells := documentedTable(t)
	rows := documentedRows()
	if !slices.EqualFunc(packets, rows, func(name string, row documentedRow) bool { return name == row.packet }) {
		t.Fatalf("the rows are %q", packets)
	}
	var cases []packetCase
	for _, row := range rows {
		said := cells[row.packet]
		cases = append(cases, documentedCases(t, row.packet, said[0], false, row.out)...)
		cases = append(cases, documentedCases(t, row.packet, said[1], true, row.in)...)
	}
	runCases(t, p, cases)
	cfg := p.config()
	cfg.CaptureDNS = true
	update(t, p, cfg)
	runCases(t, p, []packetCase{{name: "captured DNS", frame: ip(pod4, peer4, protoUDP, udp(998, 53)), drop: DropUnstamped}})
}

func documentedCases(t *testing.T, packet, said string, in bool, cell documentedCell) (cases []packetCase) {
	t.Helper()
	if strings.HasPrefix(said, "passes") != (len(cell.pass) > 0) {
		t.Errorf("%s (in: %v): %q, and %d frames pass", packet, in, said, len(cell.pass))
	}
	for _, frame := range cell.pass {
		cases = append(cases, packetCase{name: packet + " passes", in: in, frame: frame})
	}
	var reasons []DropReason
	for _, name := range regexp.MustCompile("`(Kernel[A-Za-z]+)`").FindAllStringSubmatch(said, -1) {
		i := slices.IndexFunc(DropReasons(), func(r DropReason) bool { return r.String() == name[1] })
		if i < 0 {
			t.Fatalf("%s: no reason %s", packet, name[1])
		}
		if reason := DropReasons()[i]; reason != DropUnstamped { // that of captured DNS
			reasons = append(reasons, reason)
		}
	}
	if len(reasons) != len(cell.drop) {
		t.Fatalf("%s (in: %v): %q has %d reasons, and %d frames drop", packet, in, said, len(reasons), len(cell.drop))
	}
	for i, frame := range cell.drop {
		cases = append(cases, packetCase{name: packet + " drops", in: in, frame: frame, drop: reasons[i]})
	}
	return cases
}
