package bpf

import (
	"fmt"
)

// Counters reads what the gate counted.
func (p *Pod) Counters() (Counters, error) {
	var perCPU []gateCounters
	if err := p.maps[gateMapCounted].Lookup(uint32(0), &perCPU); err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	out := Counters{Dropped: map[DropReason]Traffic{}, Seen: map[Hook]uint64{}}
	passed := map[FlowKind]*Traffic{
		FlowTunnel: &out.Tunnel, FlowEgress: &out.Egress, FlowProbe: &out.Probe, FlowPermissive: &out.Permissive,
		FlowGrandfathered: &out.Grandfathered, FlowDatagram: &out.Datagram, FlowControl: &out.Control,
	}
	for i := range perCPU {
		c := &perCPU[i]
		out.LostDrops += c.Lost
		for h, n := range c.Seen {
			out.Seen[Hook(h)] += n
		}
		for kind, t := range passed {
			t.add(c.Passed[kind])
		}
		for _, r := range DropReasons() {
			t := out.Dropped[r]
			t.add(c.Dropped[r])
			if t != (Traffic{}) {
				out.Dropped[r] = t
			}
		}
	}
	return out, nil
}

func (t *Traffic) add(c [2]gateCount) {
	t.Out.Packets += c[Outbound].Packets
	t.Out.Bytes += c[Outbound].Bytes
	t.In.Packets += c[Inbound].Packets
	t.In.Bytes += c[Inbound].Bytes
}

// PlaintextPeers says whom plaintext was exchanged with: the 512 rows or so
// that were used last, in no order.
func (p *Pod) PlaintextPeers() ([]Peer, error) {
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	var key gatePeer
	var tally gateTally
	var all []Peer
	it := p.maps[gateMapPlaintextPeers].Iterate()
	for it.Next(&key, &tally) {
		all = append(all, Peer{
			Kind: FlowKind(key.Kind), Direction: Direction(key.Direction), Remote: fromAddress(key.Remote), Port: key.Port,
			Count: Count{Packets: tally.Packets, Bytes: tally.Bytes}, LastSeen: since(tally.LastSeen, now),
		})
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list plaintext peers: %w", err)
	}
	return all, nil
}

// DropPeers says whose packets were dropped, or packets to whom: the 512 rows
// or so that were used last, in no order. What a CPU moves to the table meanwhile may be
// counted twice this once, but is never missing.
func (p *Pod) DropPeers() ([]DropPeer, error) {
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	tallies, err := p.lastDrops()
	if err != nil {
		return nil, err
	}
	var key gateDropPeer
	var tally gateTally
	it := p.maps[gateMapDropPeers].Iterate()
	for it.Next(&key, &tally) {
		tallies[key] = sum(tallies[key], tally)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list drop peers: %w", err)
	}
	var all []DropPeer
	for key, tally := range tallies {
		all = append(all, DropPeer{
			Reason: DropReason(key.Reason), Direction: Direction(key.Direction), Remote: fromAddress(key.Remote),
			Port: key.Port, Protocol: key.Proto,
			Count: Count{Packets: tally.Packets, Bytes: tally.Bytes}, LastSeen: since(tally.LastSeen, now),
		})
	}
	return all, nil
}

// lastDrops reads what each CPU dropped last and has not moved to the table of all.
func (p *Pod) lastDrops() (map[gateDropPeer]gateTally, error) {
	var perCPU []gateLastDrop
	if err := p.maps[gateMapLastDrops].Lookup(uint32(0), &perCPU); err != nil {
		return nil, fmt.Errorf("read what was dropped last: %w", err)
	}
	tallies := map[gateDropPeer]gateTally{}
	for _, last := range perCPU {
		if last.Tally.Packets > 0 {
			tallies[last.Peer] = sum(tallies[last.Peer], last.Tally)
		}
	}
	return tallies, nil
}

func sum(a, b gateTally) gateTally {
	return gateTally{Packets: a.Packets + b.Packets, Bytes: a.Bytes + b.Bytes, LastSeen: max(a.LastSeen, b.LastSeen)}
}
