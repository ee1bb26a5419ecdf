package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Looked says whether Reconcile looked at the rules of datagrams.
type Looked struct {
	Rules int  // that it looked at
	All   bool // it looked at all of them, or needs not
}

// ruleDifferences names the rules that the kernel holds otherwise than it was told. It reads
// them where their digest is another one; the Pod's mu is held.
func (p *Pod) ruleDifferences(look bool) (found []string, looked Looked, err error) {
	d := &p.datagrams
	if d.table == nil {
		return nil, Looked{All: true}, nil
	}
	if !look {
		return nil, Looked{}, nil
	}
	looked = Looked{Rules: len(d.rules), All: true}
	now, err := p.digestOf(d.digest.seed)
	if err != nil || now == d.digest {
		return nil, looked, err
	}
	have, err := rulesIn(d.table)
	if err != nil {
		return nil, looked, err
	}
	for key := range have {
		if !d.rules.has(key) {
			found = append(found, fmt.Sprintf("the rule for datagrams %v was added", key.rule()))
		}
	}
	for key := range d.rules {
		if !have.has(key) {
			found = append(found, fmt.Sprintf("the rule for datagrams %v was removed", key.rule()))
		}
	}
	return found, looked, nil
}

// datagramDifferences names what the kernel holds otherwise than it was told: of rules, if
// it is to look at them. mu is held.
func (p *Pod) datagramDifferences(look bool) (found []string, looked Looked, err error) {
	d := &p.datagrams
	switch {
	case d.unwritten:
		return nil, Looked{All: true}, errNotWritten // the next rules replace all
	case d.shared:
		return nil, Looked{All: true}, nil // an earlier agent may write still, and the next rules replace all
	}
	for _, slot := range []struct {
		outer, what string
		table       *ebpf.Map
	}{{gateMapDatagramRules, "rules for datagrams", d.table}, {gateMapConversations, "conversations", d.conversations}} {
		leads, err := p.leadsTo(slot.outer, slot.table)
		if err != nil {
			return nil, looked, err
		}
		if !leads {
			found = append(found, "the table of "+slot.what+" was replaced")
		}
	}
	outside, err := p.outsideDifferences()
	if err != nil {
		return nil, looked, err
	}
	rules, looked, err := p.ruleDifferences(look)
	return append(append(found, outside...), rules...), looked, err
}

// leadsTo reports whether the one slot of an outer map has a table in it, or is empty where
// that is nil; mu is held.
func (p *Pod) leadsTo(outer string, table *ebpf.Map) (bool, error) {
	var have ebpf.MapID
	err := p.maps[outer].Lookup(uint32(0), &have)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return table == nil, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up %s: %w", outer, err)
	}
	if table == nil {
		return false, nil
	}
	info, err := table.Info()
	if err != nil {
		return false, fmt.Errorf("look at the table of %s: %w", outer, err)
	}
	id, _ := info.ID()
	return id == have, nil
}
