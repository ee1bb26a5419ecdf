package proof

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/steer"
	"github.com/heddle-mesh/heddle/bpf"
)

// wait is how long a test packet may take to show up; a veth needs some
// microseconds, a loaded machine more.
const wait = 2 * time.Second

// Gate is one that has been attached to a pod's link. Who has had it proven calls Wait.
type Gate struct {
	// Pod and Host are the namespaces of the link's two ends.
	Pod, Host *netns.Namespace
	Link      steer.Link
	// Addrs are the pod's.
	Addrs []netip.Addr
	// Dropped says whose packets it has dropped.
	Dropped func() ([]bpf.DropPeer, error)

	closing sync.WaitGroup
}

// Wait returns when the sockets are closed that test packets were sent by. They are in the
// namespaces of the link's ends, and Prove does not wait for them.
func (g *Gate) Wait() { g.closing.Wait() }

// Prove sends one packet through each direction of the pod's veth that the gate
// must drop, and looks for exactly that packet among what it dropped. Without
// it, a network whose fast path skips the gate would look enrolled.
//
// The packets are bare TCP segments with two bytes of payload, to and from an
// address that nobody has, from sockets that bypass the pod's own hooks on the
// way out (PACKET_QDISC_BYPASS).
func (g *Gate) Prove(ctx context.Context) error {
	family := steer.Families(g.Addrs)[0]
	local, remote := steer.AddressOf(g.Addrs, family), Address(family)
	port := uint16(32768 + rand.IntN(28000))
	var errs [2]error
	var ended sync.WaitGroup
	for i, w := range []way{
		{bpf.Outbound, g.Pod, Frame(g.Link.HostMAC, g.Link.MAC, local, remote, port), g.Link.Index, true, g.Link.Name},
		{bpf.Inbound, g.Host, Frame(g.Link.MAC, g.Link.HostMAC, remote, local, port), g.Link.Host, false, g.Link.HostName},
	} {
		ended.Go(func() { errs[i] = g.proveWay(ctx, w, netip.AddrPortFrom(remote, port)) })
	}
	ended.Wait()
	return cmp.Or(errs[0], errs[1])
}

// way is one direction of a link, and the frame that is to be dropped there.
type way struct {
	direction bpf.Direction
	where     *netns.Namespace
	frame     []byte
	link      int
	bypass    bool
	from      string
}

func (g *Gate) proveWay(ctx context.Context, w way, remote netip.AddrPort) error {
	family := unix.AF_INET6
	if remote.Addr().Is4() {
		family = unix.AF_INET
	}
	socket := -1
	err := w.where.Do(func() (err error) {
		socket, err = Send(w.link, family, w.frame, w.bypass)
		return err
	})
	if socket >= 0 {
		g.closing.Go(func() { _ = unix.Close(socket) }) // nothing in it waits to be written
	}
	if err != nil {
		return fmt.Errorf("send test packet on %s: %w", w.from, err)
	}
	if err := g.awaitDrop(ctx, w.direction, remote.Addr(), remote.Port()); err != nil {
		return fmt.Errorf("the gate did not see the %s test packet on %s; the network's fast path skips it, or another program comes first: remove that program, or leave the pod out of the mesh: %w",
			w.direction, g.Link.HostName, err)
	}
	return nil
}

func (g *Gate) awaitDrop(ctx context.Context, direction bpf.Direction, remote netip.Addr, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		peers, err := g.Dropped()
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
