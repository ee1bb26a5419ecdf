package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// MaxInside bounds the blocks of addresses that are inside.
const MaxInside = 4096

// everywhere is outside where nothing is inside.
func everywhere() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv6Unspecified(), 0), netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
}

func blockKey(p netip.Prefix) gateBlock {
	key := gateBlock{Length: uint32(p.Bits()), Address: toAddress(p.Addr())}
	if p.Addr().Is4() {
		key.Length += 96 // mapped, as all addresses are
	}
	return key
}

func (k gateBlock) prefix() netip.Prefix {
	addr := fromAddress(k.Address)
	if addr.Is4() && k.Length >= 96 {
		return netip.PrefixFrom(addr, int(k.Length)-96)
	}
	return netip.PrefixFrom(addr, int(k.Length))
}

// insideOf is what a pod's gate is told of what is inside: sorted, each block once; none
// when no rule is about who is outside.
func insideOf(outside bool, inside []netip.Prefix) ([]netip.Prefix, error) {
	if !outside {
		return nil, nil
	}
	if n := len(inside); n == 0 || n > MaxInside {
		return nil, fmt.Errorf("%d blocks of addresses are inside: want 1 to %d for a rule about who is outside", n, MaxInside)
	}
	inside = slices.Clone(inside)
	for i, p := range inside {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%v is no block of addresses", p)
		}
		inside[i] = p.Masked()
	}
	slices.SortFunc(inside, netip.Prefix.Compare)
	return slices.Compact(inside), nil
}

// shutOutside takes away what is outside: no rule leads there; mu is held.
func (p *Pod) shutOutside() error {
	p.datagrams.inside = nil
	if err := p.maps[gateMapOutside].Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("empty %s: %w", gateMapOutside, err)
	}
	return nil
}

// openOutside says what is outside, which shutOutside has taken away; mu is held.
func (p *Pod) openOutside(inside []netip.Prefix) error {
	if len(inside) > 0 {
		var blocks *ebpf.Map
		if err := p.insert(gateMapOutside, 0, &blocks, func(m *ebpf.Map) error { return putInside(m, inside) }); err != nil {
			return fmt.Errorf("write what is inside: %w", err)
		}
		if err := blocks.Close(); err != nil {
			return err
		}
	}
	p.datagrams.inside = inside
	return p.writeConfig(p.cfg)
}

// putInside fills a table of blocks: what is nowhere in it is not outside, either.
func putInside(m *ebpf.Map, inside []netip.Prefix) error {
	for key, outside := range blocksOf(inside) {
		if err := m.Put(asBytes(&key), outside); err != nil {
			return err
		}
	}
	return nil
}

// blocksOf is the content of a table of blocks.
func blocksOf(inside []netip.Prefix) map[gateBlock]uint32 {
	all := map[gateBlock]uint32{}
	for _, block := range everywhere() {
		all[blockKey(block)] = 1
	}
	for _, block := range inside {
		all[blockKey(block)] = 0
	}
	return all
}

// blocksNow reads the table of blocks that the gate looks at, nil for none; mu is held.
func (p *Pod) blocksNow() (map[gateBlock]uint32, error) {
	table, err := p.slot(gateMapOutside)
	if table == nil || err != nil {
		return nil, err
	}
	all := map[gateBlock]uint32{}
	err = each(table, func(key gateBlock, outside uint32) { all[key] = outside })
	if err := errors.Join(err, table.Close()); err != nil {
		return nil, fmt.Errorf("list what is inside: %w", err)
	}
	return all, nil
}

// insideNow returns what the gate has as inside, and whether it has anything about who is
// outside: nothing is inside of a table that SetDatagrams would not have made. mu is held.
func (p *Pod) insideNow() (inside []netip.Prefix, some bool, err error) {
	have, err := p.blocksNow()
	if have == nil || err != nil {
		return nil, have != nil, err
	}
	for key, outside := range have {
		if outside == 0 {
			inside = append(inside, key.prefix())
		}
	}
	slices.SortFunc(inside, netip.Prefix.Compare)
	if !maps.Equal(have, blocksOf(inside)) {
		return nil, true, nil
	}
	return inside, true, nil
}

// adoptOutside takes over what an earlier agent said is outside. What an agent left that
// did not know of it does not hold: nobody has looked after it since. mu is held.
func (p *Pod) adoptOutside(held bool) error {
	inside, some, err := p.insideNow()
	if err != nil || !some {
		return err
	}
	if !held || len(inside) == 0 {
		return p.shutOutside()
	}
	p.datagrams.inside = inside
	return nil
}

// outsideDifferences says whether the kernel holds something else than it was told of what
// is outside; mu is held.
func (p *Pod) outsideDifferences() (found []string, err error) {
	have, err := p.blocksNow()
	var want map[gateBlock]uint32
	if len(p.datagrams.inside) > 0 {
		want = blocksOf(p.datagrams.inside)
	}
	if err == nil && ((have == nil) != (want == nil) || !maps.Equal(have, want)) {
		found = append(found, "what datagrams may leave to was changed")
	}
	return found, err
}
