package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// errBatchTooSmall is what a batch lookup says about a bucket that is larger
// than the batch.
var errBatchTooSmall = unix.ENOSPC

// largestPacket is what an interface may send without BIG TCP, whose packets
// have no length in their header.
const largestPacket = 65536

// CheckGate says what keeps the gate from doing its work, with the remedy: it
// is not there or not first, or the host side of the veth takes the sockets
// from the packets, so that everything is dropped. It returns nil when all is
// well.
func (p *Pod) CheckGate() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, pl := range places() {
		if err := p.at(pl, func(ifindex int) error { return p.checkPlace(pl, ifindex) }); err != nil {
			errs = append(errs, fmt.Errorf("check %s: %w", pl.name, err))
		}
	}
	if p.cfg.HostIfindex != 0 {
		errs = append(errs, checkHostSide(p.cfg.HostIfindex))
	}
	return errors.Join(errs...)
}

func (p *Pod) checkPlace(pl place, ifindex int) error {
	if p.links[pl.name] == nil {
		ours, first, err := ourFilter(pl, ifindex)
		switch {
		case err != nil:
			return err
		case ours == nil:
			return errors.New("the gate is not attached: enroll the pod again")
		case !first:
			return errors.New("another tc filter comes before the gate: give it a priority above 1")
		}
		return checkForemost(pl, ifindex)
	}
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: pl.attachType()})
	if err != nil {
		return fmt.Errorf("list the programs of the hook: %w", err)
	}
	info, err := p.program(pl.name).Info()
	if err != nil {
		return fmt.Errorf("look at the program: %w", err)
	}
	id, _ := info.ID() // every kernel that has tcx has ids
	for i, attached := range result.Programs {
		if attached.ID == ebpf.ProgramID(id) {
			if i > 0 {
				return errors.New("another program was put before the gate: attach it behind, or enroll the pod again")
			}
			return nil
		}
	}
	return errors.New("the gate is not attached: enroll the pod again")
}

// checkHostSide looks for what makes the kernel strip the socket from packets
// on their way through a veth (spikes/gate: XDP, GRO), and for BIG TCP.
func checkHostSide(ifindex int) error {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("look at the host side of the veth: %w", err)
	}
	attrs := l.Attrs()
	var errs []error
	if attrs.Xdp != nil && attrs.Xdp.Attached {
		errs = append(errs, fmt.Errorf("an XDP program is on %s, so the gate sees no sockets and drops everything: remove it (ip link set %s xdp off)", attrs.Name, attrs.Name))
	}
	gro, err := genericReceiveOffload(attrs.Name)
	if err != nil {
		errs = append(errs, err)
	}
	if gro {
		errs = append(errs, fmt.Errorf("GRO is on at %s, so the gate sees no sockets once the pod's TSO is off: turn it off (ethtool -K %s gro off)", attrs.Name, attrs.Name))
	}
	if attrs.GSOMaxSize > largestPacket || attrs.GSOIPv4MaxSize > largestPacket {
		errs = append(errs, fmt.Errorf("BIG TCP is on at %s, and the gate drops its packets: turn it off (ip link set %s gso_max_size %d)", attrs.Name, attrs.Name, largestPacket))
	}
	return errors.Join(errs...)
}

// genericReceiveOffload asks ETHTOOL_GGRO.
func genericReceiveOffload(name string) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open a socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	return ethtoolValue(fd, name, unix.ETHTOOL_GGRO)
}
