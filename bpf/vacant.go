package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// SetVacant replaces the node's list of services' addresses and ports that nobody
// serves: a pod's connection to one of them is refused in the kernel, where its
// connect returns ECONNREFUSED. It returns how many found no room (16,384 do);
// connections to those reach the agent, as all others do. Connections that are open
// are not looked at. The list is pinned, and holds until it is replaced, but no longer
// than VacantFor from now or from the last HoldVacant.
func (n *Node) SetVacant(services []netip.AddrPort) (left int, err error) {
	n.vacantMu.Lock()
	defer n.vacantMu.Unlock()
	wanted := make(map[gateService]bool, len(services))
	for _, s := range services {
		wanted[gateService{Address: toAddress(s.Addr()), Port: s.Port()}] = true
	}
	// Nobody may be refused who is served: those go first.
	if err := n.keepVacant(wanted); err != nil {
		return 0, err
	}
	for key := range wanted {
		err := n.vacant.Put(asBytes(&key), uint32(1))
		if errors.Is(err, unix.E2BIG) { // the map is full
			left++
		} else if err != nil {
			return left, fmt.Errorf("note that nobody serves %v: %w", key.addrPort(), err)
		}
	}
	return left, n.HoldVacant()
}

// VacantFor is how long the list of SetVacant holds by itself, so that nobody is
// refused for what an agent knew that is gone.
const VacantFor = 10 * time.Second

// HoldVacant lets the list hold for VacantFor from now.
func (n *Node) HoldVacant() error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	if err := n.vacantUntil.Put(uint32(0), now+uint64(VacantFor)); err != nil {
		return fmt.Errorf("let what nobody serves be refused: %w", err)
	}
	return nil
}

// keepVacant deletes what is not wanted from the kernel's list, and what the list has
// from wanted.
func (n *Node) keepVacant(wanted map[gateService]bool) error {
	var key gateService
	var value uint32
	var gone []gateService
	entries := n.vacant.Iterate()
	for entries.Next(&key, &value) {
		if wanted[key] {
			delete(wanted, key)
		} else {
			gone = append(gone, key)
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("list what nobody serves: %w", err)
	}
	for _, key := range gone {
		if err := n.vacant.Delete(asBytes(&key)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("note that somebody serves %v: %w", key.addrPort(), err)
		}
	}
	return nil
}

func (s gateService) addrPort() netip.AddrPort {
	return netip.AddrPortFrom(fromAddress(s.Address), s.Port)
}
