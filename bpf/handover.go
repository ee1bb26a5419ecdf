package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
)

// Passthrus returns the client and the app of each passthru entry, those that an
// earlier agent added too, in no order.
func (p *Pod) Passthrus() ([][2]netip.AddrPort, error) {
	var key gateTuple
	var state uint32
	var all [][2]netip.AddrPort
	entries := p.maps[gateMapPassthru].Iterate()
	for entries.Next(&key, &state) {
		all = append(all, [2]netip.AddrPort{
			netip.AddrPortFrom(fromAddress(key.Remote), key.RemotePort),
			netip.AddrPortFrom(fromAddress(key.Local), key.LocalPort),
		})
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("list passthru entries: %w", err)
	}
	return all, nil
}

// Reclaim puts this agent's configuration and programs back where another agent,
// which was to take over and did not, has put its own. Connections that only the
// other's configuration admits lose their flow entries. What is attached stays
// attached throughout.
func (p *Pod) Reclaim() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	if err := p.apply(p.cfg); err != nil {
		errs = append(errs, fmt.Errorf("reclaim the configuration of pod %s: %w", p.cfg.Name, err))
	}
	if err := p.rebuildDatagrams(); err != nil {
		errs = append(errs, fmt.Errorf("reclaim the rules of datagrams of pod %s: %w", p.cfg.Name, err))
	}
	for name, l := range p.links {
		if err := l.Update(p.program(name)); err != nil {
			errs = append(errs, fmt.Errorf("reclaim %s: %w", filepath.Join(p.dir, name), err))
		}
	}
	return errors.Join(append(errs, p.adoptFilters())...)
}

// Reclaim is Pod.Reclaim for what stamps the agent's sockets.
func (n *Node) Reclaim() error {
	old := n.stamp
	if err := n.stampCgroup(); err != nil {
		n.stamp = old
		return fmt.Errorf("reclaim the stamps: %w", err)
	}
	return old.Close()
}
