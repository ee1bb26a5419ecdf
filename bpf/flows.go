package bpf

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// How long entries stay that no packet is expected for.
const (
	closedLinger = 60 * time.Second // as TIME_WAIT
	resetLinger  = 2 * time.Second  // a live socket would have answered a forged RST by then
)

// Flow looks up one TCP connection by the pod's end and the other.
func (p *Pod) Flow(local, remote netip.AddrPort) (FlowEntry, bool, error) {
	now, err := monotonic()
	if err != nil {
		return FlowEntry{}, false, err
	}
	key := toTuple(local, remote)
	for _, name := range []string{gateMapTransient, gateMapFlows, gateMapTransient} {
		var flow gateFlow
		err := p.maps[name].Lookup(key, &flow)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return FlowEntry{}, false, fmt.Errorf("look up flow %v to %v: %w", local, remote, err)
		}
		return flowEntry(key, flow, now), true, nil
	}
	return FlowEntry{}, false, nil
}

// Flows returns the live connections, in no order. Those that open or close
// meanwhile may be missing.
func (p *Pod) Flows() ([]FlowEntry, error) {
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	var all []FlowEntry
	err = p.eachFlow(gateMapFlows, func(t gateTuple, f gateFlow) { all = append(all, flowEntry(t, f, now)) })
	return all, err
}

func flowEntry(t gateTuple, f gateFlow, now uint64) FlowEntry {
	e := FlowEntry{
		Local:  netip.AddrPortFrom(fromAddress(t.Local), t.LocalPort),
		Remote: netip.AddrPortFrom(fromAddress(t.Remote), t.RemotePort),
		Kind:   FlowKind(f.Kind), LastSeen: since(f.LastSeen, now),
		BytesOut: f.BytesOut, BytesIn: f.BytesIn,
		Closed: f.FinIn == 2 || f.FinIn != 0 && f.FinOut != 0, Opened: openedBy(t, f),
	}
	if f.Deadline > now {
		e.Remaining = time.Duration(f.Deadline - now)
	}
	return e
}

// openedBy guesses of a flow that an earlier version found: the lower port is the server's.
func openedBy(t gateTuple, f gateFlow) Direction {
	switch by := gateServed(f.Served); {
	case by == gateServedSERVED_BY_POD, by == gateServedSERVED_UNKNOWN && t.LocalPort < t.RemotePort:
		return Inbound
	}
	return Outbound
}

// since is now-then, 0 when another CPU wrote then a tick later.
func since(then, now uint64) time.Duration {
	if then > now {
		return 0
	}
	return time.Duration(now - then)
}

// eachFlow visits a flow table.
func (p *Pod) eachFlow(name string, fn func(gateTuple, gateFlow)) error {
	if err := each(p.maps[name], fn); err != nil {
		return fmt.Errorf("list map %s: %w", name, err)
	}
	return nil
}

// each visits a hash map's entries a batch at a time, and so in bounded time even
// under churn. Most pods' tables are nearly empty each time that they are tidied:
// the first batch is small.
func each[K, V any](m *ebpf.Map, fn func(K, V)) error {
	const first, more = 64, 512
	keys := make([]K, first)
	values := make([]V, first)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			fn(keys[i], values[i])
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case errors.Is(err, errBatchTooSmall) && len(keys) < int(m.MaxEntries()):
			// One hash bucket holds more than the batch: go on with a larger one.
			keys = make([]K, 2*len(keys))
			values = make([]V, 2*len(values))
		case err != nil:
			return err
		case len(keys) < more:
			keys = make([]K, more)
			values = make([]V, more)
		}
	}
}

// deleteFlows deletes the entries of a table that pick picks.
func (p *Pod) deleteFlows(name string, pick func(gateTuple, gateFlow) bool) (int, error) {
	var gone []gateTuple
	err := p.eachFlow(name, func(t gateTuple, f gateFlow) {
		if pick(t, f) {
			gone = append(gone, t)
		}
	})
	if err != nil {
		return 0, err
	}
	for _, t := range gone {
		if err := p.maps[name].Delete(t); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return 0, fmt.Errorf("delete a flow: %w", err)
		}
	}
	return len(gone), nil
}

// ExpireFlows deletes entries whose connection is over or was silent for idle,
// and grandfathered ones past their deadline, which TakeEnded has then, and returns
// how many live ones went. An agent's socket that is alive after all makes its entry anew with
// its next segment; keepalives (15 s) keep it from coming to that. Call it
// every few seconds.
func (p *Pod) ExpireFlows(idle time.Duration) (int, error) {
	now, err := monotonic()
	if err != nil {
		return 0, err
	}
	if _, err := p.deleteFlows(gateMapTransient, func(_ gateTuple, f gateFlow) bool {
		return since(f.LastSeen, now) > closedLinger
	}); err != nil {
		return 0, err
	}
	seedings := p.olds.passes()
	found := false
	var late []FlowEntry
	n, err := p.deleteFlows(gateMapFlows, func(t gateTuple, f gateFlow) bool {
		old := FlowKind(f.Kind) == FlowGrandfathered
		found = found || old
		if old && now > f.Deadline {
			late = append(late, flowEntry(t, f, now))
		}
		return expired(f, now, idle)
	})
	if err == nil && !found {
		p.olds.none(seedings)
	}
	if err == nil && len(late) > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = append(p.ended, late...)
	}
	return n, err
}

// expired says whether a live entry may go.
func expired(f gateFlow, now uint64, idle time.Duration) bool {
	quiet, kind := since(f.LastSeen, now), FlowKind(f.Kind)
	switch {
	case f.Deadline != 0 && now > f.Deadline:
		return true
	case f.FinIn == 2 && (kind == FlowTunnel || kind == FlowEgress):
		return quiet > resetLinger
	case f.FinOut != 0 && f.FinIn != 0:
		return quiet > closedLinger
	case kind == FlowGrandfathered && f.FinIn != 2:
		return false // nothing keeps the app's own connections talking
	default:
		return quiet > idle
	}
}

