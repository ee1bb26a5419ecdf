package show

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// maxPeersShown bounds the peers that the text form lists for each pod.
const maxPeersShown = 6

// Proof is what the kernel counted of one pod, as -o json prints it.
type Proof struct {
	Node            string    `json:"node"`
	Workload        string    `json:"workload"`
	Error           string    `json:"error,omitempty"`
	Counters        []Counter `json:"counters"`
	Peers           []Peer    `json:"peers"`
	DropsUnreported uint64    `json:"dropsUnreported"`
}

// Counter counts packets of one class at the gate.
type Counter struct {
	Class     string `json:"class"`
	Direction string `json:"direction"`
	Reason    string `json:"reason,omitempty"`
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

// Peer is who sent or received them.
type Peer struct {
	Counter
	Address  string `json:"address"`
	Port     uint32 `json:"port,omitempty"`
	Protocol uint32 `json:"protocol,omitempty"`
}

// ProofOf is an agent's proof of one pod, the busiest peers first.
func ProofOf(node string, p *meshpb.PodProof) Proof {
	proof := Proof{Node: node, Workload: p.GetWorkload(), Error: p.GetError(), DropsUnreported: p.GetDropsUnreported(),
		Counters: []Counter{}, Peers: []Peer{}}
	for _, c := range p.GetCounters() {
		proof.Counters = append(proof.Counters, Counter{c.GetClass(), c.GetDirection(), c.GetReason(), c.GetPackets(), c.GetBytes()})
	}
	for _, peer := range p.GetPeers() {
		proof.Peers = append(proof.Peers, Peer{
			Counter{peer.GetClass(), peer.GetDirection(), peer.GetReason(), peer.GetPackets(), peer.GetBytes()},
			peer.GetAddress(), peer.GetPort(), peer.GetProtocol(),
		})
	}
	slices.SortFunc(proof.Peers, func(x, y Peer) int {
		if x.Packets != y.Packets {
			return int(min(max(int64(y.Packets)-int64(x.Packets), -1), 1))
		}
		return strings.Compare(x.Address, y.Address)
	})
	return proof
}

// sum adds the counters of some classes.
func (p *Proof) sum(direction string, classes ...string) (packets, bytes uint64) {
	for _, c := range p.Counters {
		if slices.Contains(classes, c.Class) && (direction == "" || direction == c.Direction) {
			packets, bytes = packets+c.Packets, bytes+c.Bytes
		}
	}
	return packets, bytes
}

// plaintextClasses are what policy or configuration let by outside the tunnel.
// Control is neighbour discovery and the like.
func plaintextClasses() []string {
	return []string{"egress", "permissive", "probe", "grandfathered", "datagram"}
}

// Proofs prints a table, and below it with whom pods exchanged plaintext, and what
// was dropped.
func Proofs(out io.Writer, color bool, all []Proof) error {
	t := NewTable(out, color, "POD", "NODE", "TLS OUT", "TLS IN", "PLAIN OUT", "PLAIN IN", "CONTROL", "DROPPED", "STATE")
	size := func(p *Proof, direction string, classes ...string) Cell {
		packets, bytes := p.sum(direction, classes...)
		switch {
		case packets == 0:
			return In("0", Dim)
		case classes[0] == "egress":
			return In(Bytes(bytes), Yellow)
		default:
			return Text(Bytes(bytes))
		}
	}
	for i := range all {
		p := &all[i]
		state, dropped := In("gate in place", Green), In("0", Dim)
		if p.Error != "" {
			state = In("fail: "+p.Error, Red)
		}
		if packets, _ := p.sum("", "dropped"); packets > 0 {
			dropped = In(Packets(packets), Red)
		}
		t.Add(Text(p.Workload), Text(p.Node), size(p, "outbound", "tunnel"), size(p, "inbound", "tunnel"),
			size(p, "outbound", plaintextClasses()...), size(p, "inbound", plaintextClasses()...),
			size(p, "", "control"), dropped, state)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for i := range all {
		if err := all[i].printPeers(out, color); err != nil {
			return err
		}
	}
	return nil
}

// printPeers lists whom plaintext was exchanged with, and what was dropped.
func (p *Proof) printPeers(out io.Writer, color bool) error {
	var lines []string
	for _, c := range p.Counters {
		if c.Class == "dropped" && c.Packets > 0 {
			lines = append(lines, fmt.Sprintf("%s %s %s%s", Painted("dropped", Red, color), Packets(c.Packets), c.Direction+", "+c.Reason, p.who(c)))
		}
	}
	for _, c := range p.Counters {
		if slices.Contains(plaintextClasses(), c.Class) && c.Packets > 0 {
			lines = append(lines, fmt.Sprintf("%s %s %s, %s%s", Painted("plaintext", Yellow, color), Bytes(c.Bytes), c.Direction, classText(c.Class), p.who(c)))
		}
	}
	if p.DropsUnreported > 0 {
		lines = append(lines, fmt.Sprintf("%d drops made no flow record: there were too many at once", p.DropsUnreported))
	}
	if len(lines) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(out, "\n%s\n  %s\n", Painted(p.Workload, Bold, color), strings.Join(lines, "\n  "))
	return err
}

// classText is a class for people. Datagrams are name queries, those of the pod or, where
// DNS is captured, what the agent could not answer itself, and what a policy about UDP,
// or egress.udp of the Mesh, lets by.
func classText(class string) string {
	if class == "datagram" {
		return "datagrams (UDP)"
	}
	return class
}

// who lists the peers of a counter, busiest first.
func (p *Proof) who(c Counter) string {
	var names []string
	for _, peer := range p.Peers {
		if peer.Class != c.Class || peer.Direction != c.Direction || peer.Reason != c.Reason {
			continue
		}
		name := peer.String()
		if slices.Contains(names, name) {
			continue // the agent's tests, one for each of its starts
		}
		if len(names) == maxPeersShown {
			names = append(names, "...")
			break
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return ""
	}
	preposition := ": to "
	if c.Direction == "inbound" {
		preposition = ": from "
	}
	return preposition + strings.Join(names, ", ")
}

// String names a peer, with the port as the one whose it is: bpf.Peer and
// bpf.DropPeer say which one the kernel notes. The agent proves at enrolment that
// the gate sees packets, by some that it must drop, to and from these two (RFC
// 5737, RFC 6666).
func (p *Peer) String() string {
	if p.Address == "192.0.2.254" || p.Address == "100::fe" {
		return "the agent's own test at enrolment"
	}
	addr, err := netip.ParseAddr(p.Address)
	if err != nil || p.Port == 0 {
		return p.Address
	}
	inbound := p.Direction == "inbound"
	switch {
	case p.Class == "grandfathered": // of either end
		return fmt.Sprintf("%s (port %d)", addr, p.Port)
	case inbound && slices.Contains([]string{"dropped", "permissive", "probe"}, p.Class):
		return fmt.Sprintf("%s to port %d", addr, p.Port)
	case !inbound && slices.Contains([]string{"permissive", "probe"}, p.Class):
		return fmt.Sprintf("%s from port %d", addr, p.Port)
	}
	return netip.AddrPortFrom(addr, uint16(p.Port)).String()
}
