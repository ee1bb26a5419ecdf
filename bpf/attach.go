package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The gate's place among clsact filters, where there is no tcx.
const (
	filterPriority = 1
	filterHandle   = 0x4ed1
)

// place says where a tc program hangs.
type place struct {
	name     string // of program and pin
	ingress  bool   // tc's direction
	inPod    bool
	loopback bool // in the pod
}

// places are the gate's.
func places() []place {
	return []place{
		{name: gateProgHostOutbound, ingress: true},
		{name: gateProgHostInbound},
		{name: gateProgPodOutbound, inPod: true},
		{name: gateProgPodInbound, ingress: true, inPod: true},
	}
}

// refusal is the place of what refuses connections to services that nobody serves. It
// is no part of the gate: without it they are accepted and reset.
func refusal() place {
	return place{name: redirectProgRefuse, ingress: true, inPod: true, loopback: true}
}

// loopbackIfindex is that of lo in every network namespace (LOOPBACK_IFINDEX,
// include/net/flow.h).
const loopbackIfindex = 1

func (pl place) attachType() ebpf.AttachType {
	if pl.ingress {
		return ebpf.AttachTCXIngress
	}
	return ebpf.AttachTCXEgress
}

func (pl place) parent() uint32 {
	if pl.ingress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

// at runs fn in the network namespace of the place, with its interface; it
// does nothing when the pod has no interface there.
func (p *Pod) at(pl place, fn func(ifindex int) error) error {
	switch {
	case pl.loopback:
		return inNetNS(p.cfg.NetNS, func() error { return fn(loopbackIfindex) })
	case !pl.inPod && p.cfg.HostIfindex != 0:
		return fn(p.cfg.HostIfindex)
	case pl.inPod && p.cfg.PodIfindex != 0:
		return inNetNS(p.cfg.NetNS, func() error { return fn(p.cfg.PodIfindex) })
	}
	return nil
}

// ifindex is where the named program must hang; 0 for the redirect.
func (p *Pod) ifindex(name string) int {
	if name == refusal().name {
		return loopbackIfindex
	}
	for _, pl := range places() {
		if pl.name == name && pl.inPod {
			return p.cfg.PodIfindex
		}
		if pl.name == name {
			return p.cfg.HostIfindex
		}
	}
	return 0
}

// AttachGate puts the gate at the head of its hooks. It drops from now on what
// the configuration does not admit. What is attached already stays.
func (p *Pod) AttachGate() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pl := range places() {
		if err := p.attachAt(pl); err != nil {
			return err
		}
	}
	p.held = nil
	return nil
}

// attachAt attaches what belongs in a place, unless it is there; mu is held.
func (p *Pod) attachAt(pl place) error {
	if p.links[pl.name] != nil && !slices.Contains(p.held, pl) {
		return nil
	}
	if err := p.at(pl, func(ifindex int) error { return p.attach(pl, ifindex) }); err != nil {
		return fmt.Errorf("attach %s: %w", pl.name, err)
	}
	return nil
}

// attach uses tcx, and clsact on kernels before 6.6. A filter of HoldGate's goes
// when the program is where it stays: for a moment packets pass both.
func (p *Pod) attach(pl place, ifindex int) error {
	if p.links[pl.name] != nil {
		_, err := takeFilter(pl, ifindex)
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: p.program(pl.name), Attach: pl.attachType(), Anchor: link.Head(),
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return attachFilter(pl, ifindex, p.program(pl.name))
	}
	if err != nil {
		return err
	}
	if err := l.Pin(filepath.Join(p.dir, pl.name)); err != nil {
		return errors.Join(err, l.Close())
	}
	p.links[pl.name] = l
	_, err = takeFilter(pl, ifindex)
	return err
}

func attachFilter(pl place, ifindex int, prog *ebpf.Program) error {
	if err := addClsact(ifindex); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return putFilter(pl, ifindex, prog)
}

func putFilter(pl place, ifindex int, prog *ebpf.Program) error {
	if err := netlink.FilterReplace(filterAt(pl, ifindex, prog.FD())); err != nil {
		return fmt.Errorf("add the filter: %w", err)
	}
	return nil
}

func clsact(ifindex int) *netlink.GenericQdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
}

// addClsact adds the qdisc; the error is EEXIST if it is there. With the first qdisc the kernel
// gives a device without a queue, as a veth is, a queue length of 1000
// (net/sched/sch_api.c, qdisc_create): that is taken back, so that the device
// is after removal what it was before.
func addClsact(ifindex int) error {
	before, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("look at interface %d: %w", ifindex, err)
	}
	if err := netlink.QdiscAdd(clsact(ifindex)); err != nil {
		return fmt.Errorf("add clsact: %w", err)
	}
	after, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("look at interface %d: %w", ifindex, err)
	}
	if after.Attrs().TxQLen == before.Attrs().TxQLen {
		return nil
	}
	if err := netlink.LinkSetTxQLen(after, before.Attrs().TxQLen); err != nil {
		return fmt.Errorf("restore the queue length of interface %d: %w", ifindex, err)
	}
	return nil
}

func filterAt(pl place, ifindex, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: pl.parent(), Handle: filterHandle, Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: fd, Name: "heddle_" + pl.name, DirectAction: true,
	}
}

