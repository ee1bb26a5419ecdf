package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Reconcile reads back what the kernel holds of the configuration that was last written:
// the slot in use, the ports, and the rules of datagrams. What somebody else has changed it writes anew, as Update
// does, so that connections that were let in meanwhile lose their entries. It names what
// it found. Of the rules it reads on where it was the last time, at least so many as it is
// given, a batch at a time, and begins anew after the last.
func (p *Pod) Reconcile(rules int) (found []string, looked Looked, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Name == "" {
		return nil, Looked{All: true}, nil
	}
	if found, err = p.differences(); err != nil {
		return found, looked, err
	}
	datagrams, looked, err := p.datagramDifferences(rules)
	if err != nil {
		return found, looked, err
	}
	if len(datagrams) > 0 {
		err = p.rebuildDatagrams()
	}
	if len(found) > 0 {
		err = errors.Join(err, p.apply(p.cfg))
	}
	return append(found, datagrams...), looked, err
}

// differences names what the maps hold otherwise than the configuration; mu is held.
func (p *Pod) differences() (found []string, err error) {
	var active uint32
	var have gatePodConfig
	if err := p.maps[gateMapActive].Lookup(uint32(0), &active); err != nil {
		return nil, fmt.Errorf("read which configuration is in use: %w", err)
	}
	if err := p.maps[gateMapConfig].Lookup(active&1, &have); err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if p.datagrams.stale { // an earlier agent may tell the pod of datagrams still
		const theirs = uint32(gatePodFlagsPOD_DATAGRAMS | gatePodFlagsPOD_OUTSIDE)
		have.Flags = have.Flags&^theirs | p.wrote.Flags&theirs
	}
	if have != p.wrote {
		found = append(found, "the pod's configuration was changed")
	}
	missing := p.cfg.portFlags()
	var port uint16
	var flags uint32
	it := p.maps[gateMapPorts].Iterate()
	for it.Next(&port, &flags) {
		want, ok := missing[port]
		switch {
		case !ok:
			found = append(found, fmt.Sprintf("port %d was added", port))
		case want != flags:
			found = append(found, fmt.Sprintf("port %d was changed", port))
		}
		delete(missing, port)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list ports: %w", err)
	}
	for port := range missing {
		found = append(found, fmt.Sprintf("port %d was removed", port))
	}
	return found, nil
}

// LeadsTo reports whether a slot leads to this very socket.
func (p *Pod) LeadsTo(slot Slot, fd uintptr) (bool, error) {
	table, index := slot.place()
	if table == "" {
		return false, fmt.Errorf("no such slot: %d", slot)
	}
	cookie, err := unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return false, fmt.Errorf("read the cookie of a listener: %w", err)
	}
	var have uint64
	err = p.maps[table].Lookup(index, &have)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up slot %d: %w", slot, err)
	}
	return have == cookie, nil
}
