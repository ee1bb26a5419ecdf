package bpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
)

// errNotTold says that rules cannot be changed of which some may not be known.
var errNotTold = errors.New("the pod has not been told of datagrams as a whole")

// ChangeDatagrams takes rules away that SetDatagrams gave, and then adds others, in the time
// that these take. None is about who is outside. It returns how many of those to add found
// no room. An error is as SetDatagrams' is, which must come next.
func (p *Pod) ChangeDatagrams(gone, added []DatagramRule) (left int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.datagrams.stale() {
		return 0, errNotTold
	}
	if err = p.mend(); err == nil {
		left, err = p.changeRules(gone, added)
	}
	if err != nil {
		err = fmt.Errorf("change the rules of datagrams: %w", err)
	}
	return left, p.putAwayAfter(err)
}

func (p *Pod) changeRules(gone, added []DatagramRule) (left int, err error) {
	d := &p.datagrams
	for _, r := range gone {
		if err := d.takeAway(r.key()); err != nil {
			return 0, err
		}
	}
	var fresh []gateDatagramRule
	for _, r := range added {
		switch key := r.key(); {
		case d.rules.has(key):
		case len(d.rules)+len(fresh) < MaxDatagramRules:
			fresh = append(fresh, key)
		default:
			left++
		}
	}
	switch all := len(d.rules) + len(fresh); {
	case all == 0 && len(gone) > 0:
		return left, p.dropDatagrams()
	case len(fresh) == 0:
		return left, nil
	case d.table == nil || all > int(d.table.MaxEntries()):
		wanted := maps.Clone(d.rules)
		if wanted == nil {
			wanted = datagramRules{}
		}
		for _, key := range fresh {
			wanted[key] = struct{}{}
		}
		return left, p.writeRules(wanted)
	}
	return left, d.give(fresh)
}

// takeAway takes a rule out of the table; the Pod's mu is held.
func (d *datagrams) takeAway(key gateDatagramRule) error {
	if !d.rules.has(key) {
		return nil
	}
	if err := d.table.Delete(asBytes(&key)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	delete(d.rules, key)
	d.digest.remove(&key)
	return nil
}

// give puts rules into the table, which has room for them; the Pod's mu is held.
func (d *datagrams) give(keys []gateDatagramRule) error {
	if err := putRules(d.table, keys); err != nil {
		return err
	}
	for _, key := range keys {
		if !d.rules.has(key) { // none is given twice
			d.rules[key] = struct{}{}
			d.digest.add(&key)
		}
	}
	return nil
}

func putRules(table *ebpf.Map, keys []gateDatagramRule) error {
	if len(keys) == 0 {
		return nil
	}
	_, err := table.BatchUpdate(keys, slices.Repeat([]uint32{1}, len(keys)), nil)
	return err
}