// ourFilter finds the gate's filter, and says whether it is the first.
func ourFilter(pl place, ifindex int) (ours *netlink.BpfFilter, first bool, err error) {
	filters, err := netlink.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}, pl.parent())
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, false, nil // no such interface, or no clsact on it
	}
	if err != nil {
		return nil, false, fmt.Errorf("list filters: %w", err)
	}
	for i, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Handle == filterHandle && b.Priority == filterPriority {
			return b, i == 0, nil
		}
	}
	return nil, false, nil
}

// adoptFilters gives filters of an earlier agent this one's programs. One that was killed on
// its way from filters to where the gate stays may have left some beside what it had attached.
func (p *Pod) adoptFilters() error {
	all := places()
	if p.links[redirectProgRedirect] != nil {
		all = append(all, refusal())
	}
	for _, pl := range all {
		err := p.at(pl, func(ifindex int) error {
			if p.links[pl.name] != nil {
				_, err := takeFilter(pl, ifindex)
				return err
			}
			ours, _, err := ourFilter(pl, ifindex)
			if ours == nil || err != nil {
				return err
			}
			return putFilter(pl, ifindex, p.program(pl.name))
		})
		if err != nil && !pl.loopback { // AttachRefusal says what is wrong with that
			return fmt.Errorf("adopt %s: %w", pl.name, err)
		}
	}
	return nil
}

func removeFilter(pl place, ifindex int) error {
	found, err := takeFilter(pl, ifindex)
	if !found || err != nil {
		return err
	}
	return removeEmptyClsact(ifindex)
}

// takeFilter removes the filter, and not its qdisc.
func takeFilter(pl place, ifindex int) (found bool, err error) {
	ours, _, err := ourFilter(pl, ifindex)
	if ours == nil || err != nil {
		return false, err
	}
	if err := netlink.FilterDel(ours); err != nil {
		return true, fmt.Errorf("remove the filter: %w", err)
	}
	return true, nil
}

// removeEmptyClsact leaves the interface as it was found: without a clsact,
// unless somebody else's filter is in it.
func removeEmptyClsact(ifindex int) error {
	dev := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(dev, parent)
		if err != nil {
			return fmt.Errorf("list filters: %w", err)
		}
		if len(filters) > 0 {
			return nil
		}
	}
	if err := netlink.QdiscDel(clsact(ifindex)); err != nil {
		return fmt.Errorf("remove clsact: %w", err)
	}
	return nil
}

// removeHostFilters removes the filters of a pod of which only pins are left.
func removeHostFilters(dir string) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, gateMapConfig), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the configuration: %w", err)
	}
	defer m.Close()
	errs := []error{}
	for slot := range uint32(2) {
		var cfg gatePodConfig
		if err := m.Lookup(slot, &cfg); err != nil {
			return fmt.Errorf("read the configuration: %w", err)
		}
		if cfg.HostIfindex == 0 {
			continue
		}
		for _, pl := range places()[:2] {
			errs = append(errs, removeFilter(pl, int(cfg.HostIfindex)))
		}
		errs = append(errs, removeOwnClsact(dir, false, int(cfg.HostIfindex)))
	}
	return errors.Join(errs...)
}

// DetachGate opens the pod: everything passes again.
func (p *Pod) DetachGate() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, pl := range places() {
		errs = append(errs, p.detach(pl))
	}
	for _, inPod := range []bool{false, true} {
		errs = append(errs, p.at(place{inPod: inPod}, func(ifindex int) error { return removeOwnClsact(p.dir, inPod, ifindex) }))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	p.held = nil
	return nil
}

// detach takes a program off its hook; mu is held.
func (p *Pod) detach(pl place) error {
	if p.links[pl.name] != nil {
		if err := p.drop(pl.name); err != nil || !slices.Contains(p.held, pl) {
			return err
		}
	}
	err := p.at(pl, func(ifindex int) error { return removeFilter(pl, ifindex) })
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("detach %s: %w", pl.name, err)
	}
	return nil
}

// AttachRedirect steers the pod's connections to the listeners from now on.
func (p *Pod) AttachRedirect() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := redirectProgRedirect
	if p.links[name] != nil {
		return nil
	}
	l, err := link.AttachNetNs(p.cfg.NetNS, p.program(name))
	if err != nil {
		return fmt.Errorf("attach the redirect: %w", err)
	}
	if err := l.Pin(filepath.Join(p.dir, name)); err != nil {
		return errors.Join(fmt.Errorf("pin the redirect: %w", err), l.Close())
	}
	p.links[name] = l
	return nil
}

// AttachRefusal refuses the pod's connections to what Node.SetVacant names from now
// on, until DetachRedirect; it comes after AttachRedirect. A pod without it is as
// safe: such connections reach the listeners, as all others do.
func (p *Pod) AttachRefusal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.attachAt(refusal()); err != nil {
		return fmt.Errorf("on the loopback interface: %w", err)
	}
	return nil
}

// DetachRedirect ends the steering and the refusal; connections that exist stay where
// they are.
func (p *Pod) DetachRedirect() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.links[redirectProgRedirect] == nil {
		return nil // the other is there with it only
	}
	return errors.Join(p.detach(refusal()), p.drop(redirectProgRedirect))
}

// drop detaches and unpins a link; mu is held.
func (p *Pod) drop(name string) error {
	l := p.links[name]
	delete(p.links, name)
	if err := errors.Join(detachLink(l), l.Unpin(), l.Close()); err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	return nil
}
