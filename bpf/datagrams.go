package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// MaxDatagramRules bounds the rules of a pod.
const MaxDatagramRules = 65536

// smallestRules is what a table of rules has room for at least.
const smallestRules = 256

// DatagramRule lets a conversation of datagrams be opened, in which answers pass for
// 30 s after each datagram of who opened it. It is comparable.
type DatagramRule struct {
	// Remote is the other end, not mapped; :: of an Outbound rule is whoever is outside:
	// who has an address that none of the blocks inside has. Port 0 is then all ports, but
	// for those that is_closed_port (c/datagrams.h) keeps closed.
	Remote netip.Addr
	// Port is that of the end that is spoken to: the other's of an Outbound rule, the
	// pod's own of an Inbound one.
	Port uint16
	// Direction is that of the datagram that opens the conversation.
	Direction Direction
}

func (r DatagramRule) key() gateDatagramRule {
	key := gateDatagramRule{Remote: toAddress(r.Remote), Port: r.Port, Direction: uint8(r.Direction)}
	if r.Direction == Outbound && r.Remote == netip.IPv6Unspecified() {
		key.Outside = 1
	}
	return key
}

func (k gateDatagramRule) rule() DatagramRule {
	return DatagramRule{Remote: fromAddress(k.Remote), Port: k.Port, Direction: Direction(k.Direction)}
}

// String returns "in from ADDRESS to port PORT", "out to ADDRESS:PORT", or "outside to
// port PORT".
func (r DatagramRule) String() string {
	if r.Direction == Inbound {
		return fmt.Sprintf("in from %v to port %d", r.Remote, r.Port)
	}
	if r.Remote == netip.IPv6Unspecified() {
		return fmt.Sprintf("outside to port %d", r.Port)
	}
	return fmt.Sprintf("out to %v", netip.AddrPortFrom(r.Remote, r.Port))
}

// Conversation is datagrams between two ports. Times count back from now.
type Conversation struct {
	Local, Remote netip.AddrPort // the pod's end, the other end
	// Direction is that of the datagram that opened it.
	Direction        Direction
	Opened, LastSeen time.Duration
	Out, In          Count // bytes are of payload
}

// datagrams is a pod's part of the kernel that is about datagrams; Pod.mu guards it.
type datagrams struct {
	// rules are what the kernel was told. The maps are nil while there is none.
	rules         datagramRules
	digest        digest // of rules
	table         *ebpf.Map
	conversations *ebpf.Map
	// inside are the blocks that rules to whoever is outside do not lead to, as the kernel
	// was told; none while there is no such rule.
	inside []netip.Prefix
	// shared is set while nothing has been told and another agent may have written since the
	// rules were read, unwritten since not all that was told could be written. In both cases
	// the kernel may hold other rules than these, which nobody looks after, and the next ones
	// are put in place of whatever is there.
	shared, unwritten bool
}

// stale reports whether the kernel may hold other rules than these.
func (d *datagrams) stale() bool { return d.shared || d.unwritten }

// datagramRules is a set of rules.
type datagramRules map[gateDatagramRule]struct{}

func (d datagramRules) same(other datagramRules) bool {
	if len(d) != len(other) {
		return false
	}
	for key := range d {
		if !other.has(key) {
			return false
		}
	}
	return true
}

func (d datagramRules) has(key gateDatagramRule) bool {
	_, ok := d[key]
	return ok
}

// SetDatagrams makes rules those by which the pod exchanges datagrams, beside DNS, and
// inside the blocks of addresses that are not outside; it says nothing where no rule is
// about who is. One
// that is taken away ends the conversations that it let be opened at once, before any
// that is new holds. It returns how many found no room (MaxDatagramRules do): those do
// not hold. Rules are pinned, and hold until they are replaced.
//
// After an error the kernel holds some of the rules of before and of now; the next call
// writes all of them.
func (p *Pod) SetDatagrams(rules []DatagramRule, inside []netip.Prefix) (left int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.setDatagrams(rules, inside, false)
}

// KeepDatagrams is SetDatagrams of those rules that hold already: it takes away the others,
// and gives none. It does nothing to a pod that has been told nothing yet, or not all of it.
func (p *Pod) KeepDatagrams(rules []DatagramRule, inside []netip.Prefix) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.datagrams.stale() {
		return nil
	}
	_, err := p.setDatagrams(rules, inside, true)
	return err
}

// setDatagrams makes rules, or those of them that hold already, those that hold; mu is held.
func (p *Pod) setDatagrams(rules []DatagramRule, inside []netip.Prefix, kept bool) (left int, err error) {
	if err := p.mend(); err != nil {
		return 0, p.putAwayAfter(err)
	}
	wanted, outside := make(datagramRules, len(rules)), false
	for _, r := range rules {
		switch key := r.key(); {
		case kept && !p.datagrams.rules.has(key):
		case len(wanted) < MaxDatagramRules:
			wanted[key], outside = struct{}{}, outside || key.Outside == 1
		case !wanted.has(key):
			left++
		}
	}
	if inside, err = insideOf(outside, inside); err != nil {
		return left, err
	}
	if !p.datagrams.stale() && wanted.same(p.datagrams.rules) && slices.Equal(inside, p.datagrams.inside) {
		return left, nil
	}
	return left, p.putAwayAfter(p.bringTo(wanted, inside))
}

