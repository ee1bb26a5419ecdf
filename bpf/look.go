package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Looked says how far Reconcile came with the rules of datagrams.
type Looked struct {
	Rules int  // that it read
	All   bool // it has now read all of them, or needs not
}

// look is a round of looking after rules, which takes as many calls as its bounds make it.
// What is told in between takes part: a rule that is added is one that was seen.
type look struct {
	round  uint32
	cursor *ebpf.MapBatchCursor // nil between two rounds
	unseen int                  // of the rules that were there when it began
}

func (l *look) begin(rules int) {
	l.round, l.cursor, l.unseen = l.round+1, new(ebpf.MapBatchCursor), rules
}

// without follows a rule that was taken away, and had been seen in a round.
func (l *look) without(seen uint32) {
	if l.cursor != nil && seen != l.round {
		l.unseen--
	}
}

// differences reads on in the table, at least so many rules if there are, and names those
// that the kernel holds otherwise than it was told; the Pod's mu is held.
func (d *datagrams) differences(atLeast int) (found []string, looked Looked, err error) {
	if d.table == nil {
		return nil, Looked{All: true}, nil
	}
	if atLeast <= 0 {
		return nil, Looked{}, nil
	}
	l := &d.look
	if l.cursor == nil {
		l.begin(len(d.rules))
	}
	keys, values := make([]gateDatagramRule, 512), make([]uint32, 512)
	for looked.Rules < atLeast && !looked.All {
		n, err := d.table.BatchLookup(l.cursor, keys, values, nil)
		for _, key := range keys[:n] {
			switch seen, ok := d.rules[key]; {
			case !ok:
				found = append(found, fmt.Sprintf("the rule for datagrams %v was added", key.rule()))
			case seen != l.round:
				d.rules[key] = l.round
				l.unseen--
			}
		}
		looked.Rules += n
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			looked.All = true
		case errors.Is(err, errBatchTooSmall) && len(keys) < int(d.table.MaxEntries()):
			// One hash bucket holds more than the batch: go on with a larger one.
			keys, values = make([]gateDatagramRule, 2*len(keys)), make([]uint32, 2*len(keys))
		case err != nil:
			l.cursor = nil
			return nil, looked, fmt.Errorf("list the rules of datagrams: %w", err)
		}
	}
	if !looked.All {
		return found, looked, nil
	}
	for key, seen := range d.rules {
		if l.unseen == 0 {
			break
		}
		if seen != l.round {
			found = append(found, fmt.Sprintf("the rule for datagrams %v was removed", key.rule()))
			l.unseen--
		}
	}
	l.cursor = nil
	return found, looked, nil
}

// datagramDifferences names what the kernel holds otherwise than it was told: of rules, of
// which it reads on for at least so many. mu is held.
func (p *Pod) datagramDifferences(atLeast int) (found []string, looked Looked, err error) {
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
	rules, looked, err := d.differences(atLeast)
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
