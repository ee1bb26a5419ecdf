package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// errNotWritten says that the kernel may hold other rules of datagrams than were told.
var errNotWritten = errors.New("not all rules of datagrams could be written: until they are they do not all hold, and are not looked after")

// Reconcile reads back what the kernel holds of the configuration that was last written:
// the slot in use, the ports, and the rules of datagrams. What somebody else has changed it writes anew, as Update
// does, so that connections that were let in meanwhile lose their entries. It names what
// it has mended. What it could not mend the error says, each further call tries it again, and
// that which succeeds names it. At the rules it looks if it is to: of a pod that has very many
// that takes some milliseconds.
func (p *Pod) Reconcile(rules bool) (mended []string, looked Looked, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Name == "" {
		return nil, Looked{All: true}, nil
	}
	mended, err = p.mendConfig()
	ofDatagrams, looked, failed := p.mendDatagrams(rules)
	return append(mended, ofDatagrams...), looked, errors.Join(err, failed)
}

// mendConfig mends configuration and ports; mu is held.
func (p *Pod) mendConfig() (mended []string, err error) {
	found, err := p.differences()
	if err != nil || len(found) == 0 {
		return nil, err
	}
	if err := p.apply(p.cfg); err != nil {
		return nil, notMended(found, err)
	}
	return found, nil
}

// mendDatagrams mends the rules of datagrams, if it is to look at them, what leaves the mesh,
// and their tables; mu is held.
func (p *Pod) mendDatagrams(rules bool) (mended []string, looked Looked, err error) {
	found, looked, err := p.datagramDifferences(rules)
	if err != nil {
		return nil, looked, err
	}
	if len(found) > 0 { // again, perhaps, and beside it what a repair left that failed half way
		all := slices.Concat(p.unmended, found)
		slices.Sort(all)
		all = slices.Compact(all)
		p.unmended = all[:min(len(all), MaxDatagramRules)]
	}
	if err := p.mend(); err != nil {
		return nil, looked, err
	}
	mended, p.mended = p.mended, nil
	looked.All = looked.All || len(mended) > 0
	return mended, looked, nil
}

// mend mends what was found of datagrams, if anything was; mu is held.
func (p *Pod) mend() error {
	if len(p.unmended) == 0 || p.datagrams.stale() {
		return nil
	}
	if err := p.rebuildDatagrams(); err != nil {
		return notMended(p.unmended, err)
	}
	p.mended, p.unmended = append(p.mended, p.unmended...), nil
	return nil
}

func notMended(found []string, err error) error {
	return fmt.Errorf("%s, the first of %d changes that could not be mended: %w", found[0], len(found), err)
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
	if p.datagrams.stale() { // what the gate has of datagrams may be another agent's, or half written
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