// endRefusedFlows deletes flows that the configuration does not admit any
// more, or whose address is the pod's no more; mu is held. An earlier version
// grandfathered connections to waypoints, too.
func (p *Pod) endRefusedFlows() error {
	waypoint := p.node.config().WaypointPort
	now, err := monotonic()
	if err != nil {
		return err
	}
	var revoked []FlowEntry
	err = p.endFlows(func(table string, t gateTuple, f gateFlow) bool {
		old := FlowKind(f.Kind) == FlowGrandfathered
		if old && p.cfg.Revoked && now < f.Deadline && table == gateMapFlows { // else it is over already
			revoked = append(revoked, flowEntry(t, f, now))
		}
		return !p.cfg.admits(FlowKind(f.Kind), t.LocalPort) || old && t.LocalPort == waypoint || !slices.Contains(p.cfg.Addresses, fromAddress(t.Local))
	})
	if err == nil {
		p.ended = append(p.ended, revoked...)
	}
	return err
}

// EndGrandfathered ends the grandfathered connections that refused picks, which it may ask
// more than once about one: the gate passes nothing more of them. It returns those that
// were live, in no order; TakeEnded does not. Of a pod that is known to have none, it looks
// at nothing: Grandfather makes them, and ExpireFlows finds that they are gone.
func (p *Pod) EndGrandfathered(refused func(FlowEntry) bool) (ended []FlowEntry, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.olds.known() {
		return nil, nil
	}
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	err = p.endFlows(func(table string, t gateTuple, f gateFlow) bool {
		e := flowEntry(t, f, now)
		if e.Kind != FlowGrandfathered || e.Remaining == 0 || !refused(e) {
			return false
		}
		if table == gateMapFlows { // else it is over already
			ended = append(ended, e)
		}
		return true
	})
	return ended, err
}

// endFlows deletes the entries that refused picks, from both tables. Packets move them
// meanwhile: a half-open connection to the live ones when it is answered, a live one back
// when it is over. Each is written to where it goes before it leaves where it was, so that
// passes in the order of these moves miss none.
func (p *Pod) endFlows(refused func(table string, t gateTuple, f gateFlow) bool) error {
	for _, table := range []string{gateMapTransient, gateMapFlows, gateMapTransient} {
		if _, err := p.deleteFlows(table, func(t gateTuple, f gateFlow) bool { return refused(table, t, f) }); err != nil {
			return err
		}
	}
	return nil
}

// TakeEnded returns the grandfathered connections that the gate has ended since the
// last call: at their deadline, when nothing Remaining is left, or before it because
// of PodConfig.Revoked. They are in no order, and kept until somebody calls it.
func (p *Pod) TakeEnded() []FlowEntry {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.ended
	p.ended = nil
	return taken
}

// Grandfather keeps the connections alive that the pod has open now: it marks
// and stamps their sockets and seeds the flow table, and returns how many it
// found that an earlier pass had not. Call it before the redirect's rules go
// in, and again after. Connections to Config.WaypointPort are not kept, nor any of
// a pod that is Revoked: the gate drops what comes on them and what leaves.
func (p *Pod) Grandfather() (int, error) {
	spec, err := loadEnroll()
	if err != nil {
		return 0, fmt.Errorf("read the enrolment's object: %w", err)
	}
	for name, value := range map[string]any{
		enrollVarMark: p.node.cfg.Mark, enrollVarMarkMask: p.node.cfg.MarkMask, enrollVarWaypointPort: p.node.cfg.WaypointPort,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return 0, fmt.Errorf("set %s: %w", name, err)
		}
	}
	replace := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		if have := p.maps[name]; have != nil {
			m.MaxEntries = have.MaxEntries()
			replace[name] = have
		}
	}
	replace[enrollMapStamps] = p.node.stamps
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return 0, fmt.Errorf("load iter_tcp: %w", err)
	}
	defer coll.Close()
	found, err := p.iterate(coll.Programs[enrollProgIterTcp])
	p.olds.pass()
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Revoked { // found all the same, so that TakeEnded has them
		return 0, p.endRefusedFlows()
	}
	return seeded(found)
}

// iterate runs the iterator over the pod's sockets; it walks the network
// namespace of the thread that opens it.
func (p *Pod) iterate(prog *ebpf.Program) (out []byte, err error) {
	it, err := link.AttachIter(link.IterOptions{Program: prog})
	if err != nil {
		return nil, fmt.Errorf("attach iter_tcp: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	err = inNetNS(p.config().NetNS, func() error {
		r, err := it.Open()
		if err != nil {
			return fmt.Errorf("open iter_tcp: %w", err)
		}
		defer r.Close()
		if out, err = io.ReadAll(r); err != nil {
			return fmt.Errorf("run iter_tcp: %w", err)
		}
		return nil
	})
	return out, err
}

// seeded counts the sockets that the iterator gave a flow entry.
func seeded(out []byte) (int, error) {
	const size = int(unsafe.Sizeof(gateEnrolled{}))
	full, n := 0, 0
	for ; len(out) >= size; out = out[size:] {
		if e := (gateEnrolled{State: out[0], Marked: out[1], Seeded: out[2], Family: out[3]}); e.Seeded != 0 {
			n++
		} else {
			full++
		}
	}
	if full > 0 {
		return n, fmt.Errorf("%d open connections found no room in the flow table: raise FlowsPerPod", full)
	}
	return n, nil
}
