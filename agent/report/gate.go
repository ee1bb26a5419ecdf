package report

import (
	"net/netip"

	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/bpf"
)

// classDropped is the class of what did not pass; the others are the names of
// bpf's flow kinds.
const classDropped = "dropped"

// prove reads what the kernel counted at a pod's gate.
func prove(pod *podnet.Pod, proof *meshpb.PodProof) error {
	return pod.Kernel(func(k *bpf.Pod) error {
		counters, err := k.Counters()
		if err != nil {
			return err
		}
		proof.Counters, proof.DropsUnreported = gateCounters(counters), counters.LostDrops
		passed, err := k.PlaintextPeers()
		if err != nil {
			return err
		}
		for _, p := range passed {
			proof.Peers = append(proof.Peers, peer(p.Kind.String(), "", p.Direction, p.Remote, p.Port, 0, p.Count))
		}
		dropped, err := k.DropPeers()
		if err != nil {
			return err
		}
		for _, p := range dropped {
			proof.Peers = append(proof.Peers, peer(classDropped, p.Reason.String(), p.Direction, p.Remote, p.Port, p.Protocol, p.Count))
		}
		return nil
	})
}

func gateCounters(c bpf.Counters) []*meshpb.GateCounter {
	var all []*meshpb.GateCounter
	add := func(class, reason string, t bpf.Traffic) {
		for _, way := range []struct {
			direction bpf.Direction
			count     bpf.Count
		}{{bpf.Outbound, t.Out}, {bpf.Inbound, t.In}} {
			all = append(all, &meshpb.GateCounter{
				Class: class, Direction: way.direction.String(), Reason: reason, Packets: way.count.Packets, Bytes: way.count.Bytes,
			})
		}
	}
	for _, passed := range []struct {
		kind    bpf.FlowKind
		traffic bpf.Traffic
	}{
		{bpf.FlowTunnel, c.Tunnel}, {bpf.FlowEgress, c.Egress}, {bpf.FlowPermissive, c.Permissive}, {bpf.FlowProbe, c.Probe},
		{bpf.FlowGrandfathered, c.Grandfathered}, {bpf.FlowDatagram, c.Datagram}, {bpf.FlowControl, c.Control},
	} {
		add(passed.kind.String(), "", passed.traffic)
	}
	for _, reason := range bpf.DropReasons() {
		if t, ok := c.Dropped[reason]; ok {
			add(classDropped, reason.String(), t)
		}
	}
	return all
}

func peer(class, reason string, d bpf.Direction, addr netip.Addr, port uint16, protocol uint8, c bpf.Count) *meshpb.GatePeer {
	return &meshpb.GatePeer{
		Class: class, Reason: reason, Direction: d.String(), Address: addr.String(), Port: uint32(port),
		Protocol: uint32(protocol), Packets: c.Packets, Bytes: c.Bytes,
	}
}
