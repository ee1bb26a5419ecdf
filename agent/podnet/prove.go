package podnet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/podnet/proof"
	"github.com/heddle-mesh/heddle/agent/steer"
	"github.com/heddle-mesh/heddle/bpf"
)

// proofWait is how long a test packet may take to show up; a veth needs some
// microseconds, a loaded machine more.
const proofWait = 2 * time.Second

// prove sends one packet through each direction of the pod's veth that the gate
// must drop, and looks for exactly that packet among what it dropped. Without
// it, a network whose fast path skips the gate would look enrolled.
//
// The packets are bare TCP segments with two bytes of payload, to and from an
// address that nobody has, from sockets that bypass the pod's own hooks on the
// way out (PACKET_QDISC_BYPASS).
func (e *enrolment) prove(ctx context.Context) error {
	p := e.pod
	family := steer.Families(p.addrs)[0]
	local, remote := steer.AddressOf(p.addrs, family), proof.Address(family)
	port := uint16(32768 + rand.IntN(28000))
	for _, way := range []struct {
		direction bpf.Direction
		where     *netns.Namespace
		frame     []byte
		link      int
		bypass    bool
		from      string
	}{
		{bpf.Outbound, p.ns, proof.Frame(p.link.HostMAC, p.link.MAC, local, remote, port), p.link.Index, true, p.link.Name},
		{bpf.Inbound, e.node.home, proof.Frame(p.link.MAC, p.link.HostMAC, remote, local, port), p.link.Host, false, p.link.HostName},
	} {
		if err := way.where.Do(func() error { return proof.Send(way.link, family, way.frame, way.bypass) }); err != nil {
			return fmt.Errorf("send test packet on %s: %w", way.from, err)
		}
		if err := e.awaitDrop(ctx, way.direction, remote, port); err != nil {
			return fmt.Errorf("the gate did not see the %s test packet on %s; the network's fast path skips it, or another program comes first: remove that program, or leave the pod out of the mesh: %w",
				way.direction, p.link.HostName, err)
		}
	}
	return nil
}

func (e *enrolment) awaitDrop(ctx context.Context, direction bpf.Direction, remote netip.Addr, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, proofWait)
	defer cancel()
	for {
		peers, err := e.pod.kernel.DropPeers()
		if err != nil {
			return err
		}
		for _, d := range peers {
			if d.Direction == direction && d.Remote == remote && d.Port == port {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}
