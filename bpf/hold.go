package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Where the gate stays, the kernel makes who attaches a program wait for a grace period of
// RCU, and everybody meanwhile who changes a network device (tcx_entry_sync in
// include/net/tcx.h, under the RTNL): some 10 ms for each of four hooks, which a new pod would
// wait for. A clsact filter waits for an expedited one at most.

// errForeign says that what is not the gate's would come before its filters.
var errForeign = errors.New("another program comes before the gate's filter: enroll the pod again")

// HoldGate closes a pod as AttachGate does, by all of the gate's programs, as clsact filters for
// the time being: AttachNext moves them to where they stay, and AttachGate all at once. Like links,
// they outlive the agent, and Pod of the next one adopts them.
//
// It fails where anything may come before a filter, or where there is a qdisc already; call
// AttachGate then, which takes away what is there by then.
//
// What the interfaces send is dropped for a moment, well under a millisecond on an idle machine, as
// by every change of a device's qdiscs (dev_deactivate, net/sched/sch_generic.c): it is for pods
// that start. So the clsact, of which nothing is left but its name, stays until DetachGate.
func (p *Pod) HoldGate() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, inPod := range []bool{false, true} {
		var own []place
		for _, pl := range places() {
			if pl.inPod == inPod && p.links[pl.name] == nil {
				own = append(own, pl)
			}
		}
		err := p.at(place{inPod: inPod}, func(ifindex int) error {
			p.held = append(p.held, own...)
			return p.hold(own, ifindex)
		})
		if err != nil {
			return fmt.Errorf("hold the gate by filters: %w", err)
		}
	}
	return nil
}

// hold puts filters on an interface that has had no qdisc for them, or leaves it as it was.
func (p *Pod) hold(own []place, ifindex int) error {
	for _, pl := range own {
		if err := checkForemost(pl, ifindex); err != nil {
			return err
		}
	}
	if len(own) == 0 {
		return nil
	}
	mark := clsactMark(p.dir, own[0].inPod)
	if err := os.Mkdir(mark, 0o700); err != nil {
		return fmt.Errorf("mark that the qdisc is the gate's: %w", err)
	}
	if err := addClsact(ifindex); err != nil {
		return errors.Join(err, os.Remove(mark))
	}
	for i, pl := range own {
		if err := putFilter(pl, ifindex, p.program(pl.name)); err != nil {
			errs := []error{err}
			for _, put := range own[:i] {
				errs = append(errs, removeFilter(put, ifindex))
			}
			return errors.Join(append(errs, removeOwnClsact(p.dir, pl.inPod, ifindex))...)
		}
	}
	return nil
}

// AttachNext moves one more of the filters that HoldGate has put to where it stays, and reports
// whether others are left. Each takes a grace period of RCU, but on kernels before 6.6, where
// filters are what stays. After an error it may be called again.
func (p *Pod) AttachNext() (left bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.held) == 0 {
		return false, nil
	}
	if err := p.attachAt(p.held[0]); err != nil {
		return true, err
	}
	p.held = p.held[1:]
	return len(p.held) > 0, nil
}

// checkForemost says whether programs come before all clsact filters.
func checkForemost(pl place, ifindex int) error {
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: pl.attachType()})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported) {
		return nil // before Linux 6.6 there are none
	}
	if err != nil {
		return fmt.Errorf("list the programs of the hook: %w", err)
	}
	if len(result.Programs) > 0 {
		return errForeign
	}
	return nil
}

// clsactMark is what says, for as long as the pod's pins are there, that the clsact of an
// interface is the gate's, and goes with it: a folder beside the pins.
func clsactMark(dir string, inPod bool) string {
	if inPod {
		return filepath.Join(dir, "clsact_pod")
	}
	return filepath.Join(dir, "clsact_host")
}

// removeOwnClsact removes the clsact that HoldGate has added, unless somebody else's filter is in
// it by now. That the interface is gone is no error.
func removeOwnClsact(dir string, inPod bool, ifindex int) error {
	mark := clsactMark(dir, inPod)
	if _, err := os.Stat(mark); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	err := removeEmptyClsact(ifindex)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return os.Remove(mark)
}

// RemoveFilters takes the gate's filters off the interfaces of a pod, in whose network namespace
// it must run, before RemovePod, which cannot get there. That there are none is no error.
func (n *Node) RemoveFilters(name string, podIfindex int) error {
	var errs []error
	for _, pl := range append(places(), refusal()) {
		switch {
		case pl.loopback:
			errs = append(errs, removeFilter(pl, loopbackIfindex))
		case pl.inPod:
			errs = append(errs, removeFilter(pl, podIfindex))
		}
	}
	return errors.Join(append(errs, removeOwnClsact(n.podDir(name), true, podIfindex))...)
}