// bringTo brings the kernel's rules to wanted; mu is held.
func (p *Pod) bringTo(wanted datagramRules, inside []netip.Prefix) error {
	if p.datagrams.stale() {
		empty, err := p.takeAnew()
		if err != nil || empty && len(wanted) == 0 {
			return err
		}
	}
	if len(wanted) == 0 {
		return p.dropDatagrams()
	}
	// Neither may the rules of before lead to what is outside now, nor those of now to
	// what was.
	same := slices.Equal(inside, p.datagrams.inside)
	if !same {
		if err := p.shutOutside(); err != nil {
			return err
		}
	}
	if err := p.writeRules(wanted); err != nil {
		return fmt.Errorf("write the rules of datagrams: %w", err)
	}
	if same {
		return nil
	}
	return p.openOutside(inside)
}

// takeAnew lets go of tables that may not be those which the gate looks at, and takes
// over the conversations of now, and what is outside. It reports whether there is nothing to take away. mu is
// held.
func (p *Pod) takeAnew() (empty bool, err error) {
	if err := p.datagrams.close(); err != nil {
		return false, err
	}
	p.datagrams = datagrams{unwritten: true}
	table, err := p.slot(gateMapDatagramRules)
	if err != nil {
		return false, err
	}
	if empty = table == nil && p.wrote.Flags&uint32(gatePodFlagsPOD_DATAGRAMS) == 0; table != nil {
		err = table.Close()
	}
	var lookup error
	p.datagrams.conversations, lookup = p.slot(gateMapConversations)
	inside, some, unread := p.insideNow()
	p.datagrams.inside, empty = inside, empty && p.datagrams.conversations == nil && !some
	if err = errors.Join(err, lookup, unread); err == nil {
		p.datagrams.unwritten = false
	}
	return empty, err
}

// slot returns the table in the one slot of an outer map, the caller's to close; nil when
// it is empty.
func (p *Pod) slot(outer string) (table *ebpf.Map, err error) {
	err = p.maps[outer].Lookup(uint32(0), &table)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", outer, err)
	}
	return table, nil
}

// putAwayAfter puts the tables away after an error, so that trying again replaces all of
// it; mu is held.
func (p *Pod) putAwayAfter(err error) error {
	if err == nil {
		return nil
	}
	err = errors.Join(err, p.datagrams.close())
	p.datagrams = datagrams{unwritten: true}
	return err
}

// writeRules brings the kernel's rules to wanted, of which there are some; mu is held.
func (p *Pod) writeRules(wanted datagramRules) error {
	d := &p.datagrams
	if d.conversations == nil {
		if err := p.insert(gateMapConversations, 0, &d.conversations); err != nil {
			return err
		}
	}
	if d.table == nil || len(wanted) > int(d.table.MaxEntries()) {
		return p.replaceRules(wanted)
	}
	for key := range d.rules {
		if wanted.has(key) {
			continue
		}
		if err := d.takeAway(key); err != nil {
			return err
		}
	}
	var fresh []gateDatagramRule
	for key := range wanted {
		if !d.rules.has(key) {
			fresh = append(fresh, key)
		}
	}
	return d.give(fresh)
}

// replaceRules puts a new table of wanted rules in the old one's place; mu is held.
func (p *Pod) replaceRules(wanted datagramRules) error {
	size := smallestRules
	for size < 2*len(wanted) && size < MaxDatagramRules {
		size *= 2
	}
	fill := func(m *ebpf.Map) error { return putRules(m, slices.Collect(maps.Keys(wanted))) }
	if err := p.insert(gateMapDatagramRules, uint32(size), &p.datagrams.table, fill); err != nil {
		return err
	}
	p.datagrams.rules, p.datagrams.digest = wanted, wanted.digest()
	return p.writeConfig(p.cfg)
}

// insert makes a table, of a size or the default's, and puts it into the one slot of an
// outer map; mu is held.
func (p *Pod) insert(outer string, size uint32, table **ebpf.Map, fill ...func(*ebpf.Map) error) error {
	gate, err := loadGate()
	if err != nil {
		return fmt.Errorf("read the gate's object: %w", err)
	}
	spec := gate.Maps[outer].InnerMap
	if size > 0 {
		spec.MaxEntries = size
	}
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return err
	}
	for _, fn := range fill {
		if err := fn(m); err != nil {
			return errors.Join(err, m.Close())
		}
	}
	if err := p.maps[outer].Put(uint32(0), m); err != nil {
		return errors.Join(err, m.Close())
	}
	old := *table
	*table = m
	if old == nil {
		return nil
	}
	return old.Close()
}

