package podnet

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-mesh/heddle/agent/podnet/proof"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// kernelConfig is the Spec as the kernel's part takes it.
func kernelConfig(spec Spec, id uint32, p *Pod) bpf.PodConfig {
	modes := make(map[uint16]bpf.Mode, len(spec.PortModes))
	for port, m := range spec.PortModes {
		modes[port] = kernelMode(m)
	}
	return bpf.PodConfig{
		Name: p.name, ID: id, NetNS: int(p.ns.Fd()),
		HostIfindex: p.link.Host, PodIfindex: p.link.Index,
		Addresses: slices.Clone(p.addrs),
		Mode:      kernelMode(spec.Mode), PortModes: modes, ProbePorts: slices.Clone(spec.ProbePorts),
		CaptureDNS: p.names.captured.Load(), Revoked: spec.Revoked,
	}
}

func kernelMode(m mesh.Mode) bpf.Mode {
	if m == mesh.ModePermissive {
		return bpf.ModePermissive
	}
	return bpf.ModeStrict
}

// update brings the modes of an enrolled pod up to date.
func (p *Pod) update(spec Spec) error {
	if !slices.Equal(spec.Addresses, p.addrs) {
		return fmt.Errorf("update pod %s: addresses are %v, and were %v when it was enrolled: unenroll it first", p.name, spec.Addresses, p.addrs)
	}
	err := p.Kernel(func(k *bpf.Pod) error { return k.Update(kernelConfig(spec, p.id, p)) })
	if err != nil {
		return fmt.Errorf("update pod %s: %w", p.name, err)
	}
	return nil
}

// FlowKind returns what the gate let a connection of the pod pass as, such as
// bpf.FlowProbe; ok is false when it knows none. An address pair is seen from
// the pod.
func (p *Pod) FlowKind(local, remote netip.AddrPort) (kind bpf.FlowKind, ok bool, err error) {
	var flow bpf.FlowEntry
	err = p.Kernel(func(k *bpf.Pod) error {
		flow, ok, err = k.Flow(unmap(local), unmap(remote))
		return err
	})
	if err != nil {
		return 0, false, p.errorf("look up flow: %w", err)
	}
	return flow.Kind, ok, nil
}

// Drop is one packet that a pod's gate dropped.
type Drop struct {
	bpf.Drop
	// Pod is the name under which the pod is enrolled, or was by an earlier
	// agent; "" when it has just been unenrolled.
	Pod string
	// Reason is the twin of the kernel's.
	Reason mesh.Reason
}

// Drops calls fn for every drop record until ctx is done. Packets by which
// enrolling proves a gate are left out. LostDrops counts what got no record.
func (n *Node) Drops(ctx context.Context, fn func(Drop)) error {
	// The records from before this agent come first, and may be read before the
	// pods are enrolled again.
	earlier, err := n.state.IDs()
	if err != nil {
		n.config.Log.Warn("drops from before the agent's start may lack their pod", "error", err)
	}
	return n.kernel.Drops(ctx, func(d bpf.Drop) {
		if proof.Is(d.Source.Addr()) || proof.Is(d.Destination.Addr()) {
			return
		}
		fn(Drop{Drop: d, Pod: cmp.Or(n.nameOf(d.Pod), earlier[d.Pod]), Reason: ReasonOf(d.Reason)})
	})
}

// SetVacant replaces the list of services' addresses and ports that nobody serves: the
// kernel refuses the pods' connections there. See bpf.Node.SetVacant.
func (n *Node) SetVacant(services []netip.AddrPort) (left int, err error) {
	return n.kernel.SetVacant(services)
}

// KeepSpare keeps the next pod's programs loaded until ctx is done. See bpf.Node.KeepSpare.
func (n *Node) KeepSpare(ctx context.Context) error { return n.kernel.KeepSpare(ctx) }

// HoldVacant lets the list of SetVacant hold for another bpf.VacantFor.
func (n *Node) HoldVacant() error { return n.kernel.HoldVacant() }

// LostDrops counts the drops of the enrolled pods that got no record, since
// each was enrolled: records are bounded per pod, and the ring may be full.
func (n *Node) LostDrops() (uint64, error) {
	var lost uint64
	err := n.each("read counters", func(_ *Pod, k *bpf.Pod) error {
		c, err := k.Counters()
		lost += c.LostDrops
		return err
	})
	return lost, err
}

// ReasonOf returns the twin of a reason of the kernel's.
func ReasonOf(r bpf.DropReason) mesh.Reason {
	reason, err := mesh.ParseReason(r.String())
	if err != nil {
		return mesh.ReasonUnknown
	}
	return reason
}

func (n *Node) nameOf(id uint32) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, s := range n.slots {
		if p := s.pod.Load(); p != nil && p.id == id {
			return name
		}
	}
	return n.retiredOf(id)
}