// datagramSlots are the maps that have a table about datagrams in their one slot.
func datagramSlots() []string {
	return []string{gateMapOutside, gateMapDatagramRules, gateMapConversations}
}

// dropDatagrams takes rules and conversations out of the kernel; mu is held.
func (p *Pod) dropDatagrams() error {
	errs := []error{p.datagrams.close()}
	p.datagrams = datagrams{}
	for _, outer := range datagramSlots() {
		if err := p.maps[outer].Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("empty %s: %w", outer, err))
		}
	}
	if p.cfg.Name != "" {
		errs = append(errs, p.writeConfig(p.cfg))
	}
	return errors.Join(errs...)
}

// dropPinnedDatagrams takes out the rules of a pod of which only pins are at hand.
func dropPinnedDatagrams(dir string) error {
	for _, outer := range datagramSlots() {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, outer), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue // of an agent that knew none
		}
		if err == nil {
			if err = m.Delete(uint32(0)); errors.Is(err, ebpf.ErrKeyNotExist) {
				err = nil
			}
			err = errors.Join(err, m.Close())
		}
		if err != nil {
			return fmt.Errorf("empty %s of %s: %w", outer, dir, err)
		}
	}
	return nil
}

func (d *datagrams) close() error {
	var errs []error
	for _, m := range []*ebpf.Map{d.table, d.conversations} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// adoptDatagrams takes over the rules of an earlier agent. Those that an agent left which
// kept no rules do not hold: nobody has looked after them since. A table that has none is
// dropped, as SetDatagrams does. Where the earlier agent may write until it ends, what is
// read is good for as long as nothing is told only, and a table without rules is one that it
// may be about to fill. mu is held.
func (p *Pod) adoptDatagrams() error {
	shared := p.node.cfg.Shared
	defer func() { p.datagrams.shared = shared }()
	var active uint32
	var cfg gatePodConfig
	if err := p.maps[gateMapActive].Lookup(uint32(0), &active); err != nil {
		return fmt.Errorf("read which configuration is in use: %w", err)
	}
	if err := p.maps[gateMapConfig].Lookup(active&1, &cfg); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	if cfg.Flags&uint32(gatePodFlagsPOD_DATAGRAMS) == 0 {
		return p.dropDatagrams()
	}
	d := &p.datagrams
	for outer, m := range map[string]**ebpf.Map{gateMapDatagramRules: &d.table, gateMapConversations: &d.conversations} {
		if err := p.maps[outer].Lookup(uint32(0), m); err != nil {
			// Half of it is no use: it is told anew.
			return p.dropDatagrams()
		}
	}
	var err error
	if d.rules, err = rulesIn(d.table); err != nil {
		return err
	}
	if d.digest = d.rules.digest(); len(d.rules) == 0 && !shared {
		return p.dropDatagrams()
	}
	return p.adoptOutside(cfg.Flags&uint32(gatePodFlagsPOD_OUTSIDE) != 0)
}

func rulesIn(table *ebpf.Map) (datagramRules, error) {
	rules := datagramRules{}
	if err := each(table, func(key gateDatagramRule, _ uint32) { rules[key] = struct{}{} }); err != nil {
		return nil, fmt.Errorf("list the rules of datagrams: %w", err)
	}
	return rules, nil
}

// rebuildDatagrams makes the tables anew, as they were told. After an error that is what was
// told still, so that Reconcile finds what the kernel holds otherwise; mu is held.
func (p *Pod) rebuildDatagrams() error {
	rules, inside := p.datagrams.rules, p.datagrams.inside
	if p.datagrams.stale() {
		return nil // to be told anyway
	}
	if len(rules) == 0 {
		return p.dropDatagrams()
	}
	err := p.shutOutside()
	if err == nil {
		err = p.insert(gateMapConversations, 0, &p.datagrams.conversations)
	}
	if err == nil {
		err = p.replaceRules(rules)
	}
	if err == nil {
		err = p.openOutside(inside)
	}
	p.datagrams.inside = inside
	return err
}

// Conversations returns those of the last minutes, in no order; a pod without rules has
// none. Of 4,096 and more, those go first that were quiet for longest.
func (p *Pod) Conversations() ([]Conversation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.datagrams.conversations == nil {
		return nil, nil
	}
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	var all []Conversation
	err = each(p.datagrams.conversations, func(t gateTuple, c gateConversation) {
		all = append(all, Conversation{
			Local:     netip.AddrPortFrom(fromAddress(t.Local), t.LocalPort),
			Remote:    netip.AddrPortFrom(fromAddress(t.Remote), t.RemotePort),
			Direction: Direction(c.Direction), Opened: since(c.Opened, now), LastSeen: since(c.LastSeen, now),
			Out: Count{Packets: c.Packets[Outbound], Bytes: c.Bytes[Outbound]}, In: Count{Packets: c.Packets[Inbound], Bytes: c.Bytes[Inbound]},
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list conversations: %w", err)
	}
	return all, nil
}
